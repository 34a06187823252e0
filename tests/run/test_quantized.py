"""Weights of bfloat16 and int8: the kernels against their arithmetic written out, against float32 by bounds
that follow from it, and streamers on such weights."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from quantized_cases import CASES, WEIGHTS, make, run
from streaming_cases import close, flat, walk

import fastrnn
from fastrnn._ops import library, quantized


@pytest.fixture(params=[True, False], ids=["dot", "no_dot"])
def dot(request):
    """int8 products with the processor's instruction for them, where it has one, and without."""
    library.int8_dot(request.param)
    yield request.param
    library.int8_dot(True)


def near(actual, expected, steps=1):
    """Equal to float32's rounding, most of them. What lies half-way between two numbers of int8 may go to
    either, which changes its row by the size of such a step, and what the steps after it make of that."""
    for a, e in zip(flat(actual), flat(expected), strict=True):
        assert a.shape == e.shape
        difference, largest = (a - e).abs(), max(1, float(e.abs().max()))
        assert difference.max() < (3e-3 if steps < 5 else 1.5e-2) * largest
        if steps < 5:
            assert difference.median() < 1e-6 * largest


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("name", "inputs", "hidden", "options"), CASES)
@torch.no_grad()
def test_kernels_compute_what_is_written_out(isa, dot, name, inputs, hidden, options, weights):
    """Every cell, layers and directions, projections, from a state and from none: what torch computes of the
    stored weights, with the left operands quantized a row at a time."""
    layer = make(name, inputs, hidden, **options)
    made = fastrnn.quantize(layer, weights)
    states = layer.num_layers * (2 if layer.bidirectional else 1)
    for T, B in ((1, 1), (1, 9), (3, 3), (4, 5), (40, 2)):
        x = torch.randn(T, B, inputs)
        h = torch.randn(states, B, layer.proj_size or hidden).tanh()
        given = (h, torch.randn(states, B, hidden)) if name == "LSTM" else h
        for hx in (None, given):
            expected, state = run(layer, weights, x, hx)
            y, last = made(x.transpose(0, 1) if layer.batch_first else x, hx)
            near(y.transpose(0, 1) if layer.batch_first else y, expected, T)
            near(last, state, T)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@torch.no_grad()
def test_instruction_sets_agree(name):
    """Sums of int8 are exact, so all instruction sets, with and without an instruction for them, differ by
    the rounding of float32 alone; and they read the very same bytes."""
    layer = make(name, 40, 72)
    made, x, results = fastrnn.quantize(layer), torch.randn(3, 4, 40), []
    before = library.cpu_isa()
    try:
        for isa in library.available_cpu_isas():
            library.set_cpu_isa(isa)
            for use in (True, False):
                library.int8_dot(use)
                results.append(made(x)[0])
    finally:
        library.set_cpu_isa(before)
        library.int8_dot(True)
    for other in results[1:]:
        near(other, results[0])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@torch.no_grad()
def test_error_of_a_step_is_within_its_bound(isa, name, weights):
    """One step from a given state against float32: no pre-activation is further off than half a step of each
    quantized number allows, and an activation's slope is at most 1 (of a sigmoid 1/4)."""
    layer, B = make(name, 50, 80), 4
    x, h = torch.randn(B, 50) * 3, torch.randn(1, B, 80).tanh()
    state = (h, torch.randn(1, B, 80)) if name == "LSTM" else h
    y, _ = layer.step(x, state)
    found, _ = layer.streamer(weights=weights).step(x, state)

    def product_error(a, w):
        stored = quantized.store("", "w", w.detach(), weights)
        of_weights = a.abs() @ (stored.float() - w).abs().T
        if weights == "bfloat16":
            assert (stored.float() - w).abs().max() <= w.abs().max() * 2**-8
            return of_weights
        assert ((stored.float() - w).abs() <= stored.scale[:, None] * 0.5001).all()
        of_rows = a.abs().amax(-1, keepdim=True) / 127 * 0.5001 * stored.float().abs().sum(1)
        return of_weights + of_rows

    pre = product_error(x, layer.weight_ih_l0) + product_error(h[0], layer.weight_hh_l0)
    if name == "LSTM":
        i, f, g, o = pre.chunk(4, -1)
        bound = o / 4 + (i / 4 + g + state[1][0].abs() * f / 4)
    elif name == "GRU":
        r, z, n = pre.chunk(3, -1)
        rec = h[0].abs() @ layer.weight_hh_l0[-80:].abs().T + layer.bias_hh_l0[-80:].abs()
        bound = z / 4 * 2 + n + r / 4 * (rec + n)
    else:
        bound = pre
    assert ((found - y).abs() <= bound + 1e-5).all()
    assert (found != y).any()
    # And the bound says something.
    assert bound.mean() < (0.5 if weights == "int8" else 0.2)


@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_errors_over_a_sequence(isa, weights):
    """Over 200 steps errors do not pile up: they stay those of the first steps, for layers of 128 units 3e-2
    of int8 and 6e-3 of bfloat16 at most, a tenth of that on average."""
    most = {"int8": 3e-2, "bfloat16": 6e-3}[weights]
    for name in ("LSTM", "GRU", "RNN"):
        layer = make(name, 64, 128)
        x = torch.randn(200, 2, 64)
        difference = (fastrnn.quantize(layer, weights)(x)[0] - layer(x)[0]).abs()
        assert difference.max() < most, name
        assert difference.mean() < most / 5, name
        assert difference[100:].mean() < 1.5 * difference[:100].mean() + 1e-4


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"proj_size": 5, "num_layers": 3, "batch_first": True}),
        ("GRU", {"num_layers": 2}),
        ("RNN", {"nonlinearity": "relu", "bias": False}),
    ],
)
@torch.no_grad()
def test_streamer_equals_the_quantized_layer(isa, name, options, weights):
    """Steps, chunks and the whole sequence are the same numbers, batched and for one sequence."""
    layer = make(name, 7, 33, **options)
    stream, made = layer.streamer(weights=weights), fastrnn.quantize(layer, weights)
    time = int(layer.batch_first)
    x = torch.randn(6, 3, 7).transpose(0, time)
    y, last = made(x)
    got, end = walk(stream.step, x, None, time)
    close(got, y, 1e-6)
    close(end, last, 1e-6)
    outputs, at = [], None
    for chunk in x.split([1, 3, 2], time):
        part, at = stream(chunk, at)
        outputs.append(part)
    close(torch.cat(outputs, time), y, 1e-6)
    close(at, last, 1e-6)
    one = x.select(1 - time, 1)
    got, end = walk(stream.step, one, None, 0)
    close(got, made(one)[0], 1e-6)
    close(end, made(one)[1], 1e-6)
    assert f"weights={weights!r}" in repr(stream)


@torch.no_grad()
def test_streamer_follows_the_rules_of_streamers():
    """Changed weights are an error until refresh(), which quantizes the new ones; copies and pickles keep the
    kind of weights."""
    layer, x = make("LSTM", 5, 16), torch.randn(2, 5)
    stream = layer.streamer(weights="int8")
    y, _ = stream.step(x)
    layer.weight_hh_l0.mul_(1.5)
    with pytest.raises(RuntimeError, match=r"weight_hh_l0 has changed .* refresh\(\)"):
        stream.step(x)
    h = torch.ones(1, 2, 16)
    stream.refresh()
    assert not torch.equal(stream.step(x, (h, h))[0], y)
    for other in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert other.weights == "int8"
        assert torch.equal(other.step(x, (h, h))[0], stream.step(x, (h, h))[0])
    kept = io.BytesIO()
    torch.save(stream, kept)
    kept.seek(0)
    assert torch.load(kept, weights_only=False).weights == "int8"
    old = fastrnn.Streamer.__new__(fastrnn.Streamer)
    old.__setstate__({"layer": layer})  # of before there were others
    assert old.weights == "float32"


@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_numbers_that_are_none(isa, dot, weights):
    """NaN and infinity in a row's input or state make its output NaN where float32's would not be a number,
    and never touch another row; huge, tiny and zero inputs are numbers like others."""
    layer = make("LSTM", 6, 20)
    made = fastrnn.quantize(layer, weights)
    x = torch.randn(4, 5, 6)
    clean = made(x)[0]
    for bad in (float("nan"), float("inf"), -float("inf")):
        spoilt = x.clone()
        spoilt[1, 2, 3] = bad
        y = made(spoilt)[0]
        if bad != bad or weights == "int8":
            assert y[1:, 2].isnan().all()
        others = [0, 1, 3, 4]
        assert torch.equal(y[:, others], clean[:, others])
        assert torch.equal(y[0], clean[0])
    for factor in (0.0, 1e-38, 1e-44, 1e20, 3e38):
        y = made(torch.full((3, 2, 6), factor))[0]
        assert y.isfinite().all()
    if weights == "int8":  # x = 1e20 saturates gates as in float32
        close(made(torch.full((1, 1, 6), 1e20))[0], layer(torch.full((1, 1, 6), 1e20))[0], 2e-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("which", ["weight_ih_l0", "weight_hh_l1", "bias_hh_l1", "weight_hr_l0"])
def test_weights_that_are_not_finite(bad, weights, which):
    """One clear error, which names the weight and what is in it."""
    layer = make("LSTM", 5, 12, num_layers=2, proj_size=4)
    with torch.no_grad():
        getattr(layer, which).view(-1)[3] = bad
    what = "NaN" if bad != bad else "infinity"
    match = rf"LSTM: {which} cannot be quantized: expected finite weights, got {what}"
    for attempt in (lambda: layer.streamer(weights=weights), lambda: fastrnn.quantize(layer, weights)):
        with pytest.raises(ValueError, match=match):
            attempt()


def test_scales_that_overflow():
    """Weights that float32 holds and their stored form does not are named, too; rows of zeros and of the
    smallest numbers are stored as what they are."""
    layer = make("GRU", 5, 12)
    with torch.no_grad():
        layer.weight_hh_l0[2, 3] = torch.finfo(torch.float32).max
    match = r"GRU: weight_hh_l0 cannot be stored as bfloat16: expected magnitudes below"
    with pytest.raises(ValueError, match=match):
        layer.streamer(weights="bfloat16")
    # 127 times a 127th of it rounds to infinity.
    with pytest.raises(ValueError, match=r"GRU: weight_hh_l0 cannot be stored as int8: its scale overflows"):
        layer.streamer(weights="int8")
    stored = torch.zeros(2, 4)
    stored[1] = 1e-44
    small = quantized.store("GRU", "w", stored, "int8").float()
    torch.testing.assert_close(small, stored, rtol=0, atol=1e-44)


def test_wrong_arguments():
    """Each names the argument, what was expected and what came."""
    layer = make("LSTM", 5, 12)
    with pytest.raises(ValueError, match=r"weights should be 'float32', 'bfloat16' or 'int8', got 'int4'"):
        layer.streamer(weights="int4")
    with pytest.raises(
        ValueError, match=r"weights should be 'float32', 'bfloat16' or 'int8', got torch.int8"
    ):
        layer.streamer(weights=torch.int8)
    with pytest.raises(
        RuntimeError, match=r"weights='int8' needs float32 weights on the CPU, got torch.float64 on cpu"
    ):
        make("LSTM", 5, 12).double().streamer(weights="int8")
    with pytest.raises(RuntimeError, match=r"weights='bfloat16' needs a layer without a variant's options"):
        fastrnn.LSTM(5, 12, peephole=True).streamer(weights="bfloat16")
    with torch.inference_mode():
        uncounted = fastrnn.LSTM(5, 12)
    with pytest.raises(RuntimeError, match=r"weights='int8' needs weights that were not made under"):
        uncounted.streamer(weights="int8")
    with pytest.raises(
        ValueError, match=r"cannot be stored as int8: expected at most 65536 columns, got 65537"
    ):
        fastrnn.RNN(65537, 1).streamer(weights="int8")


def test_explain_says_what_the_weights_are():
    """explain() of a streamer, of a quantized layer and of a layer with weights=: kernel, bytes and the error
    of the weights, which is that of the stored ones."""
    layer = make("LSTM", 20, 40, num_layers=2)
    plain = fastrnn.explain(layer, (1, 1), training=False)
    for weights, ratio, most in (("bfloat16", 2, 4e-3), ("int8", 4, 1e-2)):
        made = fastrnn.quantize(layer, weights)
        for found in (
            fastrnn.explain(layer.streamer(weights=weights)),
            fastrnn.explain(made, (1, 1)),
            fastrnn.explain(layer, (1, 1), weights=weights),
        ):
            assert found.kernels == [weights] * 2
            assert not found.training
            for own, of_plain in zip(found.layers, plain.layers, strict=True):
                assert own.plan["weight_bytes"] * ratio == of_plain.plan["weight_bytes"]
                assert 1e-4 < own.error < most
            assert "the weights differ from float32's by 0." in str(found)
        stored = [
            quantized.store("", n, getattr(layer, n).detach(), weights).float()
            for n in layer._all_weights[0][:2]
        ]
        own = [getattr(layer, n).detach() for n in layer._all_weights[0][:2]]
        lost = sum((s - w).square().sum() for s, w in zip(stored, own, strict=True))
        expected = (lost / sum(w.square().sum() for w in own)).sqrt()
        assert found.layers[0].error == pytest.approx(float(expected), rel=1e-4)
    assert fastrnn.explain((1, 1, 20, 40), weights="int8").kernels == ["int8"]
    assert fastrnn.explain(layer.streamer()).layers[0].error is None
    with pytest.raises(ValueError, match="weights: expected 'int8', those of the module, got 'bfloat16'"):
        fastrnn.explain(fastrnn.quantize(layer), weights="bfloat16")
    with pytest.raises(ValueError, match="weights"):
        fastrnn.explain(layer, weights="int8", training=True)
    with pytest.raises(ValueError, match="weights: expected 'float32'"):
        fastrnn.explain(fastrnn.SRU(5, 6), weights="int8")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("name", "inputs", "hidden", "options"),
    [("LSTM", 290, 305, {}), ("GRU", 40, 500, {"num_layers": 2}), ("LSTM", 310, 300, {"proj_size": 90})],
)
@torch.no_grad()
def test_steps_by_turns_from_either_end(isa, threads, name, inputs, hidden, options, weights):
    """Large weights are read from the first unit to the last and back, by turns, one step after the other:
    each gives the bits of the first, and of a sequence's first step to rounding."""
    layer = make(name, inputs, hidden, **options)
    stream = layer.streamer(weights)
    for count, rows in ((1, 1), (2, 3)):
        threads(count)
        x = torch.randn(rows, inputs)
        h = torch.randn(layer.num_layers, rows, layer.proj_size or hidden)
        hx = (h, torch.randn(layer.num_layers, rows, hidden)) if name == "LSTM" else h
        y, state = stream.step(x, hx)
        for _ in range(2):
            again, end = stream.step(x, hx)
            assert torch.equal(again, y)
            assert all(torch.equal(a, b) for a, b in zip(flat(end), flat(state), strict=True))
        near(stream(torch.stack([x, x]), hx)[0][0], y)


@pytest.mark.parametrize("D", [1, 2])
@torch.no_grad()
def test_on_several_threads(threads, D):
    """The same numbers on one thread and on more, of layers that are large enough to be shared out."""
    layer = make("LSTM", 200, 600, bidirectional=D == 2)
    x = torch.randn(12, 3, 200)
    for weights in WEIGHTS:
        made = fastrnn.quantize(layer, weights)
        threads(1)
        y, state = made(x)
        for count in (2, 3, 8):
            threads(count)
            got, end = made(x)
            assert torch.equal(got, y)
            assert all(torch.equal(a, b) for a, b in zip(end, state, strict=True))
