"""TorchRL's Triton kernels, below its modules."""

from __future__ import annotations

import importlib

import torch

from fastrnn.proof.timing import Contender

from ..problem import Problem
from .contender import Row, labelled, leaf, only, require, torch_contender


def build(problem: Problem, threads: int = 1) -> Contender:
    """The functions behind TorchRL's recurrent_backend="triton", without its modules: less to do, so a bound.

    They take torch.nn's weights as they are, and choose among their configurations at the first call.
    """
    case = problem.case
    only(problem, ("lstm", "gru"), ("float32", "tf32"))
    require("torchrl")
    kernels = importlib.import_module("torchrl.modules.tensordict_module._rnn_triton")
    weights = [leaf(w, problem) for w in problem.weights()]
    # The state that each step would restart from, and where it does: nowhere.
    states = [problem.x.new_zeros(case.B, case.T, case.H) for _ in range(2 if case.cell == "lstm" else 1)]
    begins = torch.zeros(case.B, case.T, dtype=torch.bool, device=case.device)
    function = kernels.lstm_triton if case.cell == "lstm" else kernels.gru_triton
    precision = "tf32" if case.dtype == "tf32" else "ieee"

    def run(x):
        return function(x, *states, *weights, begins, input_precision=precision)[0].transpose(0, 1)

    label = labelled("TorchRL", "torchrl") + ", Triton"
    return torch_contender("torchrl", label, problem, weights, run, batch_first=True)


ROWS = (Row("torchrl", "TorchRL", build, "#8a5bb8", "X", ("torchrl",), device="cuda", compiling_s=150.0),)
