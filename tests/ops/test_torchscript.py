"""torch.jit.script: what is compiled has the eager numbers, runs and loads where there is no fastrnn, and
leaves the module that was scripted, and the model around it, as they were."""

from __future__ import annotations

import copy
import inspect
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import sru_models
import torch
from helpers import CELLS, LAYERS, flat, randn
from sru_models import F64, PAD, make
from tolerances import TORCH_SLACK, assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.compat import sru as compat_sru

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
IN, H = 4, 6
ROADS = {
    "fastrnn": lambda name: getattr(fastrnn, name),
    "compat": lambda name: getattr(fastrnn.compat, name),
    "convert": lambda name: lambda *a, **k: fastrnn.convert(getattr(nn, name)(*a, **k)),
    "convert compat": lambda name: lambda *a, **k: fastrnn.convert(getattr(nn, name)(*a, **k), compat=True),
    "revert": lambda name: lambda *a, **k: fastrnn.revert(getattr(fastrnn, name)(*a, **k)),
}


class Model(nn.Module):
    """A layer inside a model, as torch scripts them: alone, torch.nn's layers have no forward()."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor):
        return self.rnn(x)


class LSTMStates(Model):
    def forward(self, x: Tensor, h: Tensor, c: Tensor):
        return self.rnn(x, (h, c))


class State(Model):
    def forward(self, x: Tensor, h: Tensor):
        return self.rnn(x, h)


class Packed(Model):
    def forward(self, x: Tensor, lengths: Tensor):
        packed = pack_padded_sequence(x, lengths, batch_first=self.rnn.batch_first, enforce_sorted=False)
        y, state = self.rnn(packed)
        return pad_packed_sequence(y)[0], state


def saved(scripted: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    stream = io.BytesIO()
    torch.jit.save(scripted, stream)
    stream.seek(0)
    return torch.jit.load(stream)


def same(module: nn.Module, *inputs: Tensor) -> torch.jit.ScriptModule:
    """Scripts the module; its results and every gradient are the eager ones, saved and loaded too, and calls
    with a gradient come twice. The module is what it was."""
    before = {k: v for k, v in vars(module).items() if k != "__overloads__"}
    modules = list(module.modules())
    scripted = torch.jit.script(module)
    assert list(module.modules()) == modules
    assert {k: v for k, v in vars(module).items() if k != "__overloads__"} == before
    assert [n for n, _ in scripted.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert scripted.state_dict().keys() == module.state_dict().keys()

    def gradients(called) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
        torch.manual_seed(3)  # for dropout
        found = flat(
            tuple(r if not isinstance(r, dict) else tuple(*r.values()) for r in _tuple(called(*leaves)))
        )
        total = sum((t.double() * randn(*t.shape, dtype=F64)).sum() for t in found)
        wanted = [t for t in (*leaves, *called.parameters()) if t.requires_grad]
        grads = torch.autograd.grad(total, wanted, allow_unused=True)
        return [t.detach() for t in found] + [g for g in grads if g is not None]

    expected = gradients(module)
    for program in (scripted, scripted, saved(scripted)):
        found = gradients(program)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype
            assert_close(a, b, b.dtype, slack=TORCH_SLACK[b.dtype])
    return scripted


def _tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


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


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@sru_models.models
def test_sru(build, train):
    """Every model of SRU and SRU++ that the tests know, dropout's draws included, with states and pads."""
    model = build(dropout=0.3).train(train)
    if isinstance(model, fastrnn.SRU):
        for layer in model.rnn_lst:
            layer.rnn_dropout = 0.2
    else:
        model.rnn_lst[1].transform_module.attn_dropout = 0.0
    same(model, x := randn(sru_models.L, sru_models.B, sru_models.IN, dtype=F64))
    c0 = randn(2, sru_models.B, model.output_size, dtype=F64)
    same(model, x, c0, PAD)
    same(model, x, c0, PAD.int())
    same(model.rnn_lst[1], randn(sru_models.L, sru_models.B, model.output_size, dtype=F64), c0[0])
    same(model.rnn_lst[1], randn(sru_models.B, model.output_size, dtype=F64), c0[0], PAD[0])


@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": True},
        {"nn_rnn_compatible_return": True, "bidirectional": True},
        {"has_skip_term": False},
        {"v1": True},
        {"use_tanh": True, "rescale": True, "highway_bias": -1.0, "proj_input_to_hidden_first": True},
        {"layer_norm": True, "normalize_after": True},
        {"layer_norm": True, "num_layers": 1},
        {"dtype": torch.float32},
        {"dtype": torch.bfloat16, "rescale": True},
    ],
    ids=str,
)
def test_sru_options(options):
    """The options that the models above leave out; c0 in torch.nn's shape, which SRU takes too."""
    model = make(**options)
    x = randn(sru_models.L, sru_models.B, sru_models.IN, dtype=options.get("dtype", F64))
    same(model, x.transpose(0, 1) if model.batch_first else x)
    layers, directions = model.num_layers, model.num_directions
    c0 = randn(layers * directions, sru_models.B, sru_models.H, dtype=x.dtype)
    same(model, x.transpose(0, 1) if model.batch_first else x, c0)


class Transform(nn.Module):
    """A transform module of the user's, which returns what its subclass says."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.u = nn.Linear(inputs, outputs * 4, dtype=F64)
        self.v = nn.Parameter(randn(outputs * 2, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.u(x)


class TransformTuple(Transform):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.u(x),)


class TransformV(Transform):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.u(x), self.v


class TransformSteps(Transform):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.u(x), x.sum(-1, keepdim=True) * self.v


class TransformList(Transform):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.u(x), self.v]


class TransformMaybe(Transform):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.u(x), None


@pytest.mark.filterwarnings("ignore:the parameters of transform_module")
@pytest.mark.parametrize("kind", [Transform, *Transform.__subclasses__()], ids=lambda kind: kind.__name__)
def test_transform_modules(kind):
    """A transform module may return U, or U and V in any of the forms that eager mode takes."""
    layer = fastrnn.SRUCell(3, H, transform_module=kind(3, H), dtype=F64)
    same(layer, randn(5, 2, 3, dtype=F64))
    with pytest.raises(torch.jit.Error, match="transform_module should return U of size"):
        torch.jit.script(fastrnn.SRUCell(3, H, transform_module=nn.Linear(3, 7, dtype=F64), dtype=F64))(
            randn(5, 2, 3, dtype=F64)
        )


class PackageTransform(Transform):
    """As modules were written for sru 3.0: is_causal is none of its arguments."""

    def forward(
        self,
        input: Tensor,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask_pad: Tensor | None = None,
    ) -> Tensor:
        return self.u(input)


def test_srupp_attention():
    """Masks, memory, causal attention and rows that see nothing: as in eager mode."""

    class Call(nn.Module):
        def __init__(self, model: nn.Module, causal: bool) -> None:
            super().__init__()
            self.model, self.causal = model, causal

        def forward(self, x: Tensor, m0: Tensor, m1: Tensor, pads: Tensor, m_pads: Tensor, scores: Tensor):
            mask = None if self.causal else scores
            memory: list[Tensor | None] = [m0, m1]
            return self.model(x, None, pads, mask, memory, m_pads, self.causal)

    steps, rows, width, past = sru_models.L, sru_models.B, sru_models.IN, 2
    x, m0, m1 = (randn(n, rows, f, dtype=F64) for n, f in ((steps, width), (past, width), (past, H)))
    memory_pads = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0]])
    scores = randn(steps, past + steps, dtype=F64)
    scores[2] = -torch.inf
    options = [{}, {"layer_norm": True, "normalize_memory": True}, {"attn_layer_norm": False, "num_heads": 2}]
    for option in options:
        model = make(4, kind="SRUpp", dropout=0.0, **option)
        for causal in (False, True):
            same(Call(model, causal), x, m0, m1, PAD, memory_pads, scores)
        flipped = make(4, kind="SRUpp", batch_first=True, **option)
        args = [t.transpose(0, 1) for t in (x, m0, m1, PAD, memory_pads)]
        same(Call(flipped, True), *args, scores)
    half = make(4, kind="SRUpp", attention_every_n_layers=2, dtype=torch.bfloat16)
    same(half, x.bfloat16())
    custom = fastrnn.SRUppCell(width, H, transform_module=PackageTransform(width, H), dtype=F64)
    same(custom, x)
    with pytest.raises(torch.jit.Error, match="is_causal should be False"):
        torch.jit.script(custom)(x, is_causal=True)


def test_compat_sru():
    """What says that code for the sru package runs unchanged has its layers scripted."""
    for version in compat_sru.modules.VERSIONS:
        for options in (
            {},
            {"rescale": True, "layer_norm": True, "bidirectional": True, "projection_size": 3},
        ):
            torch.manual_seed(0)
            same(compat_sru.SRU(8, 4, 2, sru_version=version, **options).eval(), randn(5, 3, 8))
            same(compat_sru.SRUCell(8, 4, sru_version=version, **options).eval(), randn(5, 3, 8))


def test_autocast():
    """A scripted SRU under autocast has the dtypes of the eager one, and its numbers to the half type's."""
    for half in (False, True):
        model = make(amp_recurrence_fp16=half, dtype=torch.float32).eval()
        scripted, x = torch.jit.script(model), randn(5, 3, sru_models.IN)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for found, expected in zip(scripted(x), model(x), strict=True):
                assert found.dtype == expected.dtype
                assert_close(found.float(), expected.float(), torch.bfloat16)


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
        expected = _tuple(module.eval()(x))[0]
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
