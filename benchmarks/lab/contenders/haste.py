"""haste's layers on a GPU, in float32."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from fastrnn.proof.timing import Contender

from ..cases import GATES
from ..problem import Problem
from .contender import Row, labelled, only, require, torch_contender

#: Gate blocks of haste's weights in torch.nn's numbering: LSTM i, g, f, o; GRU z, r, h.
ORDER = {"lstm": (0, 2, 1, 3), "gru": (1, 0, 2)}


def _from_haste(weight: Tensor, cell: str) -> Tensor:
    """(I, G*H) in haste's order as torch.nn's (G*H, I)."""
    blocks = weight.t().chunk(GATES[cell])
    return torch.cat([blocks[ORDER[cell].index(g)] for g in range(GATES[cell])])


def build(problem: Problem, threads: int = 1) -> Contender:
    """haste's layer, whose own method takes torch.nn's weights."""
    case = problem.case
    only(problem, ("lstm", "gru"), ("float32", "tf32"))
    require("haste_pytorch")
    package = importlib.import_module("haste_pytorch")
    module = getattr(package, case.cell.upper())(case.I, case.H)
    module.from_native_weights(*(w.clone() for w in problem.weights()))
    module.to(case.device).train(case.training)

    def gradients():
        return _from_haste(module.kernel.grad, case.cell), _from_haste(
            module.recurrent_kernel.grad, case.cell
        )

    label = labelled("haste", "haste_pytorch")
    return torch_contender("haste", label, problem, module.parameters(), module, gradients=gradients)


ROWS = (Row("haste", "haste", build, "#c9a227", "P", ("haste_pytorch",), device="cuda"),)
