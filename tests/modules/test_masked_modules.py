"""lengths, reset and return_all_states of the layers with everything else that modules do: against torch.nn
run piece by piece, in torch's transforms and modes, compiled, exported, and wrong arguments.

The kernels behind them, one layer at a time, are in test_masked.py.
"""

from __future__ import annotations

import pytest
import torch
from helpers import LAYERS, at_once, flat, pair, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import TOLERANCES, assert_close, error
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import fastrnn

IN, H = 3, 4
DOUBLE = torch.float64
LENGTHS = torch.tensor([5, 0, 2])
RESET = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]]).bool()
MASKS = {"lengths": LENGTHS, "reset": RESET}


def _piece_by_piece(module: nn.Module, x, hx, lengths: list[int], reset):
    """What a layer of torch.nn computes, called once for every sequence of every row.

    Only the first sequence of a row sees the given state, or in the reverse direction the last.
    """
    directions = 2 if module.bidirectional else 1
    outputs, finals = [], []
    for b, length in enumerate(lengths):
        state = [s[:, b] for s in hx]
        if length == 0:
            outputs.append(x.new_zeros(x.size(0), directions * (module.proj_size or module.hidden_size)))
            finals.append(state)
            continue
        starts = [0, *(t for t in range(1, length) if reset[t, b])]
        ends = [*starts[1:], length]
        parts, last = [], []
        for start, end in zip(starts, ends, strict=True):
            begin = []
            for s in state:
                s = s.clone().unflatten(0, (-1, directions))
                if start > 0 or reset[0, b]:
                    s = torch.cat([torch.zeros_like(s[:, :1]), s[:, 1:]], dim=1)
                if end < length and directions == 2:
                    s = torch.cat([s[:, :1], torch.zeros_like(s[:, 1:])], dim=1)
                begin.append(s.flatten(0, 1))
            part, end_state = module(x[start:end, b], tuple(begin) if len(begin) == 2 else begin[0])
            parts.append(part)
            last.append([s.unflatten(0, (-1, directions)) for s in flat(end_state)])
        y = torch.cat(parts)
        outputs.append(torch.cat([y, y.new_zeros(x.size(0) - length, y.size(1))]))
        # The forward direction ends in the last piece, the reverse one in the first.
        ends = [torch.cat([a[:, :1], z[:, 1:]], 1) for z, a in zip(last[0], last[-1], strict=True)]
        finals.append([s.flatten(0, 1) for s in ends])
    return [torch.stack(outputs, 1), *(torch.stack(s, 1) for s in zip(*finals, strict=True))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_against_torch_piece_by_piece(data):
    """Outputs, last states and every gradient for any lengths and resets, depth, direction and layout, with
    the kernels and with the reference."""
    name = data.draw(st.sampled_from(LAYERS))
    T, B = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 4))
    options = {
        "num_layers": data.draw(st.integers(1, 2)),
        "bidirectional": data.draw(st.booleans()),
        "bias": data.draw(st.booleans()),
    }
    if name == "LSTM":
        options["proj_size"] = data.draw(st.sampled_from([0, 2]))
    batch_first = data.draw(st.booleans())
    lengths = data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
    reset = torch.tensor(data.draw(st.lists(st.booleans(), min_size=T * B, max_size=T * B))).view(T, B)
    own = {
        "save": data.draw(st.sampled_from(["gates", "recompute"])),
        "backend": data.draw(st.sampled_from(["auto", "reference"])),
    }
    ours, theirs = pair(name, IN, H, dtype=DOUBLE, **options, **own)
    states = options["num_layers"] * (1 + options["bidirectional"])
    x = randn(T, B, IN, dtype=DOUBLE)
    hx = [randn(states, B, options.get("proj_size") or H, dtype=DOUBLE, seed=2)]
    if name == "LSTM":
        hx.append(randn(states, B, H, dtype=DOUBLE, seed=3))

    def gradients(out, module, leaves):
        loss = sum((t * randn(*t.shape, dtype=DOUBLE, seed=5 + i)).sum() for i, t in enumerate(out))
        return torch.autograd.grad(
            loss, [*leaves, *module.parameters()], allow_unused=True, materialize_grads=True
        )

    leaves = [t.clone().requires_grad_() for t in (x, *hx)]
    ours.batch_first = batch_first
    given = leaves[0].transpose(0, 1) if batch_first else leaves[0]
    form = data.draw(st.sampled_from([list, torch.tensor, lambda v: torch.tensor(v, dtype=torch.int32)]))
    y, state = ours(
        given,
        tuple(leaves[1:]) if name == "LSTM" else leaves[1],
        lengths=form(lengths),
        reset=reset.t() if batch_first else reset,
    )
    got = [y.transpose(0, 1) if batch_first else y, *flat(state)]
    found = gradients(got, ours, leaves)
    leaves = [t.clone().requires_grad_() for t in (x, *hx)]
    expected = _piece_by_piece(theirs, leaves[0], leaves[1:], lengths, reset)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(list(found), list(gradients(expected, theirs, leaves)), rtol=1e-9, atol=1e-11)


def _module(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return getattr(fastrnn, name)(IN, H, num_layers=2, bidirectional=True, dtype=DOUBLE, **options)


def _all(module: nn.Module, x, **masks) -> list[torch.Tensor]:
    """Every result of a call, states of every step included."""
    y, state, steps = module(x, return_all_states=True, **masks)
    return flat([y, state, steps])


@pytest.mark.parametrize("name", LAYERS)
def test_transforms(name):
    """Forward mode, reverse mode, hvp and vhp of autograd.functional through all results agree."""
    module, x = _module(name), randn(5, 3, IN, dtype=DOUBLE)

    def results(x):
        return torch.cat([t.flatten() for t in _all(module, x, **MASKS)])

    def f(x):
        return results(x).square().sum()

    expected = torch.autograd.functional.jacobian(results, x)
    torch.testing.assert_close(jacrev(results)(x), expected)
    torch.testing.assert_close(jacfwd(results)(x), expected)
    v = randn(5, 3, IN, dtype=DOUBLE, seed=2)
    product = torch.autograd.functional.hvp(f, x, v)[1]
    torch.testing.assert_close(torch.autograd.functional.vhp(f, x, v)[1], product)
    torch.testing.assert_close(torch.func.jvp(grad(f), (x,), (v,))[1], product)
    eps = 1e-6
    numeric = (grad(f)(x + eps * v) - grad(f)(x - eps * v)) / (2 * eps)
    torch.testing.assert_close(numeric, product, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients(name):
    """vmap over rows with their own length and resets: every row's gradients, as a loop finds them; a length
    out of range is the usual error."""
    module, x = _module(name), randn(5, 3, IN, dtype=DOUBLE)
    weights = {label: p.detach() for label, p in module.named_parameters()}

    def loss(weights, row, length, reset):
        out = functional_call(module, weights, (row,), {"lengths": length, "reset": reset})
        return sum(t.square().sum() for t in flat(out))

    run = vmap(grad(loss), in_dims=(None, 1, 0, 1))
    found = run(weights, x, LENGTHS, RESET)
    for b, length in enumerate(LENGTHS.tolist()):
        out = module(x[:, b], lengths=length, reset=RESET[:, b])
        expected = torch.autograd.grad(
            sum(t.square().sum() for t in flat(out)), list(module.parameters()), allow_unused=True
        )
        for (label, _), g in zip(module.named_parameters(), expected, strict=True):
            torch.testing.assert_close(found[label][b], torch.zeros_like(found[label][b]) if g is None else g)
    with pytest.raises(RuntimeError, match=r"lengths: expected 0 to 5 .* got 6"):
        run(weights, x, LENGTHS + 1, RESET)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_in_the_padding(name, backend):
    """NaN beyond a row's length reaches no output and no gradient: in backward, in double backward, which
    takes the reference, and in torch.func."""
    module = _module(name, backend=backend)
    x = randn(5, 3, IN, dtype=DOUBLE)
    x[torch.arange(5).unsqueeze(1) >= LENGTHS] = torch.nan
    x.requires_grad_()
    weights = dict(module.named_parameters())

    def loss(weights):
        return sum(t.pow(2).sum() for t in flat(functional_call(module, weights, (x,), {"lengths": LENGTHS})))

    inputs = (x, *weights.values())
    first = torch.autograd.grad(loss(weights), inputs)
    again = torch.autograd.grad(loss(weights), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in again), inputs)
    for found in (first, again, second, grad(loss)(weights).values()):
        assert not any(g.isnan().any() for g in found)


@pytest.mark.parametrize("name", LAYERS)
def test_modes(name):
    """inference_mode and no_grad give the same numbers; checkpointing the same gradients; deterministic
    algorithms, which fill new memory with NaN, the same bits."""
    module, x = _module(name), randn(5, 3, IN, dtype=DOUBLE)

    def gradients(call):
        module.zero_grad()
        sum(t.square().sum() for t in call(x)).backward()
        return [p.grad.clone() for p in module.parameters()]

    plain = [t.detach() for t in _all(module, x, **MASKS)]
    expected = gradients(lambda x: _all(module, x, **MASKS))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert all(torch.equal(a, b) for a, b in zip(_all(module, x, **MASKS), plain, strict=True))
    got = gradients(lambda x: checkpoint(lambda x: tuple(_all(module, x, **MASKS)), x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    torch.use_deterministic_algorithms(True)
    try:
        got = gradients(lambda x: _all(module, x, **MASKS))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in LAYERS), ("LSTM", {"proj_size": 2})], ids=str
)
def test_autocast(name, options):
    """On the CPU: the dtypes of a call without masks, float32's numbers within bfloat16, gradients in
    float32, and the last layer's states are the output."""
    ours, _ = pair(name, IN, H, 2, **options)
    x = randn(5, 3, IN)
    exact = _all(ours, x, **MASKS)
    with torch.autocast("cpu", torch.bfloat16):
        got = _all(ours, x, **MASKS)
        dtypes = [t.dtype for t in flat(ours(x))]
    assert [t.dtype for t in got[: len(dtypes)]] == dtypes
    h = got[len(dtypes)]
    assert h.dtype == got[0].dtype
    assert torch.equal(h[-1], got[0])
    for a, b in zip(got, exact, strict=True):
        assert error(a, b) <= 2 * TOLERANCES[torch.bfloat16][0]
    sum(t.float().square().sum() for t in got).backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


def test_threads():
    """Threads call one module with masks of their own at once, forward and backward: everyone's numbers are
    those of a call alone."""
    module = fastrnn.LSTM(8, 16, 2, bidirectional=True)
    jobs = []
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(9, 5, 8, generator=g)
        masks = {
            "lengths": torch.randint(0, 10, (5,), generator=g),
            "reset": torch.rand(9, 5, generator=g) < 0.3,
        }
        jobs.append((x, masks))

    def run(x, masks):
        leaf = x.clone().requires_grad_()
        out = _all(module, leaf, **masks)
        return [*out, *torch.autograd.grad(sum(t.square().sum() for t in out), leaf)]

    expected = [run(*job) for job in jobs]

    def work(i):
        assert all(torch.equal(a, b) for a, b in zip(run(*jobs[i]), expected[i], strict=True))

    at_once(len(jobs), work)


@pytest.mark.parametrize("name", LAYERS)
def test_compile(name):
    """One graph for lengths, resets and all states, with gradients; sizes may change, which compiles once
    more and then no more."""
    ours, _ = pair(name, IN, H, 2, bidirectional=True)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    for steps, rows in ((5, 3), (7, 2), (9, 4), (6, 5)):
        x = randn(steps, rows, IN, seed=steps)
        g = torch.Generator().manual_seed(steps)
        masks = {
            "lengths": torch.randint(0, steps + 1, (rows,), generator=g),
            "reset": torch.rand(steps, rows, generator=g) < 0.3,
        }
        results = []
        for module in (compiled, ours):
            ours.zero_grad()
            out = _all(module, x, **masks)
            sum(t.square().sum() for t in out).backward()
            results.append([*out, *(p.grad.clone() for p in ours.parameters())])
        for a, b in zip(*results, strict=True):
            assert_close(a, b, torch.float32, gradient=True)
    torch._dynamo.reset()
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", LAYERS)
def test_export(name):
    """torch.export with dynamic T and B, and lengths and resets among the inputs."""
    module = _module(name).eval()
    T, B = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    program = torch.export.export(
        module,
        (randn(5, 3, IN, dtype=DOUBLE),),
        dict(MASKS),
        dynamic_shapes={
            "input": {0: T, 1: B},
            "lengths": {0: B},
            "reset": {0: T, 1: B},
        },
    ).module()
    x, lengths, reset = randn(8, 2, IN, dtype=DOUBLE), torch.tensor([8, 3]), torch.zeros(8, 2).bool()
    reset[4] = True
    got = program(x, lengths=lengths, reset=reset)
    torch.testing.assert_close(flat(got), flat(module(x, lengths=lengths, reset=reset)))


DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_of_every_kind(dtype):
    """lengths and reset as any integers give what int64 and bool give; nonzero is true."""
    module, x = _module("GRU"), randn(5, 3, IN, dtype=DOUBLE)
    expected = flat(module(x, **MASKS))
    got = flat(module(x, lengths=LENGTHS.to(dtype), reset=3 * RESET.to(torch.int64).to(dtype)))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


X = randn(4, 3, IN)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"lengths": 3}, ValueError, r"one number for each of the 3 rows of the batch, got size \[1\]"),
        ({"lengths": torch.tensor(3)}, ValueError, r"one number for each of the 3 rows.*, got size \[\]"),
        ({"lengths": torch.ones(1, 3).long()}, ValueError, r"one number for each .* got size \[1, 3\]"),
        ({"lengths": []}, ValueError, r"one number for each of the 3 rows of the batch, got size \[0\]"),
        ({"lengths": [[1, 2, 3]]}, TypeError, r"lengths should be integers, got \[\[1, 2, 3\]\]"),
        ({"lengths": [1, 2.0, 3]}, TypeError, r"lengths should be integers, got \[1, 2.0, 3\]"),
        ({"lengths": [1, 2, None]}, TypeError, r"lengths should be integers, got \[1, 2, None\]"),
        ({"lengths": {1, 2, 3}}, TypeError, "lengths should be a Tensor or a list of integers, got set"),
        ({"lengths": True}, TypeError, "lengths should be a Tensor or a list of integers, got bool"),
        ({"lengths": torch.ones(3).bool()}, TypeError, "lengths should be integers, got torch.bool"),
        ({"lengths": [1, 2**70, 3]}, ValueError, "lengths should be 64-bit integers, got"),
        ({"lengths": [1, 2**62, 3]}, RuntimeError, "lengths: expected 0 to 4 .* got 4611686018427387904"),
        ({"lengths": torch.ones(3, device="meta").long()}, RuntimeError, "with values, got .* on meta"),
        ({"lengths": torch.ones(3).long().to_sparse()}, RuntimeError, "lengths should be a dense Tensor"),
        ({"reset": True}, TypeError, "reset should be a Tensor, got bool"),
        ({"reset": torch.zeros(4).bool()}, ValueError, r"reset should have size \[4, 3\], got \[4\]"),
        ({"reset": torch.zeros(4, 3, 1).bool()}, ValueError, r"reset should have size \[4, 3\], got"),
        ({"reset": torch.zeros(4, 3, dtype=torch.complex64)}, TypeError, "reset should be a mask of bool or"),
        ({"reset": torch.zeros(4, 3).bool().to_sparse()}, RuntimeError, "reset should be a dense Tensor"),
        ({"return_all_states": "no"}, TypeError, "return_all_states should be of type bool, got str"),
        ({"return_all_states": None}, TypeError, "return_all_states should be of type bool, got NoneType"),
        ({"return_all_states": torch.ones(3)}, TypeError, r"should be of type bool, got a Tensor of size"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", LAYERS)
def test_wrong_arguments(name, arguments, error, text):
    """The argument, what was expected and what came; nothing is computed."""
    with pytest.raises(error, match=text):
        getattr(fastrnn, name)(IN, H)(X, **arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"lengths": [4]}, None),
        ({"lengths": [1, 2]}, r"one number for each of the 1 rows of the batch, got size \[2\]"),
        ({"lengths": 5}, "lengths: expected 0 to 4 .* got 5"),
        ({"reset": torch.zeros(4, 1).bool()}, r"reset should have size \[4\], got \[4, 1\]"),
    ],
    ids=str,
)
def test_one_sequence(arguments, text):
    """Input (T, I): one length, resets (T,)."""
    module = fastrnn.GRU(IN, H)
    if text is None:
        assert torch.equal(module(X[:, 0], **arguments)[0], module(X[:, 0])[0])
        return
    with pytest.raises((ValueError, RuntimeError), match=text):
        module(X[:, 0], **arguments)


def test_wrong_where_masks_do_not_belong():
    """Cells have one step; positions after hx are nobody's; lengths in place of hx."""
    with pytest.raises(TypeError, match="lengths"):
        fastrnn.GRUCell(IN, H)(X[0], lengths=[1, 1, 1])
    with pytest.raises(TypeError, match="positional"):
        fastrnn.GRU(IN, H)(X, None, [4, 4, 4])
    with pytest.raises(RuntimeError, match="hx should also be 3-D but got 1-D"):
        fastrnn.GRU(IN, H)(X, torch.tensor([4, 4, 4]))


@pytest.mark.parametrize("option", ["save", "backend"])
@pytest.mark.parametrize("value", ["", "cuda", None, 1])
def test_wrong_options(option, value):
    """save and backend, in the constructor and set later, which takes effect where it is right."""
    text = rf"LSTM: {option} should be '.*' or '.*', got {value!r}"
    with pytest.raises(ValueError, match=text):
        fastrnn.LSTM(IN, H, **{option: value})
    module = fastrnn.LSTM(IN, H)
    with pytest.raises(ValueError, match=text):
        setattr(module, option, value)
    assert (module.save, module.backend) == ("gates", "auto")
    module.save, module.backend = "recompute", "reference"
    assert repr(module) == "LSTM(3, 4, save=recompute, backend=reference)"
