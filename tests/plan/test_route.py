"""Who computes a layer: fastrnn.explain says what a call does, because both ask the same function."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import explain, functional, reference
from fastrnn._cells import Variant
from fastrnn._checks import BACKENDS
from fastrnn._ops import autograd, library
from fastrnn._plan import route
from fastrnn._run import native, quick
from fastrnn._run import scan as run_scan


@pytest.fixture
def ran(monkeypatch):
    """What computed a layer, in the words of explain: a list that calls add to, the first to answer last."""
    calls = []

    def noted(module, name, kernel):
        function = getattr(module, name)

        def note(*args, **kwargs):
            found = function(*args, **kwargs)
            if found is not None:
                calls.append(kernel)
            return found

        monkeypatch.setattr(module, name, note)

    noted(autograd, "layer", "fused")
    noted(autograd, "step", "fused")
    noted(reference, "layer", "reference")
    noted(native, "layers", "cudnn")
    noted(native, "cell", "cudnn")
    noted(autograd, "scan", "scan")
    noted(reference, "sru_scan", "reference")
    noted(run_scan, "step", "step")
    noted(quick, "_forward", "fused")
    noted(quick, "_inference", "fused")
    return calls


def _said(found) -> str:
    (kernel,) = set(found.kernels)
    return "fused" if kernel in ("direct", "packed") else kernel


def _did(ran: list, call) -> str:
    ran.clear()
    try:
        call()
    except RuntimeError:
        return "none"
    (kernel,) = set(ran)
    return kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("rows", ["full", "packed", "masked"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layers(ran, backend, rows, dtype):
    """Every backend, dtype and kind of rows: the kernel that explain names is the one that ran, and where it
    names none the call is an error with the text that explain gives as its reason."""
    module = fastrnn.GRU(3, 4, num_layers=2, backend=backend, dtype=dtype)
    x = torch.ones(2, 2, 3, dtype=dtype)
    if rows == "packed":
        x = pack_sequence(list(x.transpose(0, 1)))
    options = {"lengths": [2, 1]} if rows == "masked" else {}
    found = explain(module, x, masked=rows == "masked")
    assert _said(found) == _did(ran, lambda: module(x, **options))
    if _said(found) == "none":
        with pytest.raises(RuntimeError) as error:
            module(x, **options)
        assert str(error.value) in found.layers[0].reason


def test_cudnn_has_no_masks():
    """The case that explain once had wrong: it named torch's own layer, and the call raised."""
    module = fastrnn.LSTM(3, 4, backend="cudnn")
    found = explain(module, (2, 2), masked=True)
    assert found.kernels == ["none"]
    assert "an error with backend='cudnn'" in found.layers[0].reason
    with pytest.raises(RuntimeError, match="does not cover lengths"):
        module(torch.ones(2, 2, 3), lengths=[2, 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_cells(ran, backend, dtype):
    """A cell's step takes the same road."""
    cell = nn.GRUCell(3, 4, dtype=dtype)
    x = torch.ones(2, 3, dtype=dtype)
    found = explain(cell, (1, 2), backend=backend)
    assert _said(found) == _did(
        ran, lambda: functional.gru_cell(x, None, *cell.parameters(), backend=backend)
    )


@pytest.mark.parametrize("backend", ["auto", "fused", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize(("steps", "rows"), [(1, 1), (1, 4), (1, 5), (2, 1), (1, 0), (3, 0)])
@pytest.mark.parametrize("training", [True, False])
def test_scans(ran, backend, dtype, steps, rows, training):
    """SRU: the scan, its kernel for a step of few rows, or the reference, as explain says."""
    module = fastrnn.SRU(4, 4, backend=backend, dtype=dtype).train(training)
    x = torch.ones(steps, rows, 4, dtype=dtype)
    with torch.set_grad_enabled(training):
        assert _said(explain(module, x)) == _did(ran, lambda: module(x))


def test_transforms_take_the_reference(ran):
    """torch.func's transforms look into a layer, and kernels cannot be looked into."""
    module = fastrnn.GRU(3, 4)
    x = torch.ones(5, 2, 3)
    assert _did(ran, lambda: torch.func.vmap(lambda t: module(t)[0])(x.unsqueeze(0))) == "reference"
    module.backend = "fused"
    with pytest.raises(RuntimeError, match=r"no kernel covers torch\.func"):
        torch.func.vmap(lambda t: module(t)[0])(x.unsqueeze(0))


SHAPES = [
    (1, 1, 1, 1),
    (1, 2, 8, 40),
    (2, 4, 9, 33),
    (3, 4, 9, 33),
    (7, 33, 5, 64),
    (20, 3, 16, 300),
    (5, 200, 8, 24),
]


@pytest.fixture
def machine():
    threads, isa = torch.get_num_threads(), library.cpu_isa()
    yield
    torch.set_num_threads(threads)
    library.set_cpu_isa(isa)


@pytest.mark.parametrize("isa", library.available_cpu_isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_plan_that_ran(machine, isa, threads, dtype):
    """How the kernels divided the work is what explain shows, with every instruction set's own tile: rows of
    a tile and lanes decide where the batch is split."""
    library.set_cpu_isa(isa)
    torch.set_num_threads(threads)
    for (T, B, inputs, H), bidirectional, kind in itertools.product(
        SHAPES, (False, True), (fastrnn.LSTM, fastrnn.GRU)
    ):
        module = kind(inputs, H, bidirectional=bidirectional, dtype=dtype)
        x = torch.ones(T, B, inputs, dtype=dtype)
        said = explain(module, x).layers[0]
        with torch.no_grad():
            module(x)
        ran = library.cpu_last_plan()
        assert ran.pop("kernel") == said.kernel
        assert ran == {name: said.plan[name] for name in ran}


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "layer"},
        {"peephole": True, "zoneout": 0.1},
        {"coupled": True},
        {"weight_dropout": 0.1},
        {"heads": 4, "recurrent_dropout": 0.1},
        {"heads": 4, "proj_size": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
def test_the_plan_of_a_variant_that_ran(machine, options, training):
    """Variants have kernels of their own, whose weights are always packed: not the plain cell's plan."""
    for T, B in ((1, 1), (3, 2), (20, 16)):
        module, x = fastrnn.LSTM(8, 16, **options).train(training), torch.ones(T, B, 8)
        said = explain(module, x).layers[0]
        module(x)
        ran = library.cpu_last_plan()
        assert ran.pop("kernel") == said.kernel
        assert ran == {name: said.plan[name] for name in ran}


def test_the_last_plan_is_the_threads_own():
    """cpu_last_plan is of the thread that asks: another one's call does not show."""
    import threading

    with torch.no_grad():
        fastrnn.LSTM(3, 5)(torch.ones(9, 8, 3))
        mine = library.cpu_last_plan()
        other = threading.Thread(target=lambda: fastrnn.LSTM(3, 5)(torch.ones(1, 1, 3)))
        other.start()
        other.join()
    assert library.cpu_last_plan() == mine
    assert mine["kernel"] == "packed"


def test_route_is_pure():
    """Asked of machines that are not here, and nothing but the arguments decides."""
    lacking = route.missing(torch.float32, "xpu")
    assert lacking == "no kernel runs on xpu"
    assert route.route("auto", lacking, "xpu").runner == "native"
    assert route.route("auto", lacking, "xpu", masked=True).runner == "reference"
    assert route.route("auto", lacking, "xpu", recorded=True).runner == "reference"
    assert route.route("auto", lacking, "xpu", family="scan").runner == "reference"
    assert route.route("grid", None, "cuda").tier == library.TIERS["grid"]
    assert route.route("grid", None, "cuda", family="scan").tier == 0
    assert route.route("grid", None, "cpu").runner == "none"
    assert route.route("fused", lacking, "xpu", subject="this").why.startswith(
        "backend='fused': no kernel covers this"
    )


@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
@pytest.mark.parametrize("gradients", [False, True])
def test_hops(kind, gradients):
    """From layer(x) to the operator at most seven functions of this package, in at most four files: a step of
    a small layer takes the kernel a microsecond, and every function before it half as long."""
    module, x = kind(1, 1), torch.ones(1, 1, 1)
    folder = fastrnn.__path__[0]
    seen: list = []

    def profile(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            seen.append((frame.f_code.co_filename, frame.f_code.co_name))
        elif event == "c_call" and argument in ways:
            sys.setprofile(None)

    ways = library.forward._op, autograd._direct_forward, quick._inference
    with torch.set_grad_enabled(gradients):
        module(x)  # what is made once
        sys.setprofile(profile)
        try:
            module(x)
        finally:
            sys.setprofile(None)
    assert seen
    assert len(set(seen)) <= 7, seen  # a generator counts once, however often it goes on
    assert len({file for file, _ in seen}) <= 4, seen


def test_variants():
    """A variant goes to the kernels; on a GPU, where some have yet to run, only if asked for by name, else to
    the reference. Never to torch's own layers."""
    normed = Variant(norm="layer", zoneout=(0.1, 0.0))
    assert route.route("auto", None, "cpu", variant=normed).runner == "fused"
    way = route.route("auto", None, "cuda", variant=normed)
    assert way.runner == "reference"
    assert "kernels for norm, zoneout have not yet run on a GPU" in way.why
    assert route.route("fused", None, "cuda", variant=normed).runner == "fused"
    assert route.route("stepwise", None, "cuda", variant=normed).tier
    assert "norm" in route.route("cudnn", None, "cpu", variant=normed).why
    for heads in (Variant(heads=2), Variant(coupled=True), Variant(weight_dropout=0.1)):
        assert route.route("auto", None, "cuda", variant=heads).runner == "fused"
    lacking = route.missing(torch.complex64, "cpu")
    assert route.route("auto", lacking, "cpu", variant=normed).runner == "reference"
