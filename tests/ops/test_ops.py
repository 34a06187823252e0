"""The operators as such: what torch asks of an operator, and bad arguments."""

from __future__ import annotations

from dataclasses import replace

import layer_cases
import pytest
import torch
from layer_cases import ALL, PACKED, Case, Problem, problem
from torch.library import opcheck

from fastrnn._ops import library

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


# ---- what torch asks of an operator: schema, fake tensors, dynamic shapes --------------------------------

SAMPLES = [
    Case("lstm", dtype=F32),
    Case("lstm", P=3, D=2, sizes=PACKED, save="recompute"),
    Case("lstm", dtype=BF16, bias=False, D=2),
    Case("lstm", 1, 0, 3, 5, dtype=F32),
    Case("gru", D=2, strided=True),
    Case("gru", dtype=F16, sizes=PACKED, save="recompute"),
    Case("rnn_tanh", dtype=F32, bias=False),
    Case("rnn_relu", D=2, save="nothing"),
]


def _forward_arguments(case: Case, p: Problem) -> tuple:
    save = layer_cases.SAVES[case.save]
    return p.x, p.h0, p.c0, p.weights, *p.rows, case.cell, case.bias, save


def _backward_arguments(case: Case, p: Problem, needs: int = ALL) -> tuple:
    y, _, _, gates, cells = layer_cases.forward(torch.ops.fastrnn, case, p)
    inputs = p.x, p.h0, p.c0, p.weights, *p.rows
    return *(*p.cotangents, None)[:3], p.grad_cells, *inputs, y, gates, cells, case.cell, case.bias, needs


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_opcheck_forward(case):
    opcheck(library.forward, _forward_arguments(case, problem(case)))


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_opcheck_backward(case):
    opcheck(library.backward, _backward_arguments(case, problem(case)))


@pytest.mark.parametrize("needs", range(16))
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_opcheck_what_is_needed(cell, needs):
    """What is not asked for comes back empty, in the fake version too."""
    case = Case(cell, D=2)
    arguments = _backward_arguments(case, problem(case), needs)
    opcheck(library.backward, arguments, test_utils=("test_schema", "test_faketensor"))
    x, h0, c0, weights = library.backward(*arguments)
    assert (x.numel() > 0) == bool(needs & 1)
    assert (h0.numel() > 0) == bool(needs & 2)
    assert (c0.numel() > 0) == (bool(needs & 4) and cell == "lstm")
    assert bool(weights) == bool(needs & 8)


def test_opcheck_missing_gradients():
    case = Case("lstm")
    arguments = _backward_arguments(case, problem(case))
    for kept in range(3):
        given = [g if i == kept else None for i, g in enumerate(arguments[:3])]
        opcheck(library.backward, (*given, *arguments[3:]), test_utils=("test_schema", "test_faketensor"))


# ---- bad arguments: one error that names the argument ----------------------------------------------------

CASE = Case("lstm", T=4, B=3, IN=5, H=7, dtype=F32)
ROWS = sum(PACKED)


def _arguments(case: Case = CASE, **changed) -> dict:
    p = problem(case)
    arguments = dict(
        zip(
            ("x", "h0", "c0", "weights", "batch_sizes", "lengths", "reset", "cell", "bias", "save"),
            _forward_arguments(case, p),
            strict=True,
        )
    )
    assert changed.keys() <= arguments.keys()
    return {**arguments, **changed}


def _weights(index: int, value, case: Case = CASE) -> list:
    """The weights of a case with another one at `index`; None takes it away."""
    weights = problem(case).weights
    weights[index : index + 1] = [] if value is None else [value]
    return weights


def zeros(*shape, dtype=F32, **options):
    return torch.zeros(shape, dtype=dtype, **options)


PROJECTED = replace(CASE, P=3)
TWO = replace(CASE, D=2)
GRU = replace(CASE, cell="gru")
RAGGED = replace(CASE, sizes=PACKED)


def _packed(sizes, rows: int = ROWS):
    sizes = torch.tensor(sizes) if isinstance(sizes, (list, tuple)) else sizes
    return _arguments(RAGGED, batch_sizes=sizes, x=zeros(rows, 5))


# Arguments, and what the message has to contain: the argument's name first.
BAD = {
    "x 1-D": (_arguments(x=zeros(5)), "x: expected shape"),
    "x 2-D": (_arguments(x=zeros(4, 5)), "x: expected shape"),
    "x 4-D": (_arguments(x=zeros(1, 4, 3, 5)), "x: expected shape"),
    "packed rows with lengths": (
        _arguments(RAGGED, lengths=torch.zeros(RAGGED.sizes[0], dtype=torch.int64)),
        "lengths: expected none with batch_sizes",
    ),
    "packed rows that begin anew": (
        _arguments(RAGGED, reset=torch.zeros(len(RAGGED.sizes), RAGGED.sizes[0], dtype=torch.bool)),
        "reset: expected none with batch_sizes",
    ),
    "x 3-D and packed": (_arguments(RAGGED, x=zeros(1, ROWS, 5)), "x: expected packed"),
    "no steps": (_arguments(x=zeros(0, 3, 5)), "x: expected a sequence length"),
    "features": (_arguments(x=zeros(4, 3, 6)), "weights[0] (w_ih): expected shape (28, 6)"),
    "rows": (_arguments(x=zeros(4, 2, 5)), "h0: expected shape (1, 2, 7)"),
    "integers": (_arguments(x=zeros(4, 3, 5, dtype=torch.int64)), "x: expected dtype"),
    "bools": (_arguments(x=zeros(4, 3, 5, dtype=torch.bool)), "x: expected dtype"),
    "complex": (_arguments(x=zeros(4, 3, 5, dtype=torch.complex64)), "x: expected dtype"),
    "x in float64": (_arguments(x=zeros(4, 3, 5, dtype=F64)), "weights[0] (w_ih): expected the dtype"),
    "h0 2-D": (_arguments(h0=zeros(3, 7)), "h0: expected shape"),
    "h0 4-D": (_arguments(h0=zeros(1, 1, 3, 7)), "h0: expected shape"),
    "h0 rows": (_arguments(h0=zeros(1, 4, 7)), "h0: expected shape (1, 3, 7), got (1, 4, 7)"),
    "h0 units": (_arguments(h0=zeros(1, 3, 8)), "h0: expected shape"),
    "h0 in float64": (_arguments(h0=zeros(1, 3, 7, dtype=F64)), "h0: expected the dtype"),
    "no directions": (_arguments(h0=zeros(0, 3, 7)), "h0: expected 1 or 2 directions"),
    "three directions": (_arguments(h0=zeros(3, 3, 7)), "h0: expected 1 or 2 directions"),
    "h0 as large as c0": (_arguments(PROJECTED, h0=zeros(1, 3, 7)), "h0: expected shape (1, 3, 3)"),
    "no c0": (_arguments(c0=None), "c0: expected a tensor"),
    "c0 of a GRU": (_arguments(GRU, c0=zeros(1, 3, 7)), "c0: expected none"),
    "c0 rows": (_arguments(c0=zeros(1, 2, 7)), "c0: expected shape (1, 3, 7)"),
    "c0 as small as h0": (_arguments(PROJECTED, c0=zeros(1, 3, 3)), "c0: expected shape (1, 3, 7)"),
    "c0 in half": (_arguments(c0=zeros(1, 3, 7, dtype=F16)), "c0: expected the dtype"),
    "no weights": (_arguments(weights=[]), "weights: expected"),
    "one weight": (_arguments(weights=[zeros(28, 5)]), "weights: expected 4 tensors a direction"),
    "a weight less": (_arguments(weights=_weights(3, None)), "weights: expected 4 tensors a direction"),
    "two weights more": (
        _arguments(weights=[*problem(PROJECTED).weights, zeros(28)]),
        "weights: expected 4 tensors a direction",
    ),
    "an odd number for two directions": (
        _arguments(TWO, weights=_weights(7, None, TWO)),
        "weights: expected the same number",
    ),
    "a projected GRU": (
        _arguments(GRU, weights=[*problem(GRU).weights, zeros(3, 7)]),
        "weights: expected 4 tensors a direction",
    ),
    "biases where none belong": (_arguments(bias=False), "weights: expected 2 tensors"),
    "no biases": (_arguments(weights=problem(CASE).weights[:2]), "weights: expected 4 tensors"),
    "w_ih 1-D": (_arguments(weights=_weights(0, zeros(28))), "weights[0] (w_ih)"),
    "w_ih not in gates": (_arguments(weights=_weights(0, zeros(27, 5))), "weights[0] (w_ih)"),
    "w_ih empty": (_arguments(weights=_weights(0, zeros(0, 5))), "weights[0] (w_ih)"),
    "w_ih of other units": (_arguments(weights=_weights(0, zeros(32, 5))), "weights[1] (w_hh)"),
    "w_hh transposed": (_arguments(weights=_weights(1, zeros(7, 28))), "weights[1] (w_hh)"),
    "w_hh in float64": (_arguments(weights=_weights(1, zeros(28, 7, dtype=F64))), "weights[1] (w_hh)"),
    "b_ih 2-D": (_arguments(weights=_weights(2, zeros(28, 1))), "weights[2] (b_ih)"),
    "b_hh short": (_arguments(weights=_weights(3, zeros(7))), "weights[3] (b_hh)"),
    "reverse w_hh": (_arguments(TWO, weights=_weights(5, zeros(28, 8), TWO)), "weights[5] (w_hh)"),
    "reverse b_hh in half": (
        _arguments(TWO, weights=_weights(7, zeros(28, dtype=F16), TWO)),
        "weights[7] (b_hh)",
    ),
    "w_hr 1-D": (_arguments(PROJECTED, weights=_weights(4, zeros(3), PROJECTED)), "weights[4] (w_hr)"),
    "w_hr transposed": (_arguments(PROJECTED, weights=_weights(4, zeros(7, 3), PROJECTED)), "weights["),
    "w_hr empty": (_arguments(PROJECTED, weights=_weights(4, zeros(0, 7), PROJECTED)), "weights[4] (w_hr)"),
    "rising lengths": (_packed((1, 2, 3), 6), "batch_sizes: expected positive, non-increasing"),
    "a zero": (_packed((3, 0)), "batch_sizes: expected positive"),
    "a zero alone": (_packed((0,), 0), "batch_sizes: expected positive"),
    "a negative number": (_packed((5, -1)), "batch_sizes: expected positive"),
    "the smallest number": (_packed((5, -(2**63))), "batch_sizes: expected positive"),
    "too few rows": (_packed(PACKED, ROWS - 1), "batch_sizes: expected a sum of"),
    "too many rows": (_packed(PACKED, ROWS + 1), "batch_sizes: expected a sum of"),
    "rows for another batch": (_packed((4, 4, 4)), "batch_sizes: expected a sum of"),
    "no sizes": (_packed(torch.zeros(0, dtype=torch.int64), 0), "batch_sizes: expected at least one"),
    "sizes 2-D": (_packed(torch.tensor([PACKED])), "batch_sizes: expected a 1-D int64"),
    "sizes 0-D": (_packed(torch.tensor(ROWS)), "batch_sizes: expected a 1-D int64"),
    "int32 sizes": (_packed(torch.tensor(PACKED, dtype=torch.int32)), "batch_sizes: expected a 1-D int64"),
    "NaN sizes": (_packed(torch.full((6,), float("nan"))), "batch_sizes: expected a 1-D int64"),
    "an unknown cell": (_arguments(cell="LSTM"), "cell: expected 'lstm'"),
    "no cell": (_arguments(cell=""), "cell: expected 'lstm'"),
    "another cell": (_arguments(cell="rnn_tanh", c0=None), "weights[1] (w_hh)"),
    "save -1": (_arguments(save=-1), "mode: expected 0, 1 or 2"),
    "save 3": (_arguments(save=3), "mode: expected 0, 1 or 2"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments(what):
    arguments, message = BAD[what]
    with pytest.raises(RuntimeError) as caught:
        library.forward(*arguments.values())
    assert message in str(caught.value)


def test_sizes_beyond_any_memory():
    """Sums and products that do not fit 64 bits, or any memory: an error, no crash."""
    rows = 2**60
    state = zeros(1, 1, 7).expand(1, rows, 7)
    wraps_to_zero = torch.full((16,), rows)  # 2^64
    with pytest.raises(RuntimeError, match="batch_sizes: expected a sum of 0"):
        library.forward(
            *_arguments(RAGGED, x=zeros(0, 5), batch_sizes=wraps_to_zero, h0=state, c0=state).values()
        )
    wide = _arguments(x=zeros(1, 1, 5).expand(4, 2**58, 5), h0=state[:, : 2**58], c0=state[:, : 2**58])
    long = _arguments(x=zeros(1, 3, 5).expand(2**59, 3, 5))
    for arguments in (wide, long):
        with pytest.raises(RuntimeError):
            library.forward(*arguments.values())


NAMES = ("grad_y", "grad_hn", "grad_cn", "grad_cells", "x", "h0", "c0", "weights", "batch_sizes")
NAMES += ("lengths", "reset", "y", "gates", "cells", "cell", "bias", "needs")

BAD_BACKWARD = {
    "grad_y's shape": ({"grad_y": zeros(4, 3, 8)}, "grad_y: expected shape (4, 3, 7)"),
    "grad_y 2-D": ({"grad_y": zeros(12, 7)}, "grad_y: expected shape"),
    "grad_y's dtype": ({"grad_y": zeros(4, 3, 7, dtype=F64)}, "grad_y: expected the dtype"),
    "grad_hn's shape": ({"grad_hn": zeros(2, 3, 7)}, "grad_hn: expected shape (1, 3, 7)"),
    "grad_hn's dtype": ({"grad_hn": zeros(1, 3, 7, dtype=F16)}, "grad_hn: expected the dtype"),
    "grad_cn's shape": ({"grad_cn": zeros(1, 3)}, "grad_cn: expected shape (1, 3, 7)"),
    "y's shape": ({"y": zeros(4, 3, 14)}, "y: expected shape"),
    "y's dtype": ({"y": zeros(4, 3, 7, dtype=F64)}, "y: expected the dtype"),
    "y transposed": ({"y": zeros(3, 4, 7).transpose(0, 1)}, "y: expected the contiguous tensor"),
    "gates' shape": ({"gates": zeros(1, 12, 7)}, "gates: expected shape (1, 12, 28)"),
    "gates' dtype": ({"gates": zeros(1, 12, 28, dtype=F64)}, "gates: expected the dtype"),
    "gates transposed": ({"gates": zeros(1, 28, 12).mT}, "gates: expected the contiguous tensor"),
    "nothing saved": ({"cells": zeros(0)}, "cells: expected shape (1, 12, 7), got (0)"),
    "cells' dtype": ({"cells": zeros(1, 12, 7, dtype=F64)}, "cells: expected the contiguous tensor"),
    "needs -1": ({"needs": -1}, "mode: expected 0 to 15"),
    "needs 16": ({"needs": 16}, "mode: expected 0 to 15"),
    "x's shape": ({"x": zeros(4, 3, 6)}, "weights[0] (w_ih): expected shape"),
    "no c0": ({"c0": None}, "c0: expected a tensor"),
    "lengths": (
        {"batch_sizes": torch.tensor([3, 4, 5]), "x": zeros(12, 5)},
        "batch_sizes: expected positive",
    ),
    "an unknown cell": ({"cell": "mgu"}, "cell: expected 'lstm'"),
}


@pytest.mark.parametrize("what", BAD_BACKWARD)
def test_bad_arguments_of_backward(what):
    changed, message = BAD_BACKWARD[what]
    arguments = dict(zip(NAMES, _backward_arguments(CASE, problem(CASE)), strict=True))
    with pytest.raises(RuntimeError) as caught:
        library.backward(*{**arguments, **changed}.values())
    assert message in str(caught.value)


def test_unknown_instruction_set():
    before = library.cpu_isa()
    with pytest.raises(RuntimeError, match=r"name: expected one of .*baseline.*, got 'sse9'"):
        library.set_cpu_isa("sse9")
    assert library.cpu_isa() == before
    assert before in library.available_cpu_isas()
    assert library.available_cpu_isas()[-1] == "baseline"
