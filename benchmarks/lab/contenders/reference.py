"""The plain reference, a loop over steps in Python."""

from __future__ import annotations

import copy

from torch.nn.utils.rnn import pack_padded_sequence

from fastrnn import reference as plain
from fastrnn.proof import elementwise
from fastrnn.proof.timing import Contender

from ..cases import BESIDE, ELEMENTWISE_CELLS
from ..problem import Problem
from .contender import Row, Unsupported, own_parameters, torch_contender
from .contender import run as run_module


def build(problem: Problem, threads: int = 1) -> Contender:
    case = problem.case
    if case.cell in BESIDE:
        module = copy.deepcopy(problem.module)
        weights = own_parameters(module)
        if case.cell in ELEMENTWISE_CELLS:
            return torch_contender(
                "reference", "reference", problem, weights, _defined(case.cell, module), few=True
            )
        return torch_contender("reference", "reference", problem, weights, module, few=True)
    if case.variant:
        module = copy.deepcopy(problem.module)
        parameters = module.parameters()
        return torch_contender(
            "reference", "reference", problem, parameters, lambda x: run_module(module, problem, x), few=True
        )
    if case.layers > 1 or case.directions > 1:
        raise Unsupported("single layers only")
    weights = [w.clone().requires_grad_(case.training) for w in problem.weights()]
    if case.path == "cells":
        cell = getattr(plain, f"{case.cell}_cell")

        def run(x):
            return cell(x, *problem.state, *weights)
    else:
        cell = "rnn_tanh" if case.cell == "rnn" else case.cell
        h0 = problem.x.new_zeros(1, case.B, case.P or case.H)
        c0 = problem.x.new_zeros(1, case.B, case.H) if case.cell == "lstm" else None

        def run(x):
            if problem.lengths is None:
                return plain.layer(x, h0, c0, weights, cell=cell, bias=True)
            packed = pack_padded_sequence(x, problem.lengths)
            sizes = packed.batch_sizes
            return plain.layer(packed.data, h0, c0, weights, cell=cell, bias=True, batch_sizes=sizes)

    return torch_contender("reference", "reference", problem, weights, run, few=True)


def _defined(cell: str, module):
    """The definition of one of the recurrences that are no torch.nn's."""
    if cell == "linear_scan":
        return lambda b: plain.linear_scan(module.a, b, module.h0)
    named = dict(module.named_parameters())

    def run(x):
        zeros = x.new_zeros(1, x.size(1), module.hidden_size)
        return elementwise.defined(cell, module, named, x, [zeros] * module._states)

    return run


ROWS = (Row("reference", "reference", build, "#8d97a1", "x", variants=True, own=tuple(BESIDE)),)
