"""Every fused path against the float64 reference and torch.nn: what ``python -m fastrnn verify`` runs.

An error is the largest difference of any output or gradient over the largest magnitude of its tensor. The
reference computes in float64 from the same numbers, rounded to the dtype under test.

In float32 on the CPU the errors are also held against torch.nn's own, see ``_accuracy``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .. import _checks
from .._cells import RNN
from .._cells.card import HALF
from .._cells.variant import for_kernels, spell
from .._cells.variant import read as read_variant
from .._ops import library
from .._plan import gpus
from . import _accuracy
from ._accuracy import Accuracy
from ._data import Data, make_data, run_functional, run_torch
from ._tolerances import (  # noqa: F401 - read from here
    FLOOR,
    SCANS,
    TF32,
    TF32_TOLERANCE,
    TOLERANCES,
    TORCH_SLACK,
    Check,
    Tolerance,
)
from ._variants import VARIANTS, draws, has

CELLS = (*RNN, *SCANS)
DTYPES = tuple(TOLERANCES)
PATHS = ("layers", "packed", "proj", "cells")
#: The cells without an option, among the names of variants.
PLAIN_NAME = "plain"
#: Paths and directions that variants are checked on.
_VARIANTS_PATHS = (("layers", 2), ("cells", 1))
#: "inference" saves nothing, "training" saves the gates, "recompute" computes them again in backward.
MODES = ("inference", "training", "recompute")

#: T, B, I, H and layers: one of everything; few and many rows, odd and even sizes, one and several vector
#: registers of units, and a sequence that the kernels take in chunks.
#: On a GPU also layers that one SM cannot hold.
SIZES = ((1, 1, 3, 5, 1), (4, 2, 20, 16, 2), (7, 13, 19, 33, 2), (9, 3, 40, 100, 2), (45, 13, 6, 97, 1))
#: Of variants: rows of a few numbers that a norm can be taken of. Of five, half types have too few digits.
VARIANT_SIZES = ((1, 1, 3, 12, 1), *SIZES[1:])
CUDA_SIZES = (*SIZES[::2], SIZES[3], (20, 70, 64, 256, 1), (12, 16, 48, 650, 1))


@dataclass(frozen=True)
class Target:
    """Kernels to check: an instruction set of the CPU or a tier on a GPU, and the backend that asks for them.

    gpu: for a tier asked for by name, the device; what the tier cannot take there is left out.
    """

    name: str
    backend: str = "fused"
    gpu: gpus.Gpu | None = None

    def takes(self, check: Check, size: tuple[int, int, int, int, int]) -> bool:
        """Whether the kernels can be asked to run every layer of a check of this size, both passes."""
        if self.gpu is None:
            return True
        if check.cell in SCANS:
            return False  # their scan is one kernel, whatever the tier
        if check.variant and check.path == "cells":
            return False  # modules, which ask for none
        T, B, I, H, num_layers = size  # noqa: E741
        single, P = check.path == "cells", check.projection(H)
        D = check.directions
        for inputs in {I, D * (P or H)} if num_layers > 1 and not single else {I}:
            plan = library.plan(
                device="cuda",
                cell=_spelled(check, H),
                **{"T": 1 if single else T, "B": B, "I": inputs, "H": H, "P": P, "directions": D},
                dtype=str(check.torch_dtype).removeprefix("torch."),
                training=True,
                gpu=self.gpu.properties(),
                tf32=check.dtype == TF32,
                tier=self.backend,
            )
            if not (plan["possible"] and plan["backward"]["possible"]):
                return False
        return True


def _spelled(check: Check, H: int) -> str:
    """The cell as the operators on a GPU are told it in training."""
    if not check.variant:
        return check.cell
    variant = read_variant(check.name, check.cell, H, **check.options(H))
    return spell(check.cell, *for_kernels(variant, False, check.path == "proj", True))


def cuda_targets(device: str, tiers: Sequence[str] = (), gpu: gpus.Gpu | None = None) -> list[Target]:
    """What there is to check on a GPU: the tiers as the plan chooses, and each by name."""
    gpu = gpu or gpus.find(device=device)
    wanted = tiers or ("auto", *_checks.TIERS)
    return [
        Target(f"{device} {tier}", *(("fused", None) if tier == "auto" else (tier, gpu))) for tier in wanted
    ]


@dataclass
class Outcome:
    """Worst errors of one check on one instruction set (or device), over sizes and modes.

    output, gradient: against float64. torch_output, torch_gradient: torch.nn's own, for comparison.
    from_torch: the distance between the two as a share of what is allowed, above 1 if too far apart.
    error: what was raised, where a run did not end. torch_error: what torch.nn raised, which then is compared
    with nothing. runs: sizes and modes that were run. accuracy: of float32 on the CPU, beside torch.nn's.
    """

    check: Check
    target: str
    output: float = 0.0
    gradient: float = 0.0
    torch_output: float = 0.0
    torch_gradient: float = 0.0
    from_torch: float = 0.0
    where: dict[str, str] = field(default_factory=dict)
    error: str = ""
    torch_error: str = ""
    runs: int = 0
    accuracy: Accuracy | None = None

    def record(self, what: str, error: float, where: str) -> None:
        """Keep an error if it is the worst of its kind so far, and where it was."""
        if error > getattr(self, what):
            setattr(self, what, error)
            self.where[what] = where

    @property
    def accurate(self) -> bool:
        return self.accuracy is None or self.accuracy.ratio <= _accuracy.allowed(self.target)

    @property
    def ok(self) -> bool:
        output, gradient = self.check.tolerance
        if self.check.cell == "srupp":
            # All but the scan are torch's operations in the dtype under test, each of which rounds in half
            # types: what is judged is what comes on top of their error.
            output, gradient = output + self.torch_output, gradient + self.torch_gradient
        elif self.check.variant in ("norm", "all") and self.check.torch_dtype in HALF:
            # A norm makes more of the rounding of the states to half types, the reference's as the kernels'.
            output, gradient = output + self.torch_output, gradient + self.torch_gradient
        within = self.output <= output and self.gradient <= gradient and self.from_torch <= 1
        return within and self.accurate and not self.error


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude expected; infinite for NaN or another shape."""
    if actual.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    found = float((actual - expected).abs().max() / expected.abs().max().clamp_min(FLOOR))
    return found if found == found else float("inf")


def checks(
    cells: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    paths: Sequence[str] = (),
    variants: Sequence[str] = (),
) -> list[Check]:
    """Every check that passes the filters; an empty filter lets everything through.

    variants: of _variants.VARIANTS, "plain" for the cells without."""
    plain = [
        Check(cell, path, directions, dtype)
        for dtype in dtypes or DTYPES
        for cell in cells or CELLS
        for path in paths or PATHS
        if (path != "proj" or (cell in RNN and RNN[cell].projects))
        if path != "cells" or cell not in SCANS
        for directions in ((1,) if path == "cells" else (1, 2))
    ]
    found = [] if variants and PLAIN_NAME not in variants else plain
    # What a variant does besides its cell it does in both directions and on every path of the loop.
    return found + [
        replace(check, variant=variant)
        for check in plain
        if (check.path, check.directions) in _VARIANTS_PATHS
        for variant in VARIANTS
        if variant in (variants or VARIANTS)
        if has(check.cell, variant, check.path == "cells")
    ]


@contextlib.contextmanager
def _float32_as(tf32: bool) -> Iterator[None]:
    """Float32 of recurrent layers with or without TensorFloat-32; without it in every other product."""
    # flags() rather than an assignment, which torch.testing's own helpers forbid once they are imported.
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with cudnn.flags(allow_tf32=tf32, **kept):
            yield
    finally:
        matmul.allow_tf32 = before


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for what is only compared with: at these sizes more of them cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_check(
    check: Check, targets: Sequence[Target], device: str, select: Callable[[str], None]
) -> list[Outcome]:
    """Run a check on every target. select(name) switches to it, before anything fused runs."""
    outcomes = [Outcome(check, target.name) for target in targets]
    sizes = CUDA_SIZES if device != "cpu" else VARIANT_SIZES if check.variant else SIZES
    for size in sizes:
        if not any(target.takes(check, size) for target in targets):
            continue
        data = make_data(check, size, device)
        # Of what draws masks in training, evaluation is something else; of everything else it is the same.
        expected = {
            training: _expected(data, device, training)
            for training in (True, False)[: 1 + draws(check.variant)]
        }
        for outcome, target in zip(outcomes, targets, strict=True):
            if not target.takes(check, size):
                continue
            select(target.name)
            for *_, own, refused in expected.values():
                outcome.torch_error = outcome.torch_error or refused
                for name, found in own.items():
                    outcome.record(f"torch_{name.split()[0]}", found, "")
            for mode in MODES:
                if mode == "recompute" and (check.path == "cells" or check.cell in SCANS):
                    continue
                try:
                    outcome.runs += 1
                    ours = run_functional(data, data.x.dtype, target.backend, mode)
                except Exception as error:  # a failure is a result here
                    outcome.error = _describe(error)
                    continue
                exact, theirs, *_ = expected.get(mode != "inference", expected[True])
                with _one_thread():
                    _compare(
                        outcome, ours, exact, theirs, f"T,B,I,H = {','.join(map(str, size[:4]))}, {mode}"
                    )
    return [outcome for outcome in outcomes if outcome.runs]


def _expected(data: Data, device: str, training: bool) -> tuple[dict, dict, dict, str]:
    """Of one size: the exact results, torch.nn's, how far those are from exact, and what torch.nn raised."""
    mode = "training" if training else "inference"
    with _one_thread():
        exact = run_functional(data, torch.float64, "reference", mode)
        try:
            theirs, refused = run_torch(data, mode), ""
        except RuntimeError as error:  # a type or shape that this cuDNN does not have
            if device == "cpu":
                raise
            theirs, refused = {}, _describe(error)
        return exact, theirs, {name: distance(found, exact[name]) for name, found in theirs.items()}, refused


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _compare(outcome: Outcome, ours: dict, exact: dict, theirs: dict, where: str) -> None:
    """Take the errors of one run into an outcome."""
    check = outcome.check
    for name, tensor in ours.items():
        kind = name.split()[0]
        allowed = check.torch_slack * getattr(check.tolerance, kind)
        outcome.record(kind, distance(tensor, exact[name]), f"{where}, {name}")
        if name in theirs:
            outcome.record("from_torch", distance(tensor, theirs[name]) / allowed, f"{where}, {name}")


def verify(
    wanted: Sequence[Check],
    isas: Sequence[str] = (),
    device: str = "cpu",
    tiers: Sequence[str] = (),
    progress: Callable[[str, int], None] = lambda title, step: None,
    beside_torch: bool = True,
) -> list[Outcome]:
    """Run the checks on the CPU's instruction sets, or on the tiers of a GPU.

    Args:
        isas: instruction sets; all that can run here by default. The one in use is restored afterwards.
        tiers: "auto" and those of the CUDA kernels; all by default. What a tier cannot take is left out.
        progress: called with a title and 0 before a check, with "" and 1 after it.
        beside_torch: whether float32's errors are compared with torch.nn's, on many inputs, which takes most
            of the time.
    """
    from .._ops import library

    on_cpu = device == "cpu"
    if on_cpu:
        targets = [Target(isa) for isa in isas or library.available_cpu_isas()]
    else:
        targets = cuda_targets(device, tiers)
    before = library.cpu_isa()
    outcomes = []
    try:
        for check in wanted:
            progress(f"{check.name} {check.dtype}", 0)
            with _float32_as(tf32=check.dtype == TF32):
                found = run_check(check, targets, device, library.set_cpu_isa if on_cpu else lambda _: None)
            if on_cpu and beside_torch and check.dtype == "float32":
                ran = [o for o in found if not o.error]
                # A variant's reference takes its steps one by one, on both sides of the comparison.
                seeds = _accuracy.SEEDS // 4 if check.variant else _accuracy.SEEDS
                measured = _accuracy.measure(check, [o.target for o in ran], library.set_cpu_isa, seeds)
                for outcome in ran:
                    outcome.accuracy = measured[outcome.target]
            outcomes += found
            progress("", 1)
    finally:
        library.set_cpu_isa(before)
    return outcomes
