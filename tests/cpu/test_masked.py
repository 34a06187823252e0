"""Padded batches whose rows differ: lengths, resets, the states of every step."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import reference
from fastrnn._ops import autograd, library
from fastrnn.reference import masked_layer

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
MODULES = {
    "lstm": fastrnn.LSTM,
    "gru": fastrnn.GRU,
    "rnn_tanh": fastrnn.RNN,
}


def problem(cell, T, B, inputs, H, *, P=0, D=1, bias=True, dtype=torch.float64, seed=0):
    """x, h0, c0 and weights of a layer."""
    g = torch.Generator().manual_seed(seed)

    def randn(*sizes):
        return (torch.randn(*sizes, generator=g, dtype=torch.float64) * 0.5).to(dtype)

    G, out = GATES[cell], P or H
    weights = []
    for _ in range(D):
        weights += [randn(G * H, inputs), randn(G * H, out)]
        weights += [randn(G * H), randn(G * H)] if bias else []
        weights += [randn(P, H)] if P else []
    c0 = randn(D, B, H) if cell == "lstm" else None
    return randn(T, B, inputs), randn(D, B, out), c0, weights


def results(function, inputs, seed, **options):
    """Results and the gradients of a random combination of them."""
    x, h0, c0, weights = inputs
    leaves = [t if t is None else t.clone().requires_grad_() for t in (x, h0, c0, *weights)]
    out = function(*leaves[:3], leaves[3:], **options)
    g = torch.Generator().manual_seed(seed)
    out = [t for t in out if t is not None]
    loss = sum((t.double() * torch.randn(t.shape, generator=g, dtype=torch.float64)).sum() for t in out)
    loss.backward()
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves if t is not None]
    return [*(t.detach() for t in out), *grads]


def fused(*args, save="gates", **options):
    return autograd.layer(*args, save=save, keep_cells=True, **options)


@pytest.fixture
def restore_isa():
    name, threads = library.cpu_isa(), torch.get_num_threads()
    yield
    library.set_cpu_isa(name)
    torch.set_num_threads(threads)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6))
def test_kernels_against_the_reference(seed):
    """Every output and gradient, for random cells, sizes, lengths, resets, threads and instruction sets."""
    choose = random.Random(seed)
    isa, threads = library.cpu_isa(), torch.get_num_threads()
    cell, H = choose.choice(list(GATES)), choose.choice([1, 3, 16, 17, 40])
    T, B = choose.choice([1, 2, 3, 7, 20]), choose.choice([0, 1, 2, 5, 13, 33])
    P = choose.choice([0, 1, 5]) if cell == "lstm" and H > 5 else 0
    inputs = problem(
        cell,
        T,
        B,
        choose.choice([1, 5, 16]),
        H,
        P=P,
        D=choose.choice([1, 2]),
        bias=(bias := choose.random() < 0.8),
        seed=seed,
    )
    g = torch.Generator().manual_seed(seed)
    longest = choose.choice([T, T, 1, 0])
    lengths = torch.randint(0, longest + 1, (B,), generator=g) if choose.random() < 0.7 else None
    reset = torch.rand(T, B, generator=g) < 0.3 if choose.random() < 0.7 else None
    options = {"cell": cell, "bias": bias, "lengths": lengths, "reset": reset}
    try:
        library.set_cpu_isa(choose.choice(library.available_cpu_isas()))
        torch.set_num_threads(choose.choice([1, 2, 3]))
        got = results(fused, inputs, seed, save=choose.choice(["gates", "recompute"]), **options)
    finally:
        library.set_cpu_isa(isa)
        torch.set_num_threads(threads)
    expected = results(masked_layer, inputs, seed, **options)
    for a, b in zip(got, expected, strict=True):
        # Beside the tensor's largest element: gradients of a sequence that grows reach thousands, and a small
        # one among them is what is left of sums of such.
        scale = max(1.0, b.abs().max().item()) if b is not None and b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * scale)


def test_rows_much_shorter_than_the_batch():
    """Chunks of steps in which no row runs: their gradients are zeros and not whatever memory held."""
    inputs = problem("gru", 900, 3, 4, 5)
    options = {"cell": "gru", "bias": True, "lengths": torch.tensor([2, 0, 5]), "reset": None}
    for a, b in zip(
        results(fused, inputs, 1, **options), results(masked_layer, inputs, 1, **options), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_dtypes(cell, dtype):
    """Other dtypes stay as close to float64 as without masks."""
    inputs = problem(cell, 9, 5, 8, 20, dtype=dtype)
    exact = tuple(
        [w.double() for w in t] if isinstance(t, list) else None if t is None else t.double() for t in inputs
    )
    lengths, reset = torch.tensor([9, 3, 0, 7, 1]), torch.rand(9, 5) < 0.3
    options = {"cell": cell, "bias": True, "lengths": lengths, "reset": reset}
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2 if dtype == torch.bfloat16 else 4e-3
    for a, b in zip(
        results(fused, inputs, 1, **options), results(masked_layer, exact, 1, **options), strict=True
    ):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_are_packing_without_packing(name, batch_first):
    """Unsorted lengths give what torch.nn gives for the packed batch, two layers and directions deep."""
    torch.manual_seed(0)
    kwargs = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    ours = MODULES[name](6, 9, **kwargs).double()
    theirs = getattr(torch.nn, ours._name)(6, 9, **kwargs).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 7, 6).double() if batch_first else torch.randn(7, 4, 6).double()
    lengths = torch.tensor([3, 7, 1, 5], dtype=torch.int32)
    y, h = ours(x, lengths=lengths)
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    expected, expected_h = theirs(packed)
    expected = pad_packed_sequence(expected, batch_first=batch_first)[0]
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(h, expected_h, rtol=1e-10, atol=1e-12)
    assert torch.equal(y, ours(x, lengths=lengths.tolist())[0])


def test_a_row_without_steps_keeps_its_state():
    """Length 0: no output, and h_n and c_n are hx, through which the gradient passes."""
    lstm = fastrnn.LSTM(3, 4)
    x, h, c = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    h.requires_grad_(), c.requires_grad_()
    y, (hn, cn) = lstm(x, (h, c), lengths=[0, 5])
    assert torch.equal(hn[:, 0], h[:, 0])
    assert torch.equal(cn[:, 0], c[:, 0])
    assert not y[:, 0].any()
    gh, gc = torch.autograd.grad(hn[:, 0].sum() + 2 * cn[:, 0].sum(), (h, c))
    assert torch.equal(gh[:, 0], torch.ones(1, 4))
    assert torch.equal(gc[:, 0], torch.full((1, 4), 2.0))
    assert not gh[:, 1].any()


@pytest.mark.parametrize("name", MODULES)
def test_a_reset_begins_a_new_sequence(name):
    """One call with a reset is two calls, in both directions; a reset at step 0 drops hx."""
    torch.manual_seed(0)
    layer = MODULES[name](3, 5, bidirectional=True).double()
    x = torch.randn(8, 2, 3).double()
    reset = torch.zeros(8, 2, dtype=torch.bool)
    reset[3] = True
    whole, _ = layer(x, reset=reset)
    parts = torch.cat([layer(x[:3])[0], layer(x[3:])[0]])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)

    one_way = MODULES[name](3, 5).double()
    hx = torch.randn(1, 2, 5).double()
    first = torch.zeros(8, 2, dtype=torch.int64)
    first[0] = 1
    given = (hx, hx) if name == "lstm" else hx
    torch.testing.assert_close(one_way(x, given, reset=first)[0], one_way(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
def test_states_of_every_step(layers, batch_first):
    """They are those of calls that end at each step, and the last ones are h_n and c_n; gradients flow."""
    torch.manual_seed(0)
    lstm = fastrnn.LSTM(3, 4, num_layers=layers, batch_first=batch_first).double()
    x = torch.randn(2, 6, 3).double()
    x = (x if batch_first else x.transpose(0, 1)).requires_grad_()
    y, (hn, cn), (h, c) = lstm(x, return_all_states=True)
    time = 2 if batch_first else 1
    assert torch.equal(h[-1], y)
    torch.testing.assert_close(c.select(time, 5), cn, rtol=0, atol=1e-12)
    torch.testing.assert_close(h.select(time, 5), hn, rtol=0, atol=1e-12)
    start = x.narrow(time - 1, 0, 3)
    torch.testing.assert_close(c.select(time, 2), lstm(start)[1][1], rtol=0, atol=1e-12)
    (got,) = torch.autograd.grad(c.select(time, 2).square().sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad(lstm(start)[1][1].square().sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(lstm(x, return_all_states=True)[2][1], c)


def test_unbatched_input():
    """One sequence: a number as its length, (T,) as its resets."""
    gru = fastrnn.GRU(3, 4)
    x, reset = torch.randn(5, 3), torch.tensor([0, 0, 1, 0, 0])
    y, h, states = gru(x, lengths=4, reset=reset, return_all_states=True)
    expected, last, _ = gru(x.unsqueeze(1), lengths=[4], reset=reset.unsqueeze(1), return_all_states=True)
    assert torch.equal(y, expected.squeeze(1))
    assert torch.equal(h, last.squeeze(1))
    assert torch.equal(states[-1], y)


@pytest.mark.parametrize("cell", GATES)
def test_gradients(cell):
    """First and second derivatives in float64."""
    x, h0, c0, weights = problem(cell, 4, 3, 2, 3, D=2)
    lengths, reset = (
        torch.tensor([4, 0, 2]),
        torch.tensor([[0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 0, 0]]).bool(),
    )

    def run(x, h0, *rest):
        c0, ws = (rest[0], rest[1:]) if cell == "lstm" else (None, rest)
        out = autograd.layer(
            x, h0, c0, list(ws), cell=cell, bias=True, lengths=lengths, reset=reset, keep_cells=True
        )
        return tuple(t for t in out if t is not None)

    inputs = [t.requires_grad_() for t in (x, h0, c0, *weights) if t is not None]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_cells_of_packed_rows():
    """Every step's c of packed rows, and its gradient: as the reference's."""
    _, _, _, weights = problem("lstm", 1, 1, 4, 5)
    sizes = torch.tensor([3, 2, 2, 1])
    x, h0, c0 = (torch.randn(*n, dtype=torch.float64) for n in ((8, 4), (1, 3, 5), (1, 3, 5)))
    leaves = [t.requires_grad_() for t in (x, h0, c0, *weights)]
    found = []
    for layer in (autograd.layer, reference.layer):
        torch.manual_seed(1)
        out = layer(x, h0, c0, weights, cell="lstm", bias=True, batch_sizes=sizes, keep_cells=True)
        assert out[3].shape == (1, 8, 5)
        loss = sum((t * torch.randn_like(t)).sum() for t in out)
        found.append([*out, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_opcheck():
    """Schemas, fake implementations and dispatch of the operators with lengths and resets."""
    x, h0, c0, weights = problem("lstm", 3, 2, 4, 5, dtype=torch.float32)
    lengths, reset = torch.tensor([3, 1]), torch.tensor([[0, 1], [0, 0], [1, 0]]).bool()
    args = (x, h0, c0, weights, None, lengths, reset, "lstm", True, 1)
    torch.library.opcheck(library.forward, args)
    y, hn, cn, gates, cells = library.forward(*args)
    grads = (torch.randn_like(y), torch.randn_like(hn), torch.randn_like(cn), torch.randn_like(cells))
    torch.library.opcheck(
        library.backward,
        (*grads, x, h0, c0, weights, None, lengths, reset, y, gates, cells, "lstm", True, 15),
    )


def test_compile():
    """Lengths and resets in a full graph, forward and backward, for changing sizes."""
    torch.manual_seed(0)
    gru = fastrnn.GRU(3, 4, bidirectional=True)
    compiled = torch.compile(gru, fullgraph=True, backend="aot_eager", dynamic=True)
    for T, B in ((5, 3), (7, 2)):
        x, lengths, reset = torch.randn(T, B, 3), torch.randint(0, T + 1, (B,)), torch.rand(T, B) < 0.3
        y, h = compiled(x, lengths=lengths, reset=reset)
        expected, expected_h = gru(x, lengths=lengths, reset=reset)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(h, expected_h)
        (y.sum() + h.sum()).backward()


@pytest.mark.skipif(not library.cuda_loaded, reason="built without CUDA kernels")
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("backend", ["auto", "fused", "one_cta", "grid", "stepwise"])
def test_cuda_inputs_take_the_fused_ops(name, backend):
    """Without a GPU, on fake tensors: forward and backward are the fused ops, with the tier that was asked
    for, for lengths on either device, and their results have the devices and shapes of a module's."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "fastrnn" and "rnn_" in func._schema.name:
                seen.append((func._schema.name, args[-1] & 48))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode():
        layer = MODULES[name](3, 4, bidirectional=True, backend=backend, device="cuda")
        x = torch.empty(6, 2, 3, device="cuda", requires_grad=True)
        reset = torch.empty(6, 2, dtype=torch.bool, device="cuda")
        for lengths in (torch.empty(2, dtype=torch.int64), torch.empty(2, dtype=torch.int32, device="cuda")):
            with Watch():
                y, _, states = layer(x, lengths=lengths, reset=reset, return_all_states=True)
                with torch.no_grad():  # the node itself: the engine looks for the GPU
                    results = 4 if name == "lstm" else 3
                    grads = y.grad_fn.apply(torch.ones_like(y), *[None] * (results - 1))
                    grad_x = next(g for g in grads if g is not None)
            h, *c = states if name == "lstm" else (states,)
            assert [t.shape for t in (h, *c)] == [(1, 6, 2, 8)] * (1 + (name == "lstm"))
            assert grad_x.shape == x.shape
            assert {t.device.type for t in (y, h, *c, grad_x)} == {"cuda"}
    tier = library.TIERS.get(backend, 0)
    # Whoever watches operators gets backward in the form without a list.
    passes = ["fastrnn::rnn_forward", "fastrnn::rnn_backward_unlisted"]
    assert seen == [(op, tier) for op in passes] * 2


def test_a_tier_is_not_for_the_cpu():
    """As without masks."""
    with pytest.raises(
        RuntimeError, match="backend='grid': a tier of the CUDA kernels, and the input is on the"
    ):
        fastrnn.GRU(2, 3, backend="grid")(X, lengths=[4, 2, 1])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_explain(device, monkeypatch):
    """Masked layers run the same kernels, and explain says so. On a GPU where nothing is proven plain layers
    are torch's own, which has no masks: there asked for by name."""
    monkeypatch.setattr(library, "cuda_loaded", True)
    shape = (100, 16, 64, 64)
    backend = {"cpu": "auto", "cuda": "stepwise"}[device]
    plain, masked = (fastrnn.explain(shape, device=device, masked=m, backend=backend) for m in (False, True))
    assert masked.kernels == plain.kernels
    assert "masked: the same kernels" in str(masked)


X = torch.zeros(4, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"lengths": torch.tensor([1, 2])}, ValueError, r"lengths should have one number for each of the 3"),
        ({"lengths": torch.tensor([1.0, 2, 3])}, TypeError, "lengths should be integers, got torch.float32"),
        ({"lengths": [1, 2, float("nan")]}, TypeError, "lengths should be integers"),
        ({"lengths": torch.tensor([1, 2, 5])}, RuntimeError, "lengths: expected 0 to 4 .* got 5"),
        ({"lengths": torch.tensor([1, -1, 4])}, RuntimeError, "lengths: expected 0 to 4 .* got -1"),
        ({"lengths": "abc"}, TypeError, "lengths should be a Tensor or a list of integers"),
        ({"lengths": [True, True, False]}, TypeError, "lengths should be integers"),
        ({"reset": torch.zeros(3, 4)}, TypeError, "reset should be a mask of bool or integers"),
        ({"reset": torch.zeros(3, 4, dtype=torch.bool)}, ValueError, r"reset should have size \[4, 3\]"),
        ({"reset": [0, 1]}, TypeError, "reset should be a Tensor, got a list"),
        (
            {"reset": torch.zeros(4, 3, dtype=torch.bool, device="meta")},
            RuntimeError,
            "reset should be on the",
        ),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_errors(arguments, error, text, backend):
    """What a caller may get wrong: one clear error, the same from the kernels and the reference."""
    with pytest.raises(error, match=text):
        fastrnn.GRU(2, 3, backend=backend)(X, **arguments)


def test_not_with_packed_sequences():
    """A PackedSequence has its lengths already."""
    packed = pack_padded_sequence(X, [4, 2, 1])
    for arguments in ({"lengths": [4, 2, 1]}, {"reset": torch.zeros(4, 3)}, {"return_all_states": True}):
        with pytest.raises(ValueError, match="belong to padded input"):
            fastrnn.LSTM(2, 3)(packed, **arguments)


def test_other_backends():
    """torch's own layers know neither; and nothing else takes their place in silence."""
    with pytest.raises(RuntimeError, match="backend='cudnn': it does not cover lengths"):
        fastrnn.GRU(2, 3, backend="cudnn")(X, lengths=[4, 2, 1])
    complex_x = X.to(torch.complex64)
    layer = fastrnn.GRU(2, 3, dtype=torch.complex64)
    assert layer(complex_x, lengths=[4, 2, 1])[0].dtype == torch.complex64
