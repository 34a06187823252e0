"""The xlstm package's own sLSTM cell, whose loop over the steps is plain torch; and that compiled.

The package asks at each step whether n is zero, at which a compiler ends its graph: that cell is no faster
compiled. What is compiled here has the same step without the question.
"""

from __future__ import annotations

import importlib
from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear, logsigmoid

from fastrnn.proof.timing import Contender

from ..problem import Problem
from .compile import UNROLLED
from .contender import Row, labelled, leaf, only_own, require, torch_contender


def cell_of(problem: Problem) -> nn.Module:
    """The package's cell with the problem's recurrent weights and bias."""
    case = problem.case
    cells = importlib.import_module("xlstm.blocks.slstm.cell")
    config = cells.sLSTMCellConfig(
        hidden_size=case.H,
        num_heads=problem.module.num_heads,
        backend="vanilla",
        dtype="float32",
        enable_automatic_mixed_precision=False,
        input_shape="SBGNH",
        output_shape="SBH",
    )
    cell = cells.sLSTMCell(config)
    problem.module.to_xlstm(cell)
    return cell.train(case.training).requires_grad_(case.training)


def without_a_branch(gx, product, bias, states, constants):
    """The package's step of the cell, (h, c, n, m) and its gates, in one graph."""
    _, c, n, m = states.unbind(0)
    i, f, z, o = (gx + product + bias).view(len(gx), 4, -1).unbind(1)
    kept = m + logsigmoid(f)
    m = torch.where(n == 0, i, torch.maximum(i, kept))
    i, f, o = torch.exp(i - m), torch.exp(kept - m), torch.sigmoid(o)
    c, n = f * c + i * torch.tanh(z), f * n + i
    return torch.stack((o * c / n, c, n, m)), torch.stack((i, f, z, o))


def build(problem: Problem, threads: int, compiled: bool = False) -> Contender:
    """The product with the input weights is one of torch's, as everybody's. compiled: torch.compile of some
    steps at a time, which it unrolls."""
    case = problem.case
    only_own(problem, "slstm")
    require("xlstm")
    cell = cell_of(problem)
    w_ih = leaf(problem.module.weight_ih_l0.detach(), problem)
    unrolled = max(n for n in range(1, UNROLLED + 1) if case.T % n == 0)
    if compiled:
        cell.pointwise = without_a_branch
    steps = torch.compile(cell, dynamic=False) if compiled else None

    def run(x):
        gx = linear(x, w_ih)
        if steps is None:
            return cell(gx)[0]
        # States from the first piece on, of one kind with those that come out: or it is compiled twice.
        state = torch.zeros(4, case.B, case.H, requires_grad=case.training)
        outputs = []
        for part in gx.split(unrolled):
            y, state = steps(part, state)
            outputs.append(y)
        return torch.cat(outputs)

    def gradients():
        bias = cell._bias_int2ext(cell._bias.grad)  # (heads, gates, H/heads)
        return w_ih.grad, bias.transpose(0, 1).reshape(-1)

    label = labelled("xlstm", "xlstm")
    if compiled:
        label += f", torch.compile, {unrolled} steps at a time"
    key = "xlstm_compile" if compiled else "xlstm"
    weights = [w_ih, *cell.parameters()]
    return torch_contender(key, label, problem, weights, run, gradients=gradients, few=not compiled)


ROWS = (
    Row("xlstm", "xlstm", build, "#b5483f", "d", ("xlstm",), device="cpu", own=("slstm",), alone=True),
    Row(
        "xlstm_compile",
        "xlstm, torch.compile",
        partial(build, compiled=True),
        "#5b6f9e",
        "v",
        ("xlstm",),
        device="cpu",
        own=("slstm",),
        alone=True,
        compiling_s=180.0,
    ),
)
