"""fastrnn.convert and revert, and fastrnn.compat: a model's layers change their class, and nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import CELLS, LAYERS, compare, flat, kernels_called, pair, randn
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm
from torch.nn.utils.rnn import pack_sequence

import fastrnn

IN, H = 4, 6


def _input(name: str):
    return randn(3, IN) if name in CELLS else randn(5, 3, IN)


class Inherits(nn.LSTM):
    """A subclass that leaves forward() alone."""

    def extra_repr(self):
        return f"inherits, {super().extra_repr()}"

    def flatten_parameters(self):
        self.flattened = True


class OwnForward(nn.GRU):
    """A subclass that does something of its own around torch's forward()."""

    def forward(self, input, hx=None):
        y, h = super().forward(input, hx)
        return 2 * y, h


@pytest.mark.parametrize("classes", ["own", "compat"])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_there_and_back(name, classes):
    """The module itself is returned with its parameters, gives the numbers it gave, and goes back to be
    torch's with not an attribute more or less."""
    options = {} if name in CELLS else {"num_layers": 2, "bidirectional": True, "dropout": 0.0}
    torch.manual_seed(0)
    module = getattr(nn, name)(IN, H, **options)
    before, state = copy.deepcopy(module), dict(vars(module))
    parameters = list(module.parameters())
    converted = fastrnn.convert(module, compat=classes == "compat")
    assert converted is module
    assert type(module) is getattr(fastrnn if classes == "own" else fastrnn.compat, name)
    assert isinstance(module, getattr(nn, name)) == (classes == "compat")
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    assert kernels_called(lambda: module(_input(name))) > 0
    compare(module, before, _input(name))
    if name in LAYERS:
        compare(module, before, pack_sequence([randn(n, IN) for n in (4, 3, 1)]))
    assert fastrnn.revert(module) is module
    assert type(module) is getattr(nn, name)
    assert vars(module).keys() == state.keys()
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    x = _input(name)
    assert all(torch.equal(a, b) for a, b in zip(flat(module(x)), flat(before(x)), strict=True))


def test_inside_a_model():
    """Layers at every depth change, one that is in two places stays one, and the rest is not touched."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.LSTM(IN, H, batch_first=True)
            self.same = self.encoder
            self.others = nn.ModuleList([nn.GRU(H, H), nn.Sequential(nn.RNNCell(H, H, nonlinearity="relu"))])
            self.fast = fastrnn.LSTM(H, H, save="recompute")
            self.head = nn.Linear(H, 2)
            self.aside = [self.encoder]

        def forward(self, x):
            y, _ = self.encoder(x)
            y, _ = self.others[0](y)
            y, _ = self.fast(y)
            return self.head(self.others[1](y[0]))

    model = Model()
    before = copy.deepcopy(model)
    fastrnn.convert(model, save="recompute", backend="fused")
    assert type(model.encoder) is fastrnn.LSTM
    assert model.encoder is model.same is model.aside[0]
    assert type(model.others[0]) is fastrnn.GRU
    assert type(model.others[1][0]) is fastrnn.RNNCell
    assert type(model.head) is nn.Linear
    assert (model.encoder.save, model.encoder.backend) == ("recompute", "fused")
    assert model.fast.backend == "auto"
    assert list(model.state_dict()) == list(before.state_dict())
    x = randn(2, 3, IN)
    torch.testing.assert_close(model(x), before(x))
    copied = pickle.loads(pickle.dumps(model.encoder))
    assert type(copied) is fastrnn.LSTM
    fastrnn.revert(model)
    assert type(model.encoder) is nn.LSTM
    assert type(model.fast) is nn.LSTM
    assert not hasattr(model.fast, "save")


def test_what_hangs_on_a_module():
    """Hooks of all kinds run, mode, requires_grad, dtype and the optimizer's state stay, as do attributes."""
    module = nn.LSTM(IN, H, 2, dropout=0.5, dtype=torch.float64).eval()
    module.weight_hh_l0.requires_grad_(False)
    module.note = "mine"
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained)
    x = randn(5, 3, IN, dtype=torch.float64)
    module(x)[0].sum().backward()
    optimizer.step()
    seen = []
    module.register_forward_pre_hook(lambda *_: seen.append("pre"))
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    module.register_state_dict_post_hook(lambda *_: seen.append("state_dict"))
    module.register_load_state_dict_post_hook(lambda *_: seen.append("load"))
    fastrnn.convert(module)
    assert not module.training
    assert module.note == "mine"
    assert not module.weight_hh_l0.requires_grad
    assert module.weight_ih_l0.dtype == torch.float64
    assert set(optimizer.state) == set(trained)
    module(x.requires_grad_())[0].sum().backward()
    module.load_state_dict(module.state_dict())
    assert seen == ["pre", "forward", "backward", "state_dict", "load"]
    before = module.weight_ih_l0.detach().clone()
    optimizer.step()
    assert not torch.equal(before, module.weight_ih_l0)


@pytest.mark.parametrize("kind", ["parametrized", "weight_norm", "prune"])
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_are_computed(name, kind):
    """Parametrizations, the older weight norm and pruning go on, on copies too, and can be removed."""
    weight = "weight_hh" if name in CELLS else "weight_hh_l0"
    torch.manual_seed(0)
    module = getattr(nn, name)(IN, H)
    if kind == "parametrized":
        parametrizations.weight_norm(module, weight)
    elif kind == "weight_norm":
        weight_norm(module, weight)
    else:
        prune.random_unstructured(module, weight, amount=0.4)
    copied = copy.deepcopy(module) if kind == "parametrized" else None
    other = getattr(nn, name)(IN, H)
    x = _input(name)
    with torch.no_grad():  # a layer's list of weights keeps what was computed, and only leaves can be copied
        expected = flat(module(x))
    fastrnn.convert(module)
    assert isinstance(module, getattr(fastrnn, name))
    if kind == "parametrized":
        torch.testing.assert_close(flat(copy.deepcopy(module)(x)), expected)
    assert kernels_called(lambda: module(x)) > 0
    torch.testing.assert_close(flat(module(x)), expected)
    sum(t.sum() for t in flat(module(x))).backward()
    assert all(p.grad is not None for p in module.parameters())
    assert type(other) is getattr(nn, name)
    if kind == "parametrized":
        assert isinstance(copied, getattr(nn, name))  # shared its class with module, and keeps it
        torch.testing.assert_close(flat(copied(x)), expected)
        parametrize.remove_parametrizations(module, weight)
        assert type(module) is getattr(fastrnn, name)
        torch.testing.assert_close(flat(module(x)), expected)
    fastrnn.revert(module)
    assert type(module) is getattr(nn, name)
    torch.testing.assert_close(flat(module(x)), expected)


def test_parametrized_and_reverted():
    """revert() of a module that is still parametrized."""
    module = nn.GRU(IN, H)
    parametrizations.weight_norm(module, "weight_hh_l0")
    cls = type(module)
    fastrnn.revert(fastrnn.convert(module))
    assert type(module).__bases__ == cls.__bases__
    assert type(module).__name__ == cls.__name__
    assert kernels_called(lambda: module(randn(5, 3, IN))) == 0


def test_subclasses():
    """A subclass without a forward() of its own is converted and stays one, with what it defines; copies and
    pickles too. One with a forward() of its own is left alone, or on request runs it around fastrnn's."""
    torch.manual_seed(0)
    module, x = Inherits(IN, H), randn(5, 3, IN)
    before = copy.deepcopy(module)
    fastrnn.convert(module)
    assert isinstance(module, Inherits)
    assert isinstance(module, fastrnn.LSTM)
    assert type(module).__name__ == "Inherits"
    assert module.extra_repr() == "inherits, 4, 6"
    module.flatten_parameters()
    assert module.flattened
    compare(module, before, x)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(copied) is type(module)
        assert kernels_called(lambda m=copied: m(x)) > 0
        torch.testing.assert_close(copied(x), module(x))
    assert type(fastrnn.revert(module)) is Inherits

    own = OwnForward(IN, H)
    expected = [t.detach() for t in own(x)]
    assert type(fastrnn.convert(own)) is OwnForward
    fastrnn.convert(own, own_forward=True)
    assert isinstance(own, OwnForward)
    assert kernels_called(lambda: own(x)) == 1
    torch.testing.assert_close(list(own(x)), expected)
    assert type(fastrnn.revert(own)) is OwnForward

    replaced = nn.LSTM(IN, H)
    replaced.forward = lambda x: x
    assert type(fastrnn.convert(replaced)) is nn.LSTM
    derived = type("Derived", (fastrnn.LSTM,), {})(IN, H)
    assert type(fastrnn.revert(derived)).__name__ == "Derived"


def test_torch_compile():
    """A converted model compiles into one graph, which torch.nn's does not."""
    model = nn.Sequential(nn.Linear(3, IN), nn.LSTM(IN, H))
    x = randn(5, 2, 3)
    expected = model(x)
    fastrnn.convert(model)
    torch._dynamo.reset()
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch._dynamo.reset()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_compat(name):
    """fastrnn.compat's classes take torch's arguments, are torch's for isinstance and fastrnn's at work."""
    torch.manual_seed(0)
    module = getattr(fastrnn.compat, name)(IN, H, bias=False, dtype=torch.float64)
    torch.manual_seed(0)
    theirs = getattr(nn, name)(IN, H, bias=False, dtype=torch.float64)
    assert isinstance(module, (getattr(nn, name), getattr(fastrnn, name)))
    assert repr(module) == repr(theirs)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), theirs.parameters(), strict=True))
    x = _input(name).double()
    assert kernels_called(lambda: module(x)) > 0
    compare(module, theirs, x)
    assert type(copy.deepcopy(module)) is type(pickle.loads(pickle.dumps(module))) is type(module)


def test_wrong_arguments():
    """The argument, what was expected and what came, before anything is changed."""
    module = nn.LSTM(IN, H)
    for function in (fastrnn.convert, fastrnn.revert):
        with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got a list of 1 \(LSTM\)"):
            function([module])
    with pytest.raises(ValueError, match="save should be 'gates' or 'recompute', got 'none'"):
        fastrnn.convert(module, save="none")
    with pytest.raises(ValueError, match="backend should be"):
        fastrnn.convert(module, backend="cuda")
    assert type(module) is nn.LSTM
    ours, _ = pair("LSTM", IN, H, save="recompute")
    assert fastrnn.convert(ours).save == "recompute"
