"""torch.export with dynamic T and B, saved, loaded and run where no module of the program exists."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CELLS, LAYERS, flat, pair, randn
from tolerances import assert_close
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
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
    "build", [fastrnn.SRU, functools.partial(fastrnn.SRUpp, proj_size=4)], ids=["SRU", "SRUpp"]
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


def test_nothing_kept():
    """An exported program, which has no gradients, does not store the gates that they would be made of."""
    modules = [fastrnn.LSTM(IN, H), fastrnn.SRU(IN, H)]
    assert all(p.requires_grad for module in modules for p in module.parameters())
    modes = [
        node.args[-1]
        for module in modules
        for node in _exported(module, randn(5, 3, IN)).graph.nodes
        if str(node.target).startswith("fastrnn.")
    ]
    assert modes == [0, False, False]


RECORD = "\nrecorded.append((torch.as_tensor(x), torch.as_tensor(y)))\n"


def test_the_page(tmp_path, monkeypatch):
    """Every block of docs/export.md: those that export here, those that load in a fresh process that knows
    nothing of the model; their outputs are the model's."""
    pytest.importorskip("onnxruntime")
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    model, *blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exports, loads = blocks[0::2], blocks[1::2]
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    exec(compile("\n".join([model, *exports]), "docs/export.md", "exec"), namespace)
    script = "recorded = []\n" + RECORD.join([*loads, "torch.save(recorded, 'recorded.pt')"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recorded = torch.load("recorded.pt")
    assert len(recorded) == 3
    for x, y in recorded:
        assert_close(y, namespace["model"](x).detach(), torch.float32)
