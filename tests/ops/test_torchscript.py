"""torch.jit.script: what is compiled has the eager numbers, runs and loads where there is no fastrnn, and
leaves the module that was scripted, and the model around it, as they were."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CELLS, LAYERS, flat, randn
from sru_models import F64
from torch import Tensor, nn
from torchscript_models import IN, H, LSTMStates, Model, Packed, State, as_tuple, same

import fastrnn
from fastrnn.compat import sru as compat_sru

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
ROADS = {
    "fastrnn": lambda name: getattr(fastrnn, name),
    "compat": lambda name: getattr(fastrnn.compat, name),
    "convert": lambda name: lambda *a, **k: fastrnn.convert(getattr(nn, name)(*a, **k)),
    "convert compat": lambda name: lambda *a, **k: fastrnn.convert(getattr(nn, name)(*a, **k), compat=True),
    "revert": lambda name: lambda *a, **k: fastrnn.revert(getattr(fastrnn, name)(*a, **k)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("road", ROADS)
def test_layers(road, name):
    """Two layers and directions, states, a single sequence, batch_first, on every road to a layer."""
    make = ROADS[road](name)
    states = {"h": randn(4, 3, H), "c": randn(4, 3, H)}
    given = states.values() if name == "LSTM" else [states["h"]]
    with_state = LSTMStates if name == "LSTM" else State
    rnn = make(IN, H, num_layers=2, bidirectional=True)
    same(Model(rnn), randn(5, 3, IN))
    same(Model(rnn), randn(5, IN))
    same(with_state(rnn), randn(5, 3, IN), *given)
    same(with_state(rnn), randn(5, IN), *(s[:, 0] for s in given))
    same(with_state(make(IN, H, num_layers=4, batch_first=True, bias=False)), randn(3, 5, IN), *given)
    same(Model(make(IN, H, batch_first=True)), randn(5, IN))
    same(Packed(rnn), randn(5, 3, IN), torch.tensor([2, 5, 1]))
    same(Packed(make(IN, H, batch_first=True)), randn(3, 5, IN), torch.tensor([2, 5, 1]))
    if name == "LSTM":
        same(Model(make(IN, H, num_layers=2, proj_size=3)), randn(5, 3, IN))
        same(Packed(make(IN, H, proj_size=3)), randn(5, 3, IN), torch.tensor([2, 5, 1]))
    if name == "RNN":
        same(Model(make(IN, H, nonlinearity="relu")), randn(5, 3, IN))
        same(Packed(make(IN, H, nonlinearity="relu")), randn(5, 3, IN), torch.tensor([2, 5, 1]))
    same(Model(make(IN, H, num_layers=2, dropout=0.4)).eval(), randn(5, 3, IN))
    same(Model(make(IN, H, dtype=F64)), randn(5, 3, IN, dtype=F64))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("road", ROADS)
def test_cells(road, name):
    """Cells, alone and in a loop of the caller's, with and without states and biases, for single rows too."""

    class Loop(Model):
        def forward(self, x: Tensor):
            h = self.rnn(x[0])
            for t in range(1, x.size(0)):
                h = self.rnn(x[t], h)
            return h

    make = ROADS[road](name)
    for cell in (make(IN, H), make(IN, H, bias=False)):
        same(cell, randn(3, IN))
        same(cell, randn(IN))
        same(Loop(cell), randn(4, 3, IN))
        same(Loop(cell), randn(4, IN))
    if name == "RNNCell":
        same(make(IN, H, nonlinearity="relu"), randn(3, IN))


def test_without_fastrnn(tmp_path):
    """A process that cannot import fastrnn loads every scripted program, and has its numbers."""
    modules = {
        **{name: Model(getattr(fastrnn, name)(IN, H)) for name in LAYERS},
        **{name: getattr(fastrnn, name)(IN, H) for name in CELLS},
        "SRU": fastrnn.SRU(IN, H),
        "SRUpp": fastrnn.SRUpp(IN, H, 2),
        "compat": compat_sru.SRU(IN, H),
    }
    for name, module in modules.items():
        x = randn(*((3, IN) if name in CELLS else (5, 3, IN)))
        expected = as_tuple(module.eval()(x))[0]
        torch.jit.script(module).save(tmp_path / f"{name}.pt")
        torch.save((x, [e.detach() for e in flat(expected)]), tmp_path / f"{name}.numbers")
    script = """
import sys, torch
sys.modules["fastrnn"] = None
for name in sys.argv[1:]:
    x, expected = torch.load(name + ".numbers")
    y = torch.jit.load(name + ".pt")(x)
    y = y[0] if isinstance(y, tuple) else y
    torch.testing.assert_close(y, expected[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *modules], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_errors():
    """Wrong inputs are errors that say so, and what a scripted layer lacks is one of TorchScript's."""
    with pytest.raises(torch.jit.Error, match="LSTM: Expected input to be 2D or 3D, got 4D"):
        torch.jit.script(Model(fastrnn.LSTM(IN, H)))(randn(1, 5, 3, IN))
    with pytest.raises(torch.jit.Error, match="hx should also be 3-D, got 2-D"):
        torch.jit.script(State(fastrnn.GRU(IN, H)))(randn(5, 3, IN), randn(1, H))
    with pytest.raises(torch.jit.Error, match="Expected input to be 1D or 2D, got 3D"):
        torch.jit.script(fastrnn.GRUCell(IN, H))(randn(5, 3, IN))
    with pytest.raises(torch.jit.Error, match=r"input.size\(-1\) should be input_size = 4, got 5"):
        torch.jit.script(fastrnn.SRU(IN, H))(randn(5, 3, IN + 1))
    with pytest.raises(torch.jit.Error, match=r"c0 should have size \[2, 3, 6\], got \[1, 3, 6\]"):
        torch.jit.script(fastrnn.SRU(IN, H))(randn(5, 3, IN), randn(1, 3, H))
    with pytest.raises(torch.jit.Error, match="mask_pad should have size"):
        torch.jit.script(fastrnn.SRU(IN, H))(randn(5, 3, IN), None, torch.zeros(3, 5))

    class Lengths(Model):
        def forward(self, x: Tensor, lengths: Tensor):
            return self.rnn(x, lengths=lengths)

    with pytest.raises(RuntimeError, match="lengths"):
        torch.jit.script(Lengths(fastrnn.LSTM(IN, H)))


def test_subclasses_are_compiled_from_their_own_forward():
    """A forward() of a subclass is what runs, and not the one of the class that it derives from."""

    class Doubling(fastrnn.LSTM):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class DoublingSRU(fastrnn.SRU):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class DoublingCell(fastrnn.GRUCell):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    x = randn(5, 3, IN)
    for module in (Doubling(IN, H), DoublingSRU(IN, H), DoublingCell(IN, H)):
        assert torch.equal(torch.jit.script(Model(module))(x), x * 2)


def test_eager_module_goes_on():
    """A scripted module keeps everything that TorchScript does not know, copies and pickles; scripting,
    convert and revert may follow each other in any order."""
    rnn = fastrnn.LSTM(IN, H)
    model, x = Model(rnn), randn(5, 3, IN)
    torch.jit.script(model)
    assert type(model.rnn) is fastrnn.LSTM
    assert model.rnn is rnn
    expected = rnn(x, lengths=[5, 2, 1])[0]
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert torch.equal(other(x, lengths=[5, 2, 1])[0], expected)
    for change in (
        fastrnn.revert,
        fastrnn.convert,
        fastrnn.revert,
        lambda m: fastrnn.convert(m, compat=True),
    ):
        change(model)
        same(model, x)


def test_forward_is_what_inspect_shows():
    """TorchScript finds another source by an attribute of forward(): its signature stays its own."""
    for cls in (fastrnn.LSTMCell, fastrnn.SRU, fastrnn.SRUCell, fastrnn.SRUpp, fastrnn.SRUppAttention):
        code, shown = cls.forward.__code__, inspect.signature(cls.forward).parameters
        assert list(shown)[: code.co_argcount] == list(code.co_varnames[: code.co_argcount])
    assert "is_causal" in inspect.signature(fastrnn.SRUpp.forward).parameters


def test_under_patch(tmp_path):
    """torch.nn's modules are scripted inside the block as outside, and outside after it: in a process of its
    own, because a failure to compile would stay."""
    script = f"""
import warnings, torch, fastrnn
from torch import nn
warnings.simplefilter("ignore")
class Model(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
    def forward(self, x: torch.Tensor):
        return self.rnn(x)
def check():
    for name in {[*LAYERS, *CELLS]}:
        for place in (nn, fastrnn, fastrnn.compat):
            module = Model(getattr(place, name)(4, 6))
            x = torch.randn((3, 4) if "Cell" in name else (5, 3, 4))
            scripted = torch.jit.script(module)
            torch.testing.assert_close(scripted(x), module(x))
            operator = name.lower().replace("cell", "_cell").replace("rnn", "rnn_tanh")
            assert f"aten::{{operator}}(" in str(scripted.inlined_graph), scripted.inlined_graph
with fastrnn.patch():
    check()
check()
for _ in range(2):
    with fastrnn.patch():
        check()
"""
    path = tmp_path / "script.py"  # torch.jit.script reads the source of what it compiles
    path.write_text(script)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
