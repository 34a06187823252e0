"""The forward operator of a recurrent layer past the dispatcher (csrc/python_layer.cpp): the same bits, and
the operator itself for whatever is out of the ordinary."""

from __future__ import annotations

import pytest
import torch
from direct_cases import CELLS, FORWARD, assert_equal, found_by, operator_arguments

from fastrnn._ops import library


def _same(arguments: list) -> None:
    """The results of both ways, to the bit; where one of them is an error, so is the other."""
    with torch.no_grad():
        found, expected = (found_by(way, arguments) for way in (FORWARD, library.forward))
    if isinstance(expected, str):
        assert found == expected
        return
    assert_equal(found, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_without_the_dispatcher(cell, dtype, directions, bias):
    """The operator called directly: its bits, for steps of one row and for sequences, however x lies."""
    for T, B in ((1, 1), (3, 2), (2, 33)):
        arguments = operator_arguments(cell, dtype, directions, bias, T, B)
        _same(arguments)
        _same([arguments[0].transpose(0, 1).contiguous().transpose(0, 1), *arguments[1:]])
        wide = torch.randn(T, B, 6, dtype=dtype)
        _same([wide[..., ::2], *arguments[1:]])
        _same([wide[..., 1:4], *arguments[1:]])


def _other(position: int, value) -> list:
    arguments = operator_arguments("lstm")
    arguments[position] = value(arguments[position]) if callable(value) else value
    return arguments


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, lambda x: x[0]),
        (0, lambda x: x[:0]),
        (0, lambda x: x[:, :0]),
        (0, lambda x: x.double()),
        (0, lambda x: x.to(torch.complex64)),
        (0, lambda x: x.to("meta")),
        (0, torch._neg_view),
        (0, lambda x: torch._efficientzerotensor(x.shape)),
        (0, None),
        (1, torch._neg_view),
        (1, lambda h: h.expand(2, -1, -1)),
        (1, lambda h: h.transpose(1, 2).contiguous().transpose(1, 2)),
        (1, lambda h: h[..., :4]),
        (2, None),
        (2, lambda c: c.double()),
        (3, lambda w: w[:3]),
        (3, lambda w: [*w, w[0]]),
        (3, lambda w: [w[0].t().contiguous().t(), *w[1:]]),
        (3, lambda w: [torch._neg_view(w[0]), *w[1:]]),
        (3, lambda w: [w[0][:18], *w[1:]]),
        (3, lambda w: [w[0], w[1].half(), *w[2:]]),
        (3, lambda w: [w[0], w[1], w[2][:, None], w[3]]),
        (3, lambda w: [torch.tensor(1.0), *w[1:]]),
        (3, lambda w: [*w[:2], torch.randn(2, 5)]),
        (3, tuple),
        (3, []),
        (4, torch.tensor([2, 2, 2])),
        (5, torch.tensor([3, 1])),
        (6, torch.zeros(3, 2, dtype=torch.bool)),
        (7, "gru"),
        (7, "no cell"),
        (7, "lstm:peephole"),
        (7, 3),
        (8, False),
        (8, 1),
        (9, 7),
        (9, -1),
        (9, True),
        (9, 1 << 70),
    ],
)
def test_what_is_out_of_the_ordinary_is_the_operators(position, value):
    """Every other argument: the operator's results, or its error."""
    _same(_other(position, value))


def test_a_projection_is_the_operators():
    arguments = operator_arguments("lstm")
    weights = arguments[3]
    arguments[3] = [weights[0], torch.randn(20, 2), *weights[2:], torch.randn(2, 5)]
    arguments[1] = torch.randn(1, 2, 2)
    _same(arguments)


def test_large_results_are_the_operators():
    """Which maps them in huge pages; a call is little to them."""
    arguments = operator_arguments("rnn_tanh", steps=300, rows=200)
    found = FORWARD(*arguments)
    assert found[3] is not None  # the operator's, an empty tensor
    assert FORWARD(*operator_arguments("rnn_tanh", steps=30, rows=200))[3] is None
    _same(arguments)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("save", [1, 2])
def test_what_is_saved(cell, dtype, directions, bias, save):
    """A pass that saves gives the operator's bits, and None for what such a cell has not."""
    for T, B in ((1, 1), (3, 2), (2, 33)):
        arguments = operator_arguments(cell, dtype, directions, bias, T, B)
        arguments[-1] = save
        _same(arguments)
    found = FORWARD(*arguments)
    if dtype == torch.bfloat16:
        assert None not in found  # the operator's own
    else:
        absent = [cell != "lstm", save == 2 or cell.startswith("rnn"), cell != "lstm"]
        assert [t is None for t in found[2:]] == absent
