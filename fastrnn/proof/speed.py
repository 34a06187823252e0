"""How much faster fastrnn is than torch.nn, here: the same layers, weights and data, timed in turns.

A short proof. The repository's benchmarks/ hold the long one: other libraries, the machine's limits, reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .. import modules
from .timing import AGREEMENT, MIN_ROUNDS, Contender, disagreement, interleave

CELLS = ("lstm", "gru", "rnn")
DTYPES = ("float32", "float64", "bfloat16", "float16")
WORK = ("inference", "training")
#: T, B, H where nothing else is asked for: one step, one sequence, and batches of two sizes.
SHAPES = ((1, 1, 256), (100, 1, 256), (100, 16, 128), (50, 32, 256))
#: Seconds of timing where nothing else is asked for.
BUDGET_S = 20.0
#: The same of a quick look.
QUICK_SHAPE, QUICK_BUDGET_S = (100, 16, 128), 3.0


@dataclass(frozen=True)
class Case:
    """One layer in one direction, with as many inputs as hidden units. training: with the gradients of the
    input and of every weight."""

    cell: str
    training: bool
    T: int
    B: int
    H: int
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def group(self) -> str:
        """Cases of a group are told together: "LSTM inference"."""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.cell.upper()} {WORK[self.training]}{dtype}"

    @property
    def title(self) -> str:
        return f"{self.group} {self.T},{self.B},{self.H}"


@dataclass(frozen=True)
class Outcome:
    """A case's times.

    Attributes:
        times: of "fastrnn" and "torch", as timing.Timing.to_dict() has them; {} where the numbers differ, or
            something failed.
        difference: of output and gradients, relative to the largest value; NaN where there is none.
        error: what failed, "" where nothing did.
    """

    case: Case
    times: dict[str, dict]
    difference: float
    error: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.times)

    @property
    def ratio(self) -> float:
        """Times faster than torch.nn."""
        return self.times["torch"]["median_s"] / self.times["fastrnn"]["median_s"]

    def to_dict(self) -> dict:
        return asdict(self) | {"ratio": self.ratio if self.ok else None}


def cases(
    cells: Sequence[str] = (),
    shapes: Sequence[tuple[int, int, int]] = (),
    dtypes: Sequence[str] = (),
    work: Sequence[str] = (),
    device: str = "cpu",
) -> list[Case]:
    """Every combination, of everything that a filter leaves open; float32 alone where no dtype is named."""
    return [
        Case(cell, name == "training", T, B, H, dtype, device)
        for dtype in dtypes or DTYPES[:1]
        for cell in cells or CELLS
        for name in work or WORK
        for T, B, H in shapes or SHAPES
    ]


def contender(key: str, module: nn.RNNBase, case: Case, x: Tensor, grad: Tensor) -> Contender:
    """A module's work on x, whose output gets a gradient in training; in inference to be called within
    torch.inference_mode()."""
    sync = torch.cuda.synchronize if x.is_cuda else lambda: None
    label = {"fastrnn": "fastrnn", "torch": "torch.nn"}[key]
    if not case.training:
        module.eval()

        def forward() -> Tensor:
            return module(x)[0]

        def output() -> dict[str, Tensor]:
            with torch.inference_mode():
                return {"output": forward().clone()}

        return Contender(key, label, forward, output, sync=sync)

    x, weights = x.clone().requires_grad_(), list(module.parameters())

    def prepare() -> None:
        """What an optimiser leaves behind: no gradients, and weights that count as changed."""
        x.grad = None
        for w in weights:
            w.grad = None
        with torch.no_grad():
            for w in weights:
                w.view(-1)[:1].add_(0)

    def step() -> Tensor:
        output = module(x)[0]
        output.backward(grad)
        return output

    def result() -> dict[str, Tensor]:
        prepare()
        output = step().detach()
        names = ("x", *(name for name, _ in module.named_parameters()))
        gradients = {f"grad_{n}": t.grad.clone() for n, t in zip(names, (x, *weights), strict=True)}
        return {"output": output, **gradients}

    return Contender(key, label, step, result, prepare, sync=sync)


def measure(case: Case, budget_s: float, min_rounds: int = MIN_ROUNDS) -> Outcome:
    """Compare, then time. An error of either library is an outcome, not the end of the run."""
    difference = math.nan
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            theirs = getattr(nn, case.cell.upper())(case.H, case.H)
            x = torch.randn(case.T, case.B, case.H)
            # Of a size that keeps the gradients of the weights near 1, whatever the case.
            grad = torch.randn(case.T, case.B, case.H) / (case.T * case.B) ** 0.5
        dtype = getattr(torch, case.dtype)
        theirs, x, grad = (t.to(case.device, dtype) for t in (theirs, x, grad))
        ours = getattr(modules, case.cell.upper())(case.H, case.H, device=case.device, dtype=dtype)
        ours.load_state_dict(theirs.state_dict())
        both = [contender("fastrnn", ours, case, x, grad), contender("torch", theirs, case, x, grad)]
        difference = disagreement(both[0].result(), both[1].result())
        if not difference <= AGREEMENT[case.dtype]:
            return Outcome(case, {}, difference, f"differs from torch.nn by {difference:.1e}")
        settle = torch.get_num_threads() > 1 and not x.is_cuda
        # Entered once, as a server does: entering it costs torch more than a step of a small layer.
        with torch.inference_mode(not case.training):
            timings = interleave(both, budget_s=budget_s, min_rounds=min_rounds, hurry=True, settle=settle)
    except Exception as error:
        return Outcome(case, {}, difference, f"{type(error).__name__}: {error}".splitlines()[0])
    return Outcome(case, {key: timing.to_dict() for key, timing in timings.items()}, difference)


def geomean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def prove(
    chosen: Sequence[Case],
    budget_s: float = BUDGET_S,
    advance: Callable[[str, int], None] = lambda title, steps: None,
) -> list[Outcome]:
    """Measure every case on torch's number of threads, with an equal part of the budget each.

    On a GPU float32 is float32 for both: cuDNN and cuBLAS may not round to TensorFloat-32 meanwhile.
    """
    outcomes = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for case in chosen:
            advance(case.title, 0)
            outcomes.append(measure(case, budget_s / len(chosen)))
            advance("", 1)
    return outcomes
