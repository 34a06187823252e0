"""torch.nn's layers, by the library that does their work. Beside what torch.nn has not, another layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastrnn.proof.timing import Contender

from ..cases import BESIDE
from ..problem import Problem
from .contender import Row, own_copy, run, torch_contender


class _OpNames(TorchDispatchMode):
    """Collects the names of the aten ops that run."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def torch_library(problem: Problem, module: nn.Module | None = None) -> str:
    """The library that does torch.nn's work in this case: looked up in the ops that it runs."""
    module = problem.module if module is None else module
    with _OpNames() as seen, torch.set_grad_enabled(problem.case.training):
        run(own_copy(module), problem, problem.x)
    names = " ".join(seen.names)
    if "cudnn_rnn" in names:
        return "cuDNN"
    if problem.case.device != "cpu":
        return "cuBLAS"
    if "mkldnn" in names:
        return "oneDNN"
    if problem.case.dtype in ("bfloat16", "float16"):
        return "oneDNN a step" if torch.backends.mkldnn.is_available() else "native"
    return "MKL a step" if torch.backends.mkl.is_available() else "BLAS a step"


def build(problem: Problem, threads: int) -> Contender:
    """torch.nn's module. nn.LSTM beside an SRU of the same sizes computes something else: it is there as the
    layer that an SRU replaces, and is not compared in its results; as nn.GRU beside a MinGRU."""
    case = problem.case
    if case.cell in BESIDE:
        name = BESIDE[case.cell]
        with torch.random.fork_rng(devices=[]):
            module = getattr(nn, name)(case.I, case.H).to(problem.x).train(case.training)
        label = f"nn.{name} ({torch_library(problem, module)})"
    else:
        module, label = own_copy(problem.module), f"torch.nn ({torch_library(problem)})"
    return torch_contender("torch", label, problem, module.parameters(), lambda x: run(module, problem, x))


ROWS = (Row("torch", "torch.nn", build, "#e4761b", "s", own=tuple(BESIDE)),)
