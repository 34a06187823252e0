"""torch.export with dynamic T and B, saved, loaded and run where no module of the program exists."""

from __future__ import annotations

import functools
import io
import os
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import CELLS, LAYERS, flat, pair, randn
from selection import thorough
from tolerances import assert_close
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastrnn

IN, H = 4, 6
OPTIONS = {"LSTM": {"num_layers": 2, "bidirectional": True, "proj_size": 3}, "GRU": {"batch_first": True}}
RUN = """
import sys, torch, fastrnn
folder = sys.argv[1]
program = torch.export.load(f"{folder}/program.pt2").module()
assert not {"onnx", "onnxscript"} & sys.modules.keys()
for i, x in enumerate(torch.load(f"{folder}/inputs.pt")):
    torch.save(program(x), f"{folder}/output{i}.pt")
"""


def _fresh_process(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _exported(module, x):
    shapes = {0: Dim.DYNAMIC} if x.dim() == 2 else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return torch.export.export(module, (x,), dynamic_shapes=(shapes,))


def _inputs(name: str):
    sizes = ((3,), (7,), (1,)) if name in CELLS else ((5, 3), (9, 2), (1, 1))
    return [randn(*size, IN) for size in sizes]


def _check(module, folder, inputs):
    for i, x in enumerate(inputs):
        got = flat(torch.load(folder / f"output{i}.pt"))
        for a, b in zip(got, flat(module(x)), strict=True):
            assert_close(a, b.detach(), torch.float32)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
@pytest.mark.filterwarnings("error:The tensor attributes")
def test_export(name):
    """The program has dynamic sizes, gives eager mode's numbers at others than it was traced with, T = 1 and
    B = 1 among them, and leaves the module as it was."""
    module, _ = pair(name, IN, H, **OPTIONS.get(name, {}))
    kept = list(getattr(module, "_flat_weights", []))
    inputs = _inputs(name)
    program = _exported(module.eval(), inputs[0]).module()
    for x in inputs:
        for a, b in zip(flat(program(x)), flat(module(x)), strict=True):
            assert_close(a.detach(), b.detach(), torch.float32)
    assert all(a is b for a, b in zip(kept, getattr(module, "_flat_weights", []), strict=True))


def test_saved_and_run_elsewhere(tmp_path):
    """torch.export.save, and load in a fresh process that only imports fastrnn; nobody imports onnx."""
    module, _ = pair("LSTM", IN, H, **OPTIONS["LSTM"])
    inputs = _inputs("LSTM")
    torch.export.save(_exported(module.eval(), inputs[0]), tmp_path / "program.pt2")
    torch.save(inputs, tmp_path / "inputs.pt")
    _fresh_process(tmp_path)
    _check(module, tmp_path, inputs)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(fastrnn.SRU, id="SRU", marks=thorough),
        pytest.param(functools.partial(fastrnn.SRUpp, proj_size=4), id="SRUpp"),
    ],
)
def test_sru_saved_and_run_elsewhere(tmp_path, build):
    """As the layers of torch.nn: a program of SRU or SRU++ is saved, and runs in a fresh process."""
    module = build(IN, H, bidirectional=True, layer_norm=True, rescale=True).eval()
    inputs = _inputs("SRU")
    torch.export.save(_exported(module, inputs[0]), tmp_path / "program.pt2")
    torch.save(inputs, tmp_path / "inputs.pt")
    _fresh_process(tmp_path)
    for i, x in enumerate(inputs):
        got, expected = torch.load(tmp_path / f"output{i}.pt"), module(x)
        for a, b in zip(got[:2], expected[:2], strict=True):
            assert_close(a, b.detach(), torch.float32)


class _Packs(torch.nn.Module):
    """A layer on a batch that is packed already, as tensors."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, data, batch_sizes, hx):
        output, state = self.layer(PackedSequence(data, batch_sizes), hx)
        return output.data, state


def test_packed_rows():
    """Packed rows and batch sizes of any number, hx included; a state for other rows is an error when run."""
    module = _Packs(pair("GRU", IN, H, num_layers=2, bidirectional=True)[0].eval())

    def inputs(lengths):
        packed = pack_padded_sequence(randn(lengths[0], len(lengths), IN), lengths)
        return packed.data, packed.batch_sizes, randn(4, len(lengths), H)

    shapes = ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, {1: Dim.DYNAMIC})
    program = torch.export.export(module, inputs([5, 4, 2]), dynamic_shapes=shapes).module()
    for lengths in ([9, 9, 3, 1], [1]):
        for a, b in zip(program(*inputs(lengths)), module(*inputs(lengths)), strict=True):
            assert_close(a, b.detach(), torch.float32)
    with pytest.raises(RuntimeError, match="h0"):
        program(*inputs([5, 4])[:2], randn(4, 3, H))


def test_packing_inside():
    """torch has no batch sizes for a model that packs while it is traced: the error says what to do."""

    class Packing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = fastrnn.GRU(IN, H)

        def forward(self, x, lengths):
            return self.layer(pack_padded_sequence(x, lengths))[1]

    with pytest.raises(RuntimeError, match="lengths="):
        torch.export.export(Packing(), (randn(5, 3, IN), torch.tensor([5, 4, 2])))


class _Tagger(torch.nn.Module):
    """A layer between two others, whose gradients come through it or not at all."""

    def __init__(self, layer: torch.nn.Module, **masks) -> None:
        super().__init__()
        self.before, self.layer, self.masks = torch.nn.Linear(IN, IN), layer, masks

    def forward(self, x):
        return torch.cat([t.flatten() for t in tree_leaves(self.layer(self.before(x), **self.masks))]).sin()


class _First(torch.nn.Module):
    def forward(self, result):
        return result[0]


def _tagger(name: str) -> _Tagger:
    if name == "masked":
        reset = torch.zeros(5, 3, dtype=torch.bool)
        reset[2, 1] = True
        layer = fastrnn.LSTM(IN, H, bidirectional=True)
        return _Tagger(layer, lengths=torch.tensor([5, 0, 3]), reset=reset, return_all_states=True)
    if name.startswith("SRU"):
        return _Tagger(
            {"SRU": fastrnn.SRU, "SRUpp": functools.partial(fastrnn.SRUpp, proj_size=4)}[name](IN, H)
        )
    if name == "recompute":
        return _Tagger(fastrnn.GRU(IN, H, save="recompute"))
    return _Tagger(pair(name, IN, H, **OPTIONS.get(name, {}))[0])


def _gradients(model, x) -> dict:
    grads = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    return dict(zip((name for name, _ in model.named_parameters()), grads, strict=True))


@pytest.mark.parametrize(
    ("name", "strict"),
    [
        *((name, False) for name in (*LAYERS, *CELLS, "recompute", "masked", "SRU", "SRUpp")),
        *((name, True) for name in ("LSTM", "GRUCell", "masked", "SRU")),
    ],
)
def test_program_trains(name, strict):
    """The program gives every parameter the gradient that the module gives it, as torch.nn's programs do,
    with gradients on or off while it was exported, taken apart or not, saved and loaded."""
    model = _tagger(name)
    x = _inputs(name)[0]
    want = _gradients(model, x)
    for enabled in (True,) if strict else (True, False):
        with torch.set_grad_enabled(enabled):
            program = torch.export.export(model, (x,), strict=strict)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        for p in (program, program.run_decompositions(), torch.export.load(file)):
            got = _gradients(p.module(), x)
            assert got.keys() == want.keys()
            for key, grad in want.items():
                assert_close(got[key], grad, torch.float32)


class _Calls(TorchDispatchMode):
    """fastrnn's operators that run within it, and their modes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastrnn":
            self.seen.append((func._overloadpacket.__name__, args[-1]))
        return func(*args, **(kwargs or {}))


def test_what_is_kept():
    """It is decided when the program runs what is kept for gradients: nothing where there are none, as the
    operators then called do not return it; otherwise what the module would keep."""
    for name, call, trains in (
        ("GRU", "rnn_layer", ("rnn_forward", 1)),
        ("recompute", "rnn_layer", ("rnn_forward", 2)),
        ("masked", "rnn_layer", ("rnn_forward", 1)),
        ("SRU", "sru_scan", ("sru_forward", True)),
    ):
        model, x = _tagger(name), _inputs(name)[0]
        program = torch.export.export(model, (x,)).module()
        for frozen in (False, True):
            with torch.set_grad_enabled(frozen), _Calls() as calls:
                program.requires_grad_(not frozen)
                program(x)
            assert {called for called, _ in calls.seen} == {call}
        program.requires_grad_(True)
        with _Calls() as calls:
            program(x)
        assert set(calls.seen) == {trains}
        op = getattr(torch.ops.fastrnn, call).default
        assert "gates" not in [r.name for r in op._schema.returns]


@pytest.mark.parametrize("name", ["LSTM", "masked", "SRU"])
def test_programs_in_other_tools(name):
    """A program is differentiated twice, by torch.func too, and compiled, like the module."""
    model, x = _tagger(name), _inputs(name)[0]
    program = torch.export.export(model, (x,)).module()

    def product(m):
        grads = torch.autograd.grad(m(x).sum(), list(m.parameters()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), list(m.parameters()))

    for a, b in zip(product(program), product(model), strict=True):
        assert_close(a, b, torch.float32)
    weights = {k: v.detach() for k, v in program.named_parameters()}
    found = torch.func.grad(lambda w: torch.func.functional_call(program, w, (x,)).sum())(weights)
    compiled = _gradients(torch.compile(program, backend="aot_eager"), x)
    for key, grad in _gradients(model, x).items():
        assert_close(found[key], grad, torch.float32)
        assert_close(compiled[f"_orig_mod.{key}"], grad, torch.float32)


def test_compiled_ahead(tmp_path):
    """AOTInductor's package of a program that could be trained calls the raw operators, which no way through
    Python slows down, and saves nothing."""
    model, x = _tagger("masked"), _inputs("masked")[0]
    program = torch.export.export(torch.nn.Sequential(fastrnn.SRU(IN, IN), _First(), model), (x,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    with zipfile.ZipFile(path) as package:
        text = b"".join(package.read(name) for name in package.namelist() if name.endswith(".json"))
    assert set(re.findall(rb"fastrnn::\w+", text)) == {
        b"fastrnn::rnn_forward",
        b"fastrnn::sru_forward",
    }
    assert_close(torch._inductor.aoti_load_package(path)(x), program.module()(x).detach(), torch.float32)


def test_within_patch():
    """torch.nn's layers inside patch() are exported as fastrnn's operators, and that is said."""
    model, x = torch.nn.Sequential(torch.nn.GRU(IN, H)), randn(5, 3, IN)
    for strict in (False, True):
        with fastrnn.patch(), pytest.warns(UserWarning, match="fastrnn has to be imported where"):
            program = torch.export.export(model, (x,), strict=strict)
        assert "rnn_layer" in str(program.graph)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "The tensor attributes")  # torch's, of its own layers
        assert "fastrnn" not in str(torch.export.export(model, (x,)).graph)
        torch.export.export(fastrnn.GRU(IN, H), (x,))


RECORD = "\nrecorded.append((torch.as_tensor(x), torch.as_tensor(y)))\n"


def test_the_page(tmp_path, monkeypatch):
    """Every block of docs/export.md: those that export here, those that load in a fresh process that knows
    nothing of the model; their outputs are the model's."""
    pytest.importorskip("onnxruntime")
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    model, *blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exports, loads = blocks[0::2], blocks[1::2]
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    exec(compile("\n".join([model, *exports]), "docs/export.md", "exec"), namespace)
    script = "recorded = []\n" + RECORD.join([*loads, "torch.save(recorded, 'recorded.pt')"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recorded = torch.load("recorded.pt")
    assert len(recorded) == 3
    for x, y in recorded:
        assert_close(y, namespace["model"](x).detach(), torch.float32)
