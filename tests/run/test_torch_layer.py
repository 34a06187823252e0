"""torch's own layer as an operator, which compiled graphs have on a GPU that has proven nothing; and the
choice that leads to it, for GPUs that are not here."""

from __future__ import annotations

import pytest
import torch
from helpers import LAYERS, pair, randn
from tolerances import assert_close
from torch import nn

import fastrnn
from fastrnn import reference
from fastrnn._cells import RNN
from fastrnn._ops import cuda, library, torch_layer, torch_state
from fastrnn._plan import route
from fastrnn._plan.tuning import trust
from fastrnn._plan.tuning.kinds import Stack, of_stack
from fastrnn._run import native, rnn, wavefront

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def problem(cell: str, directions: int = 1, bias: bool = True, proj: int = 0, dtype=torch.float64):
    gates, out = RNN[cell].gates, proj or 6
    x, h = randn(5, 3, 4, dtype=dtype), randn(directions, 3, out, dtype=dtype, seed=2)
    c = randn(directions, 3, 6, dtype=dtype, seed=3) if RNN[cell].has_cell else None
    weights = []
    for d in range(directions):
        shapes = [(gates * 6, 4), (gates * 6, out), *[(gates * 6,)] * (2 * bias), *[(proj, 6)] * bool(proj)]
        weights += [randn(*s, dtype=dtype, seed=10 * d + i) / 2 for i, s in enumerate(shapes)]
    leaves = [t if t is None else t.requires_grad_() for t in (x, h, c, *weights)]
    return leaves[0], leaves[1], leaves[2], leaves[3:]


def gradients(layer, p, cell, batch_sizes=None, bias=True):
    x, h, c, weights = p
    rows = {} if batch_sizes is None else {"batch_sizes": batch_sizes}
    out = [t for t in layer(x, h, c, weights, cell=cell, bias=bias, **rows) if t is not None]
    leaves = [t for t in (x, h, c, *weights) if t is not None]
    to = [randn(*t.shape, dtype=t.dtype, seed=50 + i) for i, t in enumerate(out)]
    return [*out, *torch.autograd.grad(out, leaves, to)]


CASES = [(c, d, b, 0) for c in CELLS for d in (1, 2) for b in (True, False)] + [("lstm", 2, True, 2)]


@pytest.mark.parametrize(("cell", "directions", "bias", "proj"), CASES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_operator(cell, directions, bias, proj, packed):
    """Outputs and every gradient are the reference's, padded and packed."""
    p, sizes = problem(cell, directions, bias, proj), None
    if packed:
        sizes = torch.tensor([3, 3, 2, 1, 1])
        p = (randn(10, 4, dtype=torch.float64).requires_grad_(), *p[1:])
    got = gradients(torch_layer.layer, p, cell, sizes, bias)
    want = gradients(reference.layer, p, cell, sizes, bias)
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, torch.float64)


@pytest.mark.parametrize("cell", CELLS)
def test_the_operator_is_a_good_citizen(cell):
    """Fakes, aliases and derivative as torch's own checks want them; unused gradients are zero or absent."""
    x, h, c, weights = problem(cell)
    torch.library.opcheck(
        torch_layer.forward,
        (
            x.detach(),
            h.detach(),
            None if c is None else c.detach(),
            [w.detach() for w in weights],
            None,
            cell,
            True,
        ),
        test_utils=("test_schema", "test_faketensor"),
    )
    y, _, _ = torch_layer.layer(x, h, c, weights, cell=cell, bias=True)
    (gx,) = torch.autograd.grad(y[0].sum(), [x])
    assert not gx[1:].any()
    with torch.no_grad():
        assert not torch_layer.layer(x, h, c, weights, cell=cell, bias=True)[0].requires_grad


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_double_backward(cell):
    """What cuDNN has not: gradients of gradients."""
    x, h, c, weights = problem(cell)

    def f(x):
        return torch_layer.layer(x, h, c, weights, cell=cell, bias=True)[0]

    assert torch.autograd.gradgradcheck(f, (x,))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(cell, backend):
    """One graph, with the numbers and gradients of eager code."""
    p = problem(cell, directions=2)

    def f(x, h, c, *weights):
        return [t for t in torch_layer.layer(x, h, c, list(weights), cell=cell, bias=True) if t is not None]

    x, h, c, weights = p
    compiled = torch.compile(f, backend=backend, fullgraph=True)
    leaves = [t for t in (x, h, c, *weights) if t is not None]
    results = []
    for function in (f, compiled):
        out = function(x, h, c, *weights)
        results.append([*out, *torch.autograd.grad([t.sin().sum() for t in out], leaves)])
    for a, b in zip(*results, strict=True):
        assert_close(b, a, torch.float64)


def test_where_torch_cannot(monkeypatch):
    """A release whose layer has no such type or projection answers by an error: the reference computes."""

    def refuses(*_):
        raise RuntimeError("not implemented for this type")

    p = problem("gru")
    want = gradients(reference.layer, p, "gru")
    monkeypatch.setattr(torch._VF, "gru", refuses)
    for g, w in zip(gradients(torch_layer.layer, p, "gru"), want, strict=True):
        assert_close(g, w, torch.float64)


class OnGpu:
    """A tensor on a GPU that is not here, as far as the choice looks at one."""

    is_cuda, is_cpu, requires_grad = True, False, False
    device = torch.device("cuda", 0)

    def __init__(self, dtype=torch.float32):
        self.dtype = dtype

    def size(self, _):
        return 20


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(library, "cuda_loaded", True)
    monkeypatch.setattr(cuda, "loaded", lambda: False)  # nobody to hand things over to
    monkeypatch.setattr(trust, "_devices", {})
    return trust.device(0)


def stack(**changes) -> rnn.Stack:
    options = {"bias": True, "num_layers": 2, "dropout": 0.0, "training": True, "bidirectional": False}
    return rnn.Stack(
        "LSTM", "lstm", 70, 128, 0, **options, batch_first=False, save="gates", backend="auto"
    )._replace(**changes)


def way(x=None, rows=None, batch_sizes=None, **changes):
    return rnn._way(stack(**changes), x or OnGpu(), [OnGpu()], rows, 16, batch_sizes)


def test_unproven_layers_are_torchs(gpu):
    """By default torch's own layer on a GPU, a step at a time where torch has none for the case; the kernels
    by name, for rows that torch does not know, and for pieces that were asked for."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        found = way(OnGpu(dtype))
        assert (found.runner, found.otherwise, found.asked) == ("native", "fused", False)
    assert "not verified on this device: run `fastrnn tune`" in way().why
    assert way(proj_size=8).runner == "native"
    assert way(rows=object()).runner == "fused"
    assert way(batch_sizes=torch.ones(5, dtype=torch.int64)).runner == "native"
    for backend in ("fused", "stepwise", "one_cta", "cluster", "grid"):
        assert way(backend=backend).runner == "fused"
        assert way(backend=backend).tier == (0 if backend == "fused" else library.TIERS[backend])
    with wavefront.wavefront(4):
        assert way().runner == "fused"
    with wavefront.wavefront(1):
        assert way().runner == "native"
    assert way(OnGpu(torch.complex64)).otherwise == "reference"


def test_proven_layers_are_the_kernels(gpu):
    """All layers of a stack have to be: here one of 70 features, then one of 128; and in use as verified."""
    inference = [kind.key for kind in trust_kinds(training=False)]
    gpu.entries[inference[0]] = ("grid", "stepwise")
    assert way().runner == ("native" if len(set(inference)) > 1 else "fused")
    gpu.entries.update(dict.fromkeys(inference, ("grid", "stepwise")))
    assert way().runner == "fused"
    trained = OnGpu()
    trained.requires_grad = True
    assert way(trained).runner == "native"
    assert way(hidden_size=64).runner == "native"
    gpu.entries.update(dict.fromkeys(inference, ("torch", "torch")))
    assert "torch's own layer is as fast" in way().why
    gpu.entries.update(dict.fromkeys(inference, ("cluster_8", "stepwise")))
    gpu.quarantined["cluster"] = "it hung"
    assert "quarantine" in way().why


def trust_kinds(training: bool):
    tf32 = torch_state.rnn_tf32()
    return of_stack(Stack("lstm", 20, 16, 70, 128, 0, 1, 2, "float32", tf32, training, False))


def test_programs_leave_it_to_the_planner(gpu, monkeypatch):
    """An exported program outlives what is known now, and may hold nothing but the operators."""
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", True)
    assert way().runner == "fused"


@pytest.mark.parametrize("device", ["xpu", "mps", "cuda"])
def test_devices_without_kernels(device):
    """torch's own layer, the reference only for what torch's layers cannot."""
    lacking = route.missing(torch.float32, device, runs=False) or "no kernel"
    assert route.route("auto", lacking, device).runner == "native"
    assert route.route("auto", lacking, device).otherwise == "reference"
    assert route.route("auto", lacking, device, masked=True).runner == "reference"
    assert route.route("fused", lacking, device).runner == "none"


@pytest.mark.parametrize("name", LAYERS)
def test_where_torch_has_none_the_kernels_do(name, monkeypatch):
    """On a GPU with kernels, what torch's layer refuses is computed by them, not by the reference."""
    monkeypatch.setattr(rnn, "_way", lambda *_: route.Route("native", "not verified", otherwise="fused"))
    ours, theirs = pair(name, 4, 6, num_layers=2, bidirectional=True)
    x = randn(5, 3, 4)
    called = []
    monkeypatch.setattr(native, "_LAYERS", {k: lambda *_: called.append(1) or 1 / 0 for k in native._LAYERS})
    with pytest.raises(ZeroDivisionError):
        ours(x, randn(4, 3, 6) if name != "LSTM" else (randn(4, 3, 6), randn(4, 3, 6)))

    def refuses(*_):
        called.append(1)
        raise RuntimeError("not here")

    monkeypatch.setattr(native, "_LAYERS", dict.fromkeys(native._LAYERS, refuses))
    monkeypatch.setattr(reference, "layer", None)
    state = torch.zeros(4, 3, 6)
    got = ours(x, (state, state) if name == "LSTM" else state)[0]
    assert len(called) == 2
    assert_close(got, theirs(x)[0], torch.float32)


def test_compiled_layers_have_the_operator(monkeypatch):
    """A whole model in one graph, torch's own layers in it, dropout between them."""
    calls = []
    run = torch_layer._forward
    monkeypatch.setattr(rnn, "_way", lambda *_: route.Route("native", "not verified", otherwise="fused"))
    model = nn.Sequential(fastrnn.GRU(4, 6, num_layers=2))
    theirs = nn.GRU(4, 6, num_layers=2)
    model[0].load_state_dict(theirs.state_dict())
    x = randn(5, 3, 4)
    compiled = torch.compile(lambda t: model(t)[0], backend="aot_eager", fullgraph=True)
    with torch.profiler.profile() as found:
        got = compiled(x)
    assert_close(got, theirs(x)[0], torch.float32)
    got.sum().backward()
    theirs(x)[0].sum().backward()
    for a, b in zip(model.parameters(), theirs.parameters(), strict=True):
        assert_close(a.grad, b.grad, torch.float32, gradient=True)
    names = [e.key for e in found.key_averages()]
    assert sum("torch_layer" in n for n in names) >= 1, names
    assert run is torch_layer._forward
    assert not calls


def test_a_graph_follows_what_is_learnt(gpu, monkeypatch):
    """What was known when a graph was made is no longer so: it is made anew."""
    layer = "lstm", torch.float32, False, 128, 0, 1, False
    monkeypatch.setattr(trust, "generation", "0")

    @torch.compile(backend="eager", fullgraph=True)
    def f(x):
        return x + 1 if trust.doubt_recorded(0, *layer, trust.generation) else x - 1

    zero = torch.zeros(())
    assert f(zero) == 1
    (kind,) = of_stack(Stack("lstm", 20, 16, 128, 128, 0, 1, 1, "float32", False, False, False))
    gpu.entries[kind.key] = ("grid", "stepwise")
    trust.generation = "1"
    assert f(zero) == -1
    # Of another precision or of training nothing is known.
    assert trust.doubt_recorded(0, "lstm", torch.float16, *layer[2:], "1") == trust.UNVERIFIED
    assert trust.doubt_recorded(0, *layer[:-1], True, "1") == trust.UNVERIFIED
