"""``backend=`` of modules, cells and functions: torch's own layers, tiers that the CPU has not, errors."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from helpers import flat, onednn_has_bf16_lstm, randn
from tolerances import assert_close
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import functional
from fastrnn._ops import library, torch_state

LAYERS = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 3}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_cudnn_is_torchs_own_layer(name, options, packed):
    """The same bits as torch.nn's module, outputs and gradients, from the same state_dict."""
    options = {"num_layers": 2, "bidirectional": True, **options}
    theirs = getattr(nn, name)(4, 6, **options)
    ours = getattr(fastrnn, name)(4, 6, backend="cudnn", **options)
    ours.load_state_dict(theirs.state_dict())
    x = randn(5, 3, 4)
    given = pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False) if packed else x
    got, want = flat(ours(given)), flat(theirs(given))
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)
    sum(t.sum() for t in got).backward()
    sum(t.sum() for t in want).backward()
    for g, w in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(g.grad, w.grad)


def test_cudnn_takes_states_dropout_and_batch_first():
    """Every argument reaches torch's layer: the same random numbers, the same initial states."""
    options = {"num_layers": 2, "dropout": 0.5, "batch_first": True}
    ours, theirs = fastrnn.GRU(4, 6, backend="cudnn", **options), nn.GRU(4, 6, **options)
    ours.load_state_dict(theirs.state_dict())
    x, h = randn(3, 5, 4), randn(2, 3, 6)
    torch.manual_seed(1)
    got = ours(x, h)
    torch.manual_seed(1)
    for g, w in zip(flat(got), flat(theirs(x, h)), strict=True):
        assert torch.equal(g, w)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_cudnn_cells(cell, bias):
    """One step of torch's cell, with and without a state."""
    module = getattr(nn, f"{cell.upper()}Cell")(4, 6, bias=bias)
    weights = list(module.parameters())
    function = getattr(functional, f"{cell}_cell")
    x, h = randn(3, 4), randn(3, 6)
    state = (h, h + 1) if cell == "lstm" else h
    for hx in (None, state):
        got, want = function(x, hx, *weights, backend="cudnn"), module(x, hx)
        for g, w in zip(flat(got), flat(want), strict=True):
            assert torch.equal(g, w)


def test_cudnn_follows_autocast_as_torch_does():
    """The output types under autocast are torch's, and where it cannot, so is the error."""
    x = randn(5, 3, 4)
    for name in ("LSTM", "GRU", "RNN"):
        ours, theirs = getattr(fastrnn, name)(4, 6, backend="cudnn"), getattr(nn, name)(4, 6)
        with torch.autocast("cpu", torch.bfloat16):
            try:
                expected = [t.dtype for t in flat(theirs(x))]
            except RuntimeError as torchs:  # an LSTM, where oneDNN has none for this processor
                assert name == "LSTM"
                assert not onednn_has_bf16_lstm()
                with pytest.raises(RuntimeError, match=re.escape(str(torchs))):
                    ours(x)
            else:
                assert [t.dtype for t in flat(ours(x))] == expected


@pytest.mark.parametrize("backend", ["stepwise", "one_cta", "cluster", "grid"])
def test_the_cpu_has_no_tiers(backend):
    """One clear error, from modules and cells alike."""
    message = f"backend='{backend}': a tier of the CUDA kernels, and the input is on the CPU"
    with pytest.raises(RuntimeError, match=message):
        fastrnn.LSTM(3, 4, backend=backend)(randn(2, 1, 3))
    cell = nn.GRUCell(3, 4)
    with pytest.raises(RuntimeError, match=message):
        functional.gru_cell(randn(2, 3), None, *cell.parameters(), backend=backend)
    x, h, w = randn(2, 1, 3), randn(1, 1, 4), [randn(4, 3), randn(4, 4)]
    with pytest.raises(RuntimeError, match="mode: expected 0, 1 or 2, got"):
        library.forward(x, h, None, w, None, None, None, "rnn_tanh", False, library.TIERS[backend])


@pytest.mark.parametrize("backend", ["auto", "fused", "cudnn", "reference"])
def test_backends_agree(backend):
    """Whoever computes, the numbers are those of the weights."""
    module = fastrnn.LSTM(4, 6, num_layers=2, bidirectional=True, backend=backend)
    exact = nn.LSTM(4, 6, num_layers=2, bidirectional=True).double()
    exact.load_state_dict(module.state_dict())
    x = randn(5, 3, 4)
    for g, w in zip(flat(module(x)), flat(exact(x.double())), strict=True):
        assert_close(g, w, torch.float32, slack=2.0)


def test_backend_survives_copies_and_shows():
    """deepcopy, state_dict and repr know the backend."""
    module = copy.deepcopy(fastrnn.GRU(3, 4, backend="cudnn"))
    assert module.backend == "cudnn"
    assert "backend=cudnn" in repr(module)
    module.flatten_parameters()  # torch's: harmless on the CPU


def test_unknown_backend():
    """The error lists what there is."""
    with pytest.raises(ValueError, match=r"backend should be 'auto', .*or 'reference', got 'mkl'"):
        fastrnn.LSTM(3, 4, backend="mkl")


def test_tensorfloat_setting_is_the_one_of_cudnns_layers():
    """torch.backends.cudnn.rnn decides, whichever interface set it, and not cuda.matmul."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert not torch_state.rnn_tf32()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        assert torch_state.rnn_tf32()
        get, set_ = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
        before = get("cuda", "rnn")
        try:
            set_("cuda", "rnn", "ieee")
            assert not torch_state.rnn_tf32()
        finally:
            set_("cuda", "rnn", before)


def test_modes_do_not_collide():
    """Tier and TensorFloat-32 share a number with what is saved or needed: their bits are apart."""
    low = set(library.SAVE_MODES.values()) | {1, 2, 4, 8}
    assert max(low) < min(t for t in library.TIERS.values() if t)
    assert all(t % 16 == 0 and not t & library.TF32 for t in library.TIERS.values())
