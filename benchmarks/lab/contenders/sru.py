"""The ``sru`` package. Its numbers must agree with fastrnn's reference of an SRU."""

from __future__ import annotations

import importlib
import warnings

from torch import nn

from fastrnn.proof.timing import Contender

from ..cases import SRU_CELLS
from ..problem import Problem
from .contender import Row, Unsupported, own_parameters, require, torch_contender


def package(problem: Problem) -> nn.Module:
    """The ``sru`` package's module with the problem's weights. Importing it compiles for half a minute."""
    case = problem.case
    if case.cell not in SRU_CELLS:
        raise Unsupported("SRU only")
    require("sru")
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


def build(problem: Problem, threads: int) -> Contender:
    module = package(problem)

    def run(x):
        with warnings.catch_warnings():
            # The package warns of its own slowness at every call.
            warnings.simplefilter("ignore")
            return module(x)

    label = f"sru {importlib.import_module('sru').__version__}"
    # It trains through a loop in Python, which takes as long as the reference.
    few = problem.case.training
    return torch_contender("sru", label, problem, own_parameters(module), run, few=few)


ROWS = (Row("sru", "sru", build, "#c9a227", "P", ("sru",), own=SRU_CELLS),)
