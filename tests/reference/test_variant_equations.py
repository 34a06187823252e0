"""The variants of the cells: their equations, in evaluation and in training, for every kind of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import randn
from tolerances import assert_close
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from variant_cases import CASES, step

import fastrnn
from fastrnn import reference
from fastrnn._cells import NAMES, Masks
from fastrnn._cells.stages import coupled
from fastrnn._cells.variant import for_kernels, parameters, parse, spell
from fastrnn._run import variant as run_variant

T, B, IN, H = 5, 3, 4, 6


def module(case: str, dtype: torch.dtype = torch.float64, **more):
    name, options, variant = CASES[case]
    torch.manual_seed(1)
    layer = getattr(fastrnn, name)(IN, H, dtype=dtype, **options, **variant, **more)
    with torch.no_grad():
        for key, weight in layer.named_parameters():
            if "norm" in key:  # gains of one and biases of zero would hide themselves
                weight.add_(torch.rand_like(weight) - 0.5)
    return layer


def state(layer, rows: int = B, dtype: torch.dtype = torch.float64):
    states = layer.num_layers * (2 if layer.bidirectional else 1)
    h = randn(states, rows, layer.proj_size or H, dtype=dtype, seed=2)
    return (h, randn(states, rows, H, dtype=dtype, seed=3)) if layer.mode == "LSTM" else h


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn for a call, in order: (shape, mask)."""
    found, draw = [], run_variant._bernoulli

    def note(x, shape, p):
        found.append(draw(x, shape, p))
        return found[-1]

    monkeypatch.setattr(run_variant, "_bernoulli", note)
    dropped = run_variant.dropout

    def weights(w, p, training):
        found.append(dropped(torch.ones_like(w), p, training))
        return w * found[-1]

    monkeypatch.setattr(run_variant, "dropout", weights)
    return found


def by_hand(layer, case: str, x: Tensor, hx, masks: list[Tensor] | None = None):
    """y, h_n and c_n of a layer in one direction or two, step by step in numpy. masks: what training drew."""
    name, options, variant = CASES[case]
    kind = {"relu": "RELU"}.get(options.get("nonlinearity"), name)
    directions = 2 if layer.bidirectional else 1
    h0, c0 = hx if isinstance(hx, tuple) else (hx, None)
    given = list(masks or ())
    of_weights = (
        [given.pop(0) for _ in range(directions)] if variant.get("weight_dropout") and masks else None
    )
    p = variant.get("recurrent_dropout", 0)
    drop = given.pop(0).numpy() / (1 - p) if p and masks else None
    zoneout = variant.get("zoneout", 0.0)
    p_h, p_c = zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout if c0 is not None else 0.0)
    keep = [p_h, p_c]
    if masks:
        keep = [given.pop(0).numpy() if p else 0.0 for p in keep]
    assert not given
    ys, hs, cs = [], [], []
    for d in range(directions):
        suffix = "_l0_reverse" if d else "_l0"
        w = {k.removesuffix(suffix): v.detach().numpy() for k, v in layer.named_parameters()}
        w = {k: v for k, v in w.items() if "_l0" not in k}
        if of_weights:
            w["weight_hh"] = w["weight_hh"] * of_weights[d].numpy()
        h, c = h0[d].numpy(), None if c0 is None else c0[d].numpy()
        y = [None] * len(x)
        for t in reversed(range(len(x))) if d else range(len(x)):
            kept = []
            for k, size in zip(keep, (h.shape[-1], H), strict=True):
                kept.append(k if isinstance(k, float) else k[t][:, d * size : (d + 1) * size])
            h, c = step(kind, x[t].numpy(), h, c, w, variant, *kept, 1.0 if drop is None else drop[d])
            y[t] = h
        ys.append(np.stack(y))
        hs.append(h)
        cs.append(c)
    results = [np.concatenate(ys, -1), np.stack(hs)]
    return [torch.from_numpy(a) for a in (*results, *([np.stack(cs)] if c0 is not None else []))]


def flat(found) -> list[Tensor]:
    y, hx = found[:2]
    return [y, *(hx if isinstance(hx, tuple) else (hx,))]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equations(case, bias, bidirectional, drawn):
    """Outputs and last states of every variant are those of its equations, in evaluation (expectations,
    nothing dropped) and in training with the masks that it drew."""
    layer = module(case, bias=bias, bidirectional=bidirectional)
    x, hx = randn(T, B, IN, dtype=torch.float64), state(layer)
    layer.eval()
    for got, want in zip(flat(layer(x, hx)), by_hand(layer, case, x, hx), strict=True):
        assert_close(got, want, torch.float64)
    assert not drawn
    layer.train()
    found = flat(layer(x, hx))
    for got, want in zip(found, by_hand(layer, case, x, hx, list(drawn)), strict=True):
        assert_close(got, want, torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_rows(case):
    """In evaluation a row's numbers are those of its sequence alone: packed, with lengths, with resets, both
    directions, every step's states."""
    layer = module(case, bidirectional=True).eval()
    x, lengths = randn(T, B, IN, dtype=torch.float64), [5, 4, 2]
    hx = state(layer)
    y, *_ = padded = layer(x, hx, lengths=lengths)
    packed, packed_state = layer(pack_padded_sequence(x, torch.tensor(lengths)), hx)
    for got, want in zip(flat((pad_packed_sequence(packed)[0], packed_state)), flat(padded), strict=True):
        assert_close(got, want, torch.float64)
    for row, length in enumerate(lengths):
        own = slice(row, row + 1)
        one = tuple(s[:, own] for s in hx) if isinstance(hx, tuple) else hx[:, own]
        found = flat(layer(x[:length, own], one))
        assert_close(y[:length, own], found[0], torch.float64)
        for got, want in zip(flat(padded)[1:], found[1:], strict=True):
            assert_close(got[:, own], want, torch.float64)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2] = True
    y, *_, states = layer(x, hx, reset=reset, return_all_states=True)
    size = layer.proj_size or H
    assert_close(y[2:, :, :size], layer(x[2:])[0][..., :size], torch.float64)  # forward: from zero
    assert_close(y[:2, :, size:], layer(x[:2])[0][..., size:], torch.float64)  # reverse: likewise
    h = states[0] if isinstance(states, tuple) else states
    assert torch.equal(h[0], y)


@pytest.mark.parametrize("case", CASES)
def test_training_of_rows(case):
    """In training too: packed rows and padded ones, each with its masks."""
    layer = module(case, bidirectional=True).train()
    x, lengths = randn(T, B, IN, dtype=torch.float64).requires_grad_(), torch.tensor([5, 4, 2])
    for call in (lambda: layer(pack_padded_sequence(x, lengths)), lambda: layer(x, lengths=lengths)):
        torch.manual_seed(5)
        y, hx = call()
        data = y.data if hasattr(y, "data") else y
        parameters = list(layer.parameters())
        found = torch.autograd.grad(data.sum() + sum(s.sum() for s in flat((data, hx))[1:]), [x, *parameters])
        assert all(torch.isfinite(g).all() for g in found)
        assert found[0][:2].abs().sum(-1).gt(0).all()
        assert not found[0][4, 1:].any()  # of the padding


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case, monkeypatch):
    """First and second derivatives agree with finite differences, the masks being what they are."""
    layer = module(case, bidirectional=True).train()
    names = [n for n, _ in layer.named_parameters()]
    x = randn(2, 2, IN, dtype=torch.float64).requires_grad_()
    hx = tuple(s.requires_grad_() for s in flat((None, state(layer, 2)))[1:])

    def call(x, *tensors):
        torch.manual_seed(3)
        given = dict(zip(names, tensors, strict=False))
        hx = tensors[len(names) :]
        arguments = x, hx if len(hx) > 1 else hx[0]
        return tuple(flat(torch.func.functional_call(layer, given, arguments)))

    inputs = (x, *(p.detach().requires_grad_() for p in layer.parameters()), *hx)
    torch.autograd.gradcheck(call, inputs, fast_mode=True)
    torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("case", ["lstm all", "gru all", "rnn all", "lstm projected", "gru reset before"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(case, dtype):
    """Every dtype, against float64 on the same rounded numbers; half types are rounded once, at the end."""
    layer = module(case, dtype, bidirectional=True).eval()
    wide = module(case, torch.float64, bidirectional=True).eval()
    wide.load_state_dict(layer.state_dict())
    x, hx = randn(T, B, IN, dtype=dtype), state(layer, dtype=dtype)
    as_wide = tuple(s.double() for s in hx) if isinstance(hx, tuple) else hx.double()
    for got, want in zip(flat(layer(x, hx)), flat(wide(x.double(), as_wide)), strict=True):
        assert got.dtype == dtype
        assert_close(got, want, dtype)


def test_masks_are_drawn_from_torchs_generator():
    """The same seed gives the same masks, the next call others; the shares are the probabilities."""
    layer = fastrnn.LSTM(IN, 64, zoneout=(0.2, 0.7), recurrent_dropout=0.25, weight_dropout=0.5)
    x = torch.randn(50, 8, IN)

    def call(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        return layer(x)[0]

    one, other = call(4), call()
    assert torch.equal(one, call(4))
    assert not torch.equal(one, other)
    h = torch.zeros(1, 8, 64)
    masks = run_variant._masks(layer.variant, True, True, x, h, h)
    for mask, share in zip(masks, (0.2, 0.7, 0.75), strict=True):
        assert abs(mask.bool().double().mean() - share) < 0.05
    assert set(masks[2].unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # One mask a row for the whole sequence, another for each row.
    assert masks[2].shape == (1, 8, 64)
    assert not torch.equal(masks[2][0, 0], masks[2][0, 1])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_probabilities_at_their_ends(p):
    """Zoneout of 1 keeps the first state forever, dropout of 1 cuts the recurrence; of 0 the layer is
    plain."""
    torch.manual_seed(0)
    plain = fastrnn.LSTM(IN, H, dtype=torch.float64)
    x, hx = randn(T, B, IN, dtype=torch.float64), state(plain)
    kept = fastrnn.LSTM(IN, H, dtype=torch.float64, zoneout=p)
    cut = fastrnn.LSTM(IN, H, dtype=torch.float64, recurrent_dropout=p)
    for layer in (kept, cut):
        layer.load_state_dict(plain.state_dict())
    y, (h, c) = plain(x, hx)
    if not p:
        assert torch.equal(kept(x, hx)[0], y)
        assert torch.equal(cut(x, hx)[0], y)
        assert "variant" not in vars(kept)
        return
    y, (h, c) = kept(x, hx)
    assert torch.equal(y, hx[0].expand_as(y))
    assert torch.equal(h, hx[0])
    assert torch.equal(c, hx[1])
    with torch.no_grad():
        plain.weight_hh_l0.zero_()
    assert_close(cut(x, hx)[0], plain(x, hx)[0], torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_names_for_operators(case):
    """A variant's name for the operators says all of it again, and its parameters are the module's."""
    layer = module(case)
    cell, variant = NAMES[layer.mode], layer.variant
    spelling = spell(cell, variant, variant.recurrent_dropout > 0)
    read = parse(spelling)
    same = variant._replace(zoneout=(0.0, 0.0), recurrent_dropout=0.0, weight_dropout=0.0)
    assert read.card.name == cell
    assert read.variant == same
    flags = {"zoneout_h": variant.zoneout[0], "zoneout_c": variant.zoneout[1]}
    flags["recurrent_mask"] = variant.recurrent_dropout
    assert read.masks == tuple(name for name in Masks._fields if flags[name])
    sizes = parameters(cell, variant, IN, H, layer.proj_size, True)
    assert {f"{k}_l0": v for k, v in sizes.items()} == {
        k: tuple(v.shape) for k, v in layer.state_dict().items()
    }
    assert list(map(id, layer._flat_weights)) == [id(layer._parameters[f"{k}_l0"]) for k in sizes]


def test_unknown_name_for_operators():
    """A misspelt option is no plain cell."""
    x, h = torch.zeros(1, 1, 2), torch.zeros(1, 1, 3)
    with pytest.raises(ValueError, match="nrom"):
        reference.layer(x, h, h, [torch.zeros(12, 2), torch.zeros(12, 3)], cell="lstm+nrom=1", bias=False)


def test_gates_coupled_by_their_weights():
    """What devices without a kernel for coupled gates get: the plain cell with other weights, the same
    numbers."""
    layer = module("lstm coupled", proj_size=3)
    x, (h, c) = randn(T, B, IN, dtype=torch.float64), state(layer)
    weights = layer._flat_weights
    want = reference.layer(x, h, c, weights, cell="lstm+coupled", bias=True)
    told, _ = for_kernels(layer.variant, on_cpu=False, projected=True, training=True)
    assert spell("lstm", told, False) == "lstm"
    plain = [coupled(w) if i < 4 else w for i, w in enumerate(weights)]
    for got, expected in zip(reference.layer(x, h, c, plain, cell="lstm", bias=True), want, strict=True):
        assert_close(got, expected, torch.float64)
