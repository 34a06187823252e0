"""MinGRU in plain torch as its paper writes it: in log space, by a sum and a logcumsumexp over time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import linear, logsigmoid, softplus

from fastrnn.proof.timing import Contender

from ..problem import Problem
from .contender import Row, only_own, torch_contender


def scan(gates: Tensor) -> Tensor:
    """h of every step (T, B, H) from zero, of z and the candidate (T, B, 2*H)."""
    z, candidate = gates.chunk(2, -1)
    positive = torch.where(candidate >= 0, (candidate.relu() + 0.5).log(), logsigmoid(candidate))
    kept = -softplus(z).cumsum(0)
    return (kept + (logsigmoid(z) + positive - kept).logcumsumexp(0)).exp()


def build(problem: Problem, threads: int) -> Contender:
    only_own(problem, "mingru")
    module = copy.deepcopy(problem.module)
    weights = [module.weight_ih_l0, module.bias_ih_l0]
    label = "log-space scan in torch"
    return torch_contender("log_scan", label, problem, weights, lambda x: scan(linear(x, *weights)), few=True)


# Its sums over time grow with it, and their differences are what counts.
_MORE = {"device": "cpu", "own": ("mingru",), "alone": True, "loses_digits": True}
ROWS = (Row("log_scan", "log-space scan", build, "#7a5195", "D", **_MORE),)
