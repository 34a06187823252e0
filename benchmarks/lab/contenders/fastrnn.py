"""fastrnn's own layers; on a GPU also held to one tier of its kernels."""

from __future__ import annotations

import fastrnn
from fastrnn._plan import gpus
from fastrnn.proof.timing import Contender

from .. import step_floor
from ..cases import BESIDE
from ..problem import Problem, module_options, own_module
from .contender import Row, Unsupported, own_parameters, run, torch_contender

#: Tiers of the CUDA kernels: for the table that fastrnn's plan chooses by, not for comparisons.
TIERS = ("one_cta", "cluster", "grid", "stepwise")


def build(problem: Problem, threads: int = 1, tier: str = "") -> Contender:
    """fastrnn's module; with a tier, by that tier alone."""
    case = problem.case
    options = module_options(case)
    if tier:
        if case.path != "layers" or case.cell in BESIDE or not case.device.startswith("cuda"):
            raise Unsupported("layers on a GPU only")
        if step_floor.passes_of(case, gpus.find(device=case.device).properties(), tier) is None:
            raise Unsupported("layers that fit only")
        options["backend"] = tier
    if case.cell in BESIDE:
        module = own_module(case, "auto").to(problem.x)
    else:
        name = case.cell.upper() + ("Cell" if case.path == "cells" else "")
        module = getattr(fastrnn, name)(case.I, case.H, device=case.device, dtype=problem.x.dtype, **options)
    module.load_state_dict(problem.module.state_dict())
    module.train(case.training)
    weights = own_parameters(module) if case.cell in BESIDE else module.parameters()
    label = f"fastrnn ({tier})" if tier else "fastrnn"
    return torch_contender(tier or "fastrnn", label, problem, weights, lambda x: run(module, problem, x))


ROWS = (Row("fastrnn", "fastrnn", build, "#0a7d5a", "o", own=tuple(BESIDE)),)
