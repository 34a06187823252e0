"""Subclasses and instances with a check_input(), permute_hidden() or the like of their own: called as
torch.nn calls them, by fastrnn's layers and by converted ones."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers import LAYERS, flat, kernels_called, randn
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn

IN, H, T, B = 4, 6, 5, 3
NAMES = [
    "check_input",
    "check_forward_args",
    "check_hidden_size",
    "get_expected_hidden_size",
    "permute_hidden",
]


def recording(base: type, *names: str) -> type:
    """A subclass that notes each call of these methods: its name and the sizes it was given."""

    def method(name):
        def call(self, *args):
            self.calls.append((name, sizes(args)))
            return getattr(super(cls, self), name)(*args)

        return call

    body = {name: method(name) for name in names}
    cls = type("Recording", (base,), {"calls": [], **body})
    return cls


def sizes(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return tuple(map(sizes, value)) if isinstance(value, (tuple, list)) else value


def cases(lstm: bool):
    """Arguments of forward(): input and hx."""

    def state(*shape):
        h = randn(*shape, seed=3).double()
        return (h, h * 2) if lstm else h

    padded, single = randn(T, B, IN).double(), randn(T, IN).double()
    packed = pack_sequence([randn(n, IN, seed=n).double() for n in (2, 5, 3)], enforce_sorted=False)
    return [
        (padded, None),
        (padded, state(1, B, H)),
        (single, None),
        (single, state(1, H)),
        (packed, None),
        (packed, state(1, B, H)),
    ]


def assert_equal(ours, theirs):
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("overridden", [NAMES, *([name] for name in NAMES)], ids=lambda n: "+".join(n)[:30])
@pytest.mark.parametrize("name", LAYERS)
def test_calls_are_torchs(name, overridden, batch_first):
    """The same methods in the same order with the same sizes, and the same results."""
    options = {"batch_first": batch_first, "dtype": torch.float64}
    names = [*overridden, *(["get_expected_cell_size"] if name == "LSTM" and len(overridden) > 1 else [])]
    theirs = recording(getattr(nn, name), *names)(IN, H, **options)
    layers = [
        recording(getattr(module, name), *names)(IN, H, **options) for module in (fastrnn, fastrnn.compat)
    ]
    for layer in layers:
        layer.load_state_dict(theirs.state_dict())
    layers.append(fastrnn.convert(copy.deepcopy(theirs)))
    for x, hx in cases(name == "LSTM"):
        x = x.transpose(0, 1) if batch_first and isinstance(x, torch.Tensor) and x.dim() == 3 else x
        theirs.calls.clear()
        expected, calls = theirs(x, hx), list(theirs.calls)
        assert calls or (name == "LSTM" and isinstance(x, PackedSequence))  # nothing is checked there
        for layer in layers:
            layer.calls.clear()
            assert kernels_called(lambda layer=layer, x=x, hx=hx: layer(x, hx)) == 1
            assert layer.calls == calls
            assert_equal(layer(x, hx), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_what_they_return_and_raise_counts(name):
    """A permute_hidden() that changes the state changes the numbers as in torch.nn; a check that raises stops
    the call; with lengths and in step() too."""

    def cls(base):
        class Own(base):
            def permute_hidden(self, hx, permutation):
                hx = super().permute_hidden(hx, permutation)
                return tuple(0.5 * h for h in hx) if isinstance(hx, tuple) else 0.5 * hx

            def check_input(self, input, batch_sizes):
                super().check_input(input, batch_sizes)
                if input.max() > 100:
                    raise ValueError("not normalised")

        return Own

    theirs, ours = (cls(getattr(module, name))(IN, H, dtype=torch.float64) for module in (nn, fastrnn))
    ours.load_state_dict(theirs.state_dict())
    for x, hx in cases(name == "LSTM"):
        assert_equal(ours(x, hx), theirs(x, hx))
    x, hx = cases(name == "LSTM")[1]
    assert_equal(ours(x, hx, lengths=[T] * B), theirs(x, hx))
    assert_equal(ours.step(x[0], hx)[1], theirs(x[:1], hx)[1])
    calls = [lambda: ours(1e3 * x), lambda: ours(1e3 * x, lengths=[T] * B), lambda: ours.step(1e3 * x[0])]
    for call in (*calls, lambda: fastrnn.convert(theirs)(1e3 * x)):
        with pytest.raises(ValueError, match="not normalised"):
            call()
    with pytest.raises((RuntimeError, ValueError), match="Expected input to be 2D or 3D"):
        ours(x[0, 0])


@pytest.mark.parametrize("name", LAYERS)
def test_set_on_an_instance(name):
    """A function assigned to the layer itself, as by scripts that patch a model: of fastrnn's own, of a
    converted one and of copies; revert() leaves torch.nn's as it was."""
    seen = []

    def note(input, batch_sizes):
        seen.append(input)

    x = randn(T, B, IN)
    ours = getattr(fastrnn, name)(IN, H)
    ours.check_input = note
    theirs = getattr(nn, name)(IN, H)
    theirs.check_input = note
    for layer in (ours, copy.deepcopy(ours), fastrnn.convert(copy.deepcopy(theirs))):
        seen.clear()
        layer(x)
        assert len(seen) == 1
    back = fastrnn.revert(fastrnn.convert(copy.deepcopy(theirs)))
    assert vars(back).keys() == vars(theirs).keys()
    seen.clear()
    back(x)
    assert len(seen) == 1
    ours.check_input = print  # a function that pickle finds
    assert pickle.loads(pickle.dumps(ours)).check_input is print


def test_others_do_not_pay():
    """Layers without such a method run what they ran: the choice is the class's, made once."""
    from fastrnn.modules._base import RecurrentLayer

    class Plain(fastrnn.GRU):
        def extra_repr(self):
            return "plain"

    class Checks(fastrnn.GRU):
        def check_input(self, input, batch_sizes):
            pass

    class Again(Checks):
        pass

    for cls in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN, fastrnn.compat.LSTM, Plain):
        assert cls._run is RecurrentLayer._run
        assert "_run" not in vars(cls(IN, H))
    for cls in (Checks, Again):
        assert cls._run is not RecurrentLayer._run


def test_weights_that_are_given_by_hand():
    """_flat_weights set by hand is what runs, as in torch.nn; and overridden upkeep is called."""
    ours, theirs = fastrnn.LSTM(IN, H), nn.LSTM(IN, H)
    ours.load_state_dict(theirs.state_dict())
    x = randn(T, B, IN)
    for layer in (ours, theirs):
        layer._flat_weights = [w.detach() * 0.5 for w in layer._flat_weights]
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=0, atol=1e-6)

    class Upkeep(fastrnn.GRU):
        flattened = 0

        def flatten_parameters(self):
            self.flattened += 1

        def __setstate__(self, state):
            super().__setstate__(state)
            self.woken = True

    layer = Upkeep(IN, H)
    built = layer.flattened
    assert built
    layer.double()
    assert layer.flattened > built
    buffer = io.BytesIO()
    assert copy.deepcopy(layer).woken
    torch.save(layer.state_dict(), buffer)
    assert [len(group) for group in layer.all_weights] == [4]
    packed = layer(pack_sequence([randn(3, IN).double()]))[0]
    assert isinstance(packed, PackedSequence)
