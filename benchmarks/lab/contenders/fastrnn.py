"""fastrnn's own layers; on the CPU also with weights packed once, on a GPU also held to one tier."""

from __future__ import annotations

import torch

import fastrnn
from fastrnn._plan import gpus
from fastrnn.proof.timing import Contender

from .. import step_floor
from ..cases import BESIDE
from ..problem import Problem, module_options, own_module
from .contender import Row, Unsupported, only, own_parameters, run, torch_contender

#: Tiers of the CUDA kernels: for the table that fastrnn's plan chooses by, not for comparisons.
TIERS = ("one_cta", "cluster", "grid", "stepwise")


def build(problem: Problem, threads: int = 1, tier: str = "") -> Contender:
    """fastrnn's module; with a tier, by that tier alone."""
    case = problem.case
    options = module_options(case)
    if tier:
        if case.variant or case.path != "layers" or case.cell in BESIDE or not case.device.startswith("cuda"):
            raise Unsupported("layers on a GPU only")
        if step_floor.passes_of(case, gpus.find(device=case.device).properties(), tier) is None:
            raise Unsupported("layers that fit only")
        options["backend"] = tier
    if case.cell in BESIDE:
        module = own_module(case, "auto").to(problem.x)
    else:
        name = case.cell.upper() + ("Cell" if case.path == "cells" else "")
        options |= case.options()
        module = getattr(fastrnn, name)(case.I, case.H, device=case.device, dtype=problem.x.dtype, **options)
    module.load_state_dict(problem.module.state_dict())
    module.train(case.training)
    weights = own_parameters(module) if case.cell in BESIDE else module.parameters()
    label = f"fastrnn ({tier})" if tier else "fastrnn"
    return torch_contender(tier or "fastrnn", label, problem, weights, lambda x: run(module, problem, x))


def build_streamer(problem: Problem, threads: int = 1) -> Contender:
    """The layer's streamer, for the whole sequence at once: what a server calls."""
    only(problem, ("lstm", "gru", "rnn"), ("float32",))
    case = problem.case
    if case.device != "cpu":
        raise Unsupported("the CPU only")
    module = getattr(fastrnn, case.cell.upper())(case.I, case.H)
    module.load_state_dict(problem.module.state_dict())
    stream = module.eval().streamer()
    return torch_contender("streamer", "fastrnn's streamer", problem, (), stream)


def build_plain(problem: Problem, threads: int = 1) -> Contender:
    """Beside a variant the plain layer of its sizes, which computes something else: what the options cost."""
    case = problem.case
    if not case.variant:
        raise Unsupported("beside variants only")
    with torch.random.fork_rng(devices=[]):
        module = getattr(fastrnn, case.cell.upper())(case.I, case.H, **module_options(case))
    module = module.to(problem.x).train(case.training)
    return torch_contender(
        "plain", "plain fastrnn", problem, module.parameters(), lambda x: run(module, problem, x)
    )


ROWS = (
    Row("fastrnn", "fastrnn", build, "#0a7d5a", "o", variants=True, own=tuple(BESIDE)),
    Row("streamer", "fastrnn's streamer", build_streamer, "#a06cb0", "X", training=False),
    Row("plain", "plain fastrnn", build_plain, "#6fb59b", "P", variants=True),
)
