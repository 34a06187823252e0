"""autocast: the dtypes of the results are torch's, the numbers at least as good, the gradients in float32."""

from __future__ import annotations

import pytest
import torch
from helpers import CELLS, LAYERS, flat, onednn_has_bf16_lstm, pair, randn, results
from tolerances import TOLERANCES, error
from torch.nn.utils.rnn import pack_sequence

IN, H = 4, 6
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}]
CASES = [(n, o) for n in LAYERS for o in OPTIONS] + [("LSTM", {"proj_size": 2, "num_layers": 2})]


def _dtypes(module, *args):
    """The results' dtypes, or None where the module refuses."""
    try:
        return [t.dtype for t in flat(module(*args))]
    except (RuntimeError, ValueError):
        return None


def test_the_listed_dtypes():
    """bfloat16 on the CPU, as torch answers: LSTM and RNN round, GRU and the wide cells do not."""
    expected = {"LSTM": BF16, "GRU": F32, "RNN": BF16, "LSTMCell": F32, "GRUCell": F32, "RNNCell": BF16}
    for name, dtype in expected.items():
        ours, _ = pair(name, IN, H)
        x = randn(3, IN) if name in CELLS else randn(5, 3, IN)
        with torch.autocast("cpu", dtype=BF16):
            assert {t.dtype for t in flat(ours(x))} == {dtype}, name


@pytest.mark.parametrize(("name", "options"), CASES)
def test_dtypes_of_layers(name, options):
    """Every mix of input, weights and state: torch's result dtypes wherever torch has an answer."""
    x, states = randn(5, 3, IN), 2 * options.get("num_layers", 1) // (1 + ("bidirectional" not in options))
    packed = pack_sequence([randn(n, IN) for n in (4, 2, 2)])
    batch = 5 if options.get("batch_first") else 3
    onednns = name == "LSTM" and "proj_size" not in options
    for weights in (F32, BF16, F16, F64):
        ours, theirs = pair(name, IN, H, dtype=weights, **options)
        for xd in (F32, BF16, F16, F64):
            for hd in (None, F32, BF16, F16, F64):
                for input, rows in ((x.to(xd), batch), (packed.to(xd), 3)):
                    # Unpacked and without projection torch asks oneDNN, and the processor decides what comes
                    # of it. Ours is the answer of the machines where there is one, whatever runs here.
                    by_processor = onednns and isinstance(input, torch.Tensor) and xd in (F32, BF16)
                    h = torch.zeros(states, rows, options.get("proj_size", H), dtype=hd or xd)
                    hx = (h, torch.zeros(states, rows, H, dtype=h.dtype)) if name == "LSTM" else h
                    args = (input,) if hd is None else (input, hx)
                    with torch.autocast("cpu", dtype=BF16), torch.no_grad():
                        expected = _dtypes(theirs, *args)
                        got = _dtypes(ours, *args)
                    if by_processor:
                        listed = None if F64 in (weights, hd) else [BF16] * 3
                        assert not onednn_has_bf16_lstm() or expected == listed
                        expected = listed
                    # Where torch refuses half types for want of a kernel, there may be an answer here.
                    assert got == expected or (expected is None and F64 not in (weights, xd, hd))


@pytest.mark.parametrize("name", CELLS)
def test_dtypes_of_cells(name):
    """The same for one step."""
    for weights in (F32, BF16, F64):
        ours, theirs = pair(name, IN, H, dtype=weights)
        for xd in (F32, BF16, F16, F64):
            for hd in (None, F32, BF16, F16, F64):
                for cd in (F32, BF16) if name == "LSTMCell" and hd not in (None, F64) else (hd,):
                    h, c = (torch.zeros(3, H, dtype=d or xd) for d in (hd, cd))
                    hx = (h, c) if name == "LSTMCell" else h
                    args = (randn(3, IN, dtype=xd), *([] if hd is None else [hx]))
                    with torch.autocast("cpu", dtype=BF16), torch.no_grad():
                        assert _dtypes(ours, *args) == _dtypes(theirs, *args), (weights, xd, hd, cd)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("name", "options"), [*CASES, *((n, {}) for n in CELLS)])
def test_numbers(name, options, backend):
    """Outputs and gradients are those of float32 within bfloat16, and gradients come back in float32."""
    if name in LAYERS:
        options = {**options, "backend": backend}
    ours, theirs = pair(name, IN, H, **options)
    x = randn(3, IN) if name in CELLS else randn(5, 3, IN)
    exact = results(theirs, x)
    with torch.autocast("cpu", dtype=BF16):
        got = results(ours, x)
    for label, value in got.items():
        gradient = label.startswith("grad")
        assert not gradient or value.dtype == F32
        # Inputs and weights are rounded here, which the tolerance of given bfloat16 numbers does not cover.
        assert error(value, exact[label]) <= 2 * TOLERANCES[BF16][gradient], label


@pytest.mark.parametrize("name", LAYERS)
def test_float16(name):
    """float16 works too; torch's LSTM has no CPU kernel for it and raises."""
    ours, theirs = pair(name, IN, H)
    x = randn(5, 3, IN)
    with torch.autocast("cpu", dtype=F16):
        dtypes = _dtypes(ours, x)
        assert dtypes == ([F16, F16, F16] if name == "LSTM" else _dtypes(theirs, x))


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_nothing_leaks(name):
    """Autocast is left as it was found, off inside autocast(enabled=False), and not applied to complex."""
    ours, _ = pair(name, IN, H)
    x = randn(3, IN) if name in CELLS else randn(5, 3, IN)
    with torch.autocast("cpu", dtype=BF16):
        ours(x)
        assert torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False):
            assert {t.dtype for t in flat(ours(x))} == {F32}
        weird, _ = pair(name, IN, H, dtype=torch.complex64)
        assert {t.dtype for t in flat(weird(x.to(torch.complex64)))} == {torch.complex64}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", LAYERS)
def test_mismatched_dtypes(name):
    """Under autocast the input's dtype need not be the weights'; float64 still must."""
    ours, _ = pair(name, IN, H)
    with torch.autocast("cpu", dtype=BF16):
        ours(randn(5, 3, IN, dtype=BF16))
        with pytest.raises(RuntimeError, match="not the same dtype"):
            ours(randn(5, 3, IN, dtype=F64))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        ours(randn(5, 3, IN, dtype=BF16))
