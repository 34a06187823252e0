"""The backward operator of a recurrent layer past the dispatcher (csrc/python_layer.cpp): the same bits, and
the operator itself for whatever is out of the ordinary."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from direct_cases import (
    BACKWARD,
    BATCH_SIZES,
    BIAS,
    C0,
    CELL,
    CELLS,
    CELLS_SAVED,
    FORWARD,
    GATES,
    GRAD_CELLS,
    GRAD_CN,
    GRAD_HN,
    GRAD_Y,
    H0,
    LAYERS,
    LENGTHS,
    NEEDS,
    RESET,
    WEIGHTS,
    X,
    Y,
    assert_equal,
    backward_arguments,
    found_by,
    operator_arguments,
    operator_backward,
)

import fastrnn
from fastrnn._ops import autograd, library


def _same_backward(arguments: list) -> None:
    with torch.no_grad():
        found, expected = (found_by(way, arguments) for way in (BACKWARD, operator_backward))
    if isinstance(expected, str):
        assert found == expected
    else:
        assert_equal(found, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_backward(cell, dtype, directions, bias):
    """The operator's bits, whatever is wanted, whichever gradients there are, and however y's lies."""
    for (T, B), save in product(((1, 1), (3, 2), (2, 33)), (1, 2)):
        arguments = backward_arguments(cell, dtype, directions, bias, T, B, save)
        for needs in range(16):
            _same_backward([*arguments[:-1], needs])
        for present in product((False, True), repeat=3):
            grads = [g if there else None for g, there in zip(arguments, present, strict=False)]
            _same_backward([*grads, *arguments[3:]])
        grad_y = arguments[0]
        wide = torch.randn(T, B + 1, 3 * grad_y.size(2), dtype=dtype)
        for rows in (
            grad_y.transpose(0, 1).contiguous().transpose(0, 1),
            wide[:, 1:, 5 : 5 + grad_y.size(2)],
            wide[:, 1:, ::3],
            grad_y[:1].expand_as(grad_y),
            grad_y[:1, :1, :1].expand_as(grad_y),
        ):
            _same_backward([rows, *arguments[1:]])


def test_backward_is_direct():
    """What is not wanted is None there, and the operator's empty tensor elsewhere."""
    arguments = [*backward_arguments("gru")[:-1], 8]
    found = BACKWARD(*arguments)
    assert found[:3] == (None, None, None)
    assert isinstance(found[3], tuple)
    assert operator_backward(*arguments)[0].numel() == 0
    assert BACKWARD(*arguments[:-1], 7)[3] == ()


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_sums_are_direct_too(cell):
    """They are expanded, in no memory of their own."""
    arguments = [*backward_arguments(cell)[:-1], 8]
    for i in (GRAD_Y, GRAD_HN, GRAD_CN):
        if arguments[i] is not None:
            arguments[i] = torch.tensor(0.5).expand_as(arguments[i])
    assert BACKWARD(*arguments)[0] is None
    _same_backward(arguments)


def test_training_is_direct(monkeypatch):
    """Of a layer's step as of a whole stack's, on whichever way it came."""
    noted = []
    for name in ("_direct_forward", "_direct_backward"):
        way = getattr(autograd, name)
        monkeypatch.setattr(autograd, name, lambda *a, way=way: noted.append(way(*a)) or noted[-1])
    for options in ({}, {"num_layers": 3}, {"dtype": torch.float64, "save": "recompute"}):
        layer = fastrnn.GRU(3, 5, **options)
        layer(torch.randn(2, 4, 3, dtype=layer.weight_hh_l0.dtype))[0].sum().backward()
        # Nothing is saved but h and the gates; a first layer's input wants no gradient.
        assert all(found[2] is None for found in noted)
        assert noted[-1][0] is None
        assert len(noted) == 2 * layer.num_layers
        noted.clear()


def test_backward_of_what_the_direct_forward_saved():
    """Which is None where a cell saves nothing, also for the operator."""
    for cell, save, directions in product(CELLS, (1, 2), (1, 2)):
        forward = operator_arguments(cell, directions=directions)
        y, h, c, gates, cells = FORWARD(*forward[:-1], save)
        grads = torch.randn_like(y), torch.randn_like(h), None if c is None else torch.randn_like(c), None
        none = torch.empty(0)
        saved = [none if t is None else t for t in (gates, cells)]
        found = BACKWARD(*grads, *forward[:7], y, gates, cells, cell, True, 15)
        assert_equal(found, library.backward(*grads, *forward[:7], y, *saved, cell, True, 15))


def _other_backward(position: int, value, cell: str) -> list:
    arguments = backward_arguments(cell)
    given = arguments[position]
    if callable(value):
        # What a cell has not is put in the place of a like tensor.
        given = torch.randn(1, 6, 20) if given is None and position != GRAD_CELLS else given
        value = value(given)
    arguments[position] = value
    return arguments


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("position", "value"),
    [
        (GRAD_Y, lambda g: g[0]),
        (GRAD_Y, lambda g: g[:, :1]),
        (GRAD_Y, lambda g: g.double()),
        (GRAD_Y, lambda g: g.to("meta")),
        (GRAD_Y, torch._neg_view),
        (GRAD_Y, lambda g: torch._efficientzerotensor(g.shape)),
        (GRAD_Y, 1.0),
        (GRAD_HN, lambda g: g[..., :4]),
        (GRAD_HN, lambda g: g.expand(2, -1, -1)),
        (GRAD_HN, lambda g: g.transpose(1, 2).contiguous().transpose(1, 2)),
        (GRAD_CN, lambda g: g.double()),
        (GRAD_CN, lambda g: g[:, :1].expand_as(g)),
        (GRAD_CN, lambda g: g.to("meta")),
        (GRAD_CN, 3),
        (GRAD_CELLS, lambda _: torch.randn(1, 6, 5)),
        (X, lambda x: x[:2]),
        (X, lambda x: x.double()),
        (X, None),
        (H0, None),
        (C0, None),
        (C0, lambda c: c[..., 1:]),
        (WEIGHTS, tuple),
        (WEIGHTS, []),
        (WEIGHTS, lambda w: w[:2]),
        (WEIGHTS, lambda w: [w[0].t().contiguous().t(), *w[1:]]),
        (BATCH_SIZES, torch.tensor([2, 2, 2])),
        (LENGTHS, torch.tensor([3, 1])),
        (RESET, torch.zeros(3, 2, dtype=torch.bool)),
        (Y, lambda y: y[:2]),
        (Y, lambda y: y.transpose(0, 1).contiguous().transpose(0, 1)),
        (Y, lambda y: y.double()),
        (Y, torch._neg_view),
        (Y, None),
        (GATES, lambda gates: gates[:, :-1]),
        (GATES, lambda gates: gates[..., :-1]),
        (GATES, lambda gates: gates.double()),
        (GATES, torch.empty(0)),
        (GATES, torch.empty(3)),
        (CELLS_SAVED, lambda cells: cells[:, :-1]),
        (CELLS_SAVED, lambda cells: cells.double()),
        (CELLS_SAVED, torch.empty(0)),
        (CELLS_SAVED, lambda cells: cells.to("meta")),
        (CELLS_SAVED, "s"),
        (GATES, 3),
        (CELL, "gru"),
        (CELL, "no cell"),
        (CELL, None),
        (BIAS, False),
        (BIAS, 1),
        (NEEDS, 16),
        (NEEDS, -1),
        (NEEDS, True),
        (NEEDS, None),
    ],
)
def test_what_is_out_of_the_ordinary_backward_is_the_operators(position, value, cell):
    """Every other argument: the operator's results, or its error; also where the cell has no use for it."""
    _same_backward(_other_backward(position, value, cell))


def test_another_number_of_arguments_is_the_operators_error():
    for way, operator, arguments in (
        (FORWARD, library.forward, operator_arguments("gru")),
        (BACKWARD, library.backward, backward_arguments("gru")),
    ):
        for given in ([], arguments[:1], arguments[:-1], [*arguments, None]):
            error = found_by(way, given)
            assert isinstance(error, str)
            assert error.split(":")[0] == found_by(operator, given).split(":")[0]


def test_large_gradients_are_the_operators():
    """To which a call is little."""
    arguments = [*backward_arguments("rnn_tanh")[:-1], 8]
    wide = torch.randn(1500, 1500)
    arguments[WEIGHTS] = [torch.randn(1500, 3), wide, torch.randn(1500), torch.randn(1500)]
    arguments[H0], arguments[Y] = torch.zeros(1, 2, 1500), torch.zeros(3, 2, 1500)
    arguments[GRAD_Y], arguments[GRAD_HN] = torch.randn(3, 2, 1500), None
    assert BACKWARD(*arguments)[0] is not None
    _same_backward(arguments)


def test_without_a_door(monkeypatch):
    """Where torch gives no way past its dispatcher the operators are called, with what they take."""
    monkeypatch.setattr(library._C, "Layer", lambda *_: (_ for _ in ()).throw(TypeError("no door")))
    way = library.direct()
    assert way.module({}, None, None) is None
    monkeypatch.setattr(autograd, "_direct_forward", way.forward)
    monkeypatch.setattr(autograd, "_direct_backward", way.backward)
    for kind, options in LAYERS:
        layer, x = kind(3, 5, **options), torch.randn(2, 4, 3)
        found = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
        with monkeypatch.context() as patch:
            patch.setattr(autograd, "_direct_forward", FORWARD)
            patch.setattr(autograd, "_direct_backward", BACKWARD)
            want = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b)
