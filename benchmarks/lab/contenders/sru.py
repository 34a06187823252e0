"""Contenders of the SRU cases: fastrnn, its reference, the ``sru`` package where it is installed, nn.LSTM.

nn.LSTM of the same sizes computes something else: it is there as the layer that an SRU replaces, and is not
compared in its results. Everything else must agree with the reference.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings

import torch
from torch import nn

from fastrnn.proof.timing import Contender

from ..cases import SRU_CELLS
from ..problem import Problem, Unsupported, sru_module
from .registry import torch_contender, torch_library


def package(problem: Problem) -> nn.Module:
    """The ``sru`` package's module with the problem's weights. Importing it compiles for half a minute."""
    case = problem.case
    if case.cell not in SRU_CELLS:
        raise Unsupported("SRU only")
    if importlib.util.find_spec("sru") is None:
        raise Unsupported("sru is not installed")
    if case.dtype != "float32" or case.device != "cpu":
        raise Unsupported("float32 on the CPU only")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sru = importlib.import_module("sru")
    weights = problem.module.state_dict()
    if case.cell == "srupp":
        if not hasattr(sru, "SRUpp"):
            raise Unsupported(f"sru {sru.__version__} has no SRU++: SRU only")
        module = sru.SRUpp(case.I, case.H, case.P, 1)
    else:
        module = sru.SRU(case.I, case.H, 1)
        if sru.__version__.startswith("2"):
            key = "rnn_lst.0.transform_module.weight"
            weights = {k: v for k, v in weights.items() if k != key} | {"rnn_lst.0.weight": weights[key].t()}
    module.load_state_dict(weights)
    return module.train(case.training)


def build(key: str, problem: Problem) -> Contender:
    """Make a contender for an SRU case, or for key "sru" say why not."""
    case = problem.case
    if key == "sru":
        module, label = package(problem), f"sru {importlib.import_module('sru').__version__}"
    elif case.cell not in SRU_CELLS:
        raise Unsupported("SRU only")
    elif key == "torch":
        with torch.random.fork_rng(devices=[]):
            module = nn.LSTM(case.I, case.H).to(problem.x).train(case.training)
        label = f"nn.LSTM ({torch_library(problem, module)})"
    elif key == "fastrnn":
        module, label = sru_module(case, "auto").to(problem.x), "fastrnn"
        module.load_state_dict(problem.module.state_dict())
        module.train(case.training)
    elif key == "reference":
        module, label = copy.deepcopy(problem.module), "reference"
    else:
        raise Unsupported("LSTM, GRU and RNN only")

    def run(x):
        with warnings.catch_warnings():
            # The package warns of its own slowness at every call.
            warnings.simplefilter("ignore")
            return module(x)

    # The package trains through a loop in Python, which takes as long as the reference.
    few = key == "reference" or (key == "sru" and case.training)
    # The two that every version has under the same name and in the same layout come first: their gradients
    # are compared.
    weights = list(module.parameters())
    if key != "torch":
        compared = [module.rnn_lst[0].weight_c, module.rnn_lst[0].bias]
        weights = [*compared, *(p for p in weights if all(p is not c for c in compared))]
    return torch_contender(key, label, problem, weights, run if key == "sru" else module, few=few)
