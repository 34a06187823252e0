"""Cases for the SRU's raw ops (sru_forward, sru_backward) on any device, compared with the reference.

As in layer_cases.py the ops come from a torch.ops namespace: the CPU's, a GPU's, the emulator's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from layer_cases import DTYPES, PACKED, spread
from tolerances import TOLERANCES, worst_of
from torch import Tensor

from fastrnn import reference

GRAD_U, GRAD_X, GRAD_WEIGHTS, GRAD_C0, GRAD_V = 1, 2, 4, 8, 16
ALL = GRAD_U | GRAD_X | GRAD_WEIGHTS | GRAD_C0 | GRAD_V
#: What may be differentiated, in the order of the ops' arguments and of sru_backward's results.
INPUTS = ("u", "x", "weight_c", "bias", "c0", "v")


@dataclass(frozen=True)
class Case:
    """One scan. skip is the skip term: "x" (K = 3), "u" (K = 4), "none". With `sizes` it is packed."""

    L: int = 5
    B: int = 3
    O: int = 6  # noqa: E741  the letter of the shapes everywhere
    skip: str = "x"
    D: int = 1
    v: bool = False
    pad: bool = False
    drop: bool = False
    tanh: bool = False
    scale: float = 1.25
    dtype: torch.dtype = torch.float64
    sizes: tuple[int, ...] | None = None
    reset: bool = False  # some steps begin a new sequence
    states: bool = False  # every step's c has a gradient
    strided: bool = False

    def __str__(self) -> str:
        """A test's id: what differs from the plainest case."""
        shape = f"L{self.L}B{self.B}" if self.sizes is None else "packed" + "".join(map(str, self.sizes))
        parts = [f"{shape}O{self.O}", str(self.dtype).removeprefix("torch."), f"skip_{self.skip}"]
        flags = ("v", "pad", "drop", "tanh", "reset", "states", "strided")
        parts += ["bidirectional"] * (self.D == 2) + [name for name in flags if getattr(self, name)]
        return "-".join(parts)

    @property
    def options(self) -> dict:
        return {"use_tanh": self.tanh, "scale": self.scale, "bidirectional": self.D == 2}


@dataclass
class Problem:
    """A case's tensors by name, and a gradient for h and for c."""

    inputs: dict[str, Tensor | None]
    mask_pad: Tensor | None
    drop_mask: Tensor | None
    batch_sizes: Tensor | None
    cotangents: list[Tensor] = field(default_factory=list)
    reset: Tensor | None = None
    grad_cells: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Problem:
        """The same numbers elsewhere: f of every tensor but batch_sizes, which stays on the CPU."""

        def optional(t: Tensor | None) -> Tensor | None:
            return None if t is None else f(t)

        inputs = {name: optional(t) for name, t in self.inputs.items()}
        masks = optional(self.mask_pad), optional(self.drop_mask)
        rest = optional(self.reset), optional(self.grad_cells)
        return Problem(inputs, *masks, self.batch_sizes, [f(g) for g in self.cotangents], *rest)

    @property
    def arguments(self) -> list:
        """The tensors in the order of the ops' arguments."""
        return [*self.inputs.values(), self.mask_pad, self.drop_mask, self.batch_sizes, self.reset]


def problem(case: Case, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (values * scale).to(case.dtype)

    L, B = (len(case.sizes), case.sizes[0]) if case.sizes else (case.L, case.B)
    rows = (sum(case.sizes),) if case.sizes else (L, B)
    inputs = {
        "u": draw(*rows, 4 if case.skip == "u" else 3, case.O, scale=2.0),
        "x": draw(*rows, case.O) if case.skip == "x" else None,
        "weight_c": draw(2, case.O),
        "bias": draw(2, case.O),
        "c0": draw(B, case.O),
        "v": draw(*rows, 2, case.O) if case.v else None,
    }
    pad = torch.rand((L, B), generator=generator) < 0.3 if case.pad else None
    keep = torch.rand((B, case.O), generator=generator) < 0.75
    drop = (keep / 0.75).to(case.dtype) if case.drop else None
    sizes = torch.tensor(case.sizes) if case.sizes else None
    made = Problem(inputs, pad, drop, sizes, [draw(*rows, case.O), draw(B, case.O)])
    if case.reset:
        made.reset = torch.rand((L, B), generator=generator) < 0.4
    if case.states:
        wide = torch.float64 if case.dtype == torch.float64 else torch.float32
        made.grad_cells = draw(sum(case.sizes) if case.sizes else L * B, case.O).to(wide)
    return made.map(spread) if case.strided else made


def names(case: Case) -> list[str]:
    """Of the results, in the order of expected() and fused()."""
    absent = {"x": case.skip != "x", "v": not case.v}
    return ["h", "c", *["cells"] * case.states, *(f"grad {n}" for n in INPUTS if not absent.get(n))]


def expected(case: Case, p: Problem, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Outputs and every gradient by the reference, that is by torch's own operations."""

    def wide(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().to(dtype)

    leaves = {n: t if t is None else wide(t).requires_grad_() for n, t in p.inputs.items()}
    masks = {"mask_pad": p.mask_pad, "drop_mask": wide(p.drop_mask), "batch_sizes": p.batch_sizes}
    outputs = reference.sru_scan(**leaves, **masks, **case.options, reset=p.reset, keep_cells=case.states)
    present = [t for t in leaves.values() if t is not None]
    cotangents = [*p.cotangents, p.grad_cells][: len(outputs)]
    used = [(o, g.to(dtype)) for o, g in zip(outputs, cotangents, strict=True) if o.requires_grad]
    gradients = torch.autograd.grad([o for o, _ in used], present, [g for _, g in used], allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for t, g in zip(present, gradients, strict=True)]
    return [*(t.detach() for t in outputs), *zeros]


def forward(ops, case: Case, p: Problem, save: bool = True) -> tuple[Tensor, ...]:
    """(h, c, cells) of the op."""
    return ops.sru_forward(*p.arguments, *case.options.values(), save)


def backward(ops, case: Case, p: Problem, cells: Tensor, needs: int = ALL) -> tuple[Tensor, ...]:
    """The gradients of INPUTS by the op."""
    return ops.sru_backward(*p.cotangents, p.grad_cells, *p.arguments, cells, *case.options.values(), needs)


def fused(ops, case: Case, p: Problem) -> list[Tensor]:
    """Outputs and every gradient by the ops."""
    h, c, cells = forward(ops, case, p)
    gradients = backward(ops, case, p, cells)
    present = [g for g, t in zip(gradients, p.inputs.values(), strict=True) if t is not None]
    return [h, c, *[cells.to(case.dtype)] * case.states, *present]


def worst(case: Case, got: list[Tensor], want: list[Tensor]) -> tuple[float, str]:
    """The largest error in units of its tolerance, and where it is. Shapes and dtypes have to be right."""
    return worst_of(names(case), got, want, TOLERANCES[case.dtype], case.dtype)


def check(ops, case: Case, move: Callable[[Tensor], Tensor] = lambda t: t, seed: int = 0) -> None:
    """The ops against the reference, on tensors that `move` has taken where the ops work."""
    p = problem(case, seed)
    ratio, what = worst(case, fused(ops, case, p.map(move)), expected(case, p))
    assert ratio <= 1, f"{case}: {what}"


def grid() -> list[Case]:
    """Every dtype, skip term and direction, padded and packed; each option alone and all together; odd and
    tiny sizes."""
    cases = []
    for dtype in DTYPES:
        for skip in ("x", "u", "none"):
            plain = Case(skip=skip, dtype=dtype)
            cases += [
                plain,
                replace(plain, D=2, O=14, pad=True, drop=True, tanh=True),
                replace(plain, v=True, tanh=True, O=7),
                replace(plain, sizes=PACKED, D=2, v=True, drop=True),
                replace(plain, sizes=PACKED, O=5, tanh=True),
                replace(plain, strided=True, D=2, v=True, pad=True, drop=True),
                replace(plain, reset=True, O=9, L=7),
                replace(
                    plain, reset=True, states=True, D=2, O=14, L=7, pad=True, drop=True, tanh=True, v=True
                ),
                replace(plain, sizes=PACKED, D=2, states=True),
            ]
    for skip in ("x", "u", "none"):
        for dtype in (torch.float64, torch.float32):
            plain = Case(skip=skip, dtype=dtype)
            cases += [
                replace(plain, L=1, B=1, O=1),
                replace(plain, L=1, B=2, O=2, D=2),
                replace(plain, L=70, B=2, O=3, pad=True),
                replace(plain, B=1, O=33, L=4),
                replace(plain, B=2, O=130, L=3, D=2),
                replace(plain, B=70, O=3, L=2),
                replace(plain, sizes=(1, 1, 1), D=2),
                replace(plain, sizes=(4, 4, 4), D=2, strided=True),
            ]
    return cases
