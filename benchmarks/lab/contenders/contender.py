"""What every contender has: rows of the registry, and a call on a case's problem."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn.proof import machine
from fastrnn.proof.timing import Contender

from ..cases import BESIDE, Case
from ..problem import Problem


class Unsupported(Exception):
    """A contender does not do this case, or is not installed. The message says why."""


@dataclass(frozen=True)
class Row:
    """A contender's row of the registry.

    Attributes:
        key: short name, for options and results. name: its name in tables and pictures.
        build: makes it for a problem and a number of threads; Unsupported where it does not do the case.
        color, marker: its look in pictures.
        packages: what it imports, whose versions are told.
        device: "cpu" or "cuda" where it is one of the other libraries there; "" for those of every run.
        training: whether it can train. variants: whether it does those of the cells' variants.
        own: which of the cells that torch.nn has not it does, beside torch.nn's; alone: and no others.
        loses_digits: whether its method does, so much that float32 does not show that it computes the same;
            then float64 has to.
        compiling_s: seconds that it may take for a first call, or for a sample that compiles again; 0 where
            it compiles nothing.
    """

    key: str
    name: str
    build: Callable[[Problem, int], Contender]
    color: str
    marker: str
    packages: tuple[str, ...] = ()
    device: str = ""
    training: bool = True
    variants: bool = False
    own: tuple[str, ...] = ()
    alone: bool = False
    loses_digits: bool = False
    compiling_s: float = 0.0


def missing(packages: Iterable[str]) -> str | None:
    """The first of these packages that is not installed."""
    return next((p for p in packages if importlib.util.find_spec(p) is None), None)


def require(*packages: str) -> None:
    if package := missing(packages):
        raise Unsupported(f"{package} is not installed")


def labelled(name: str, package: str) -> str:
    """A library's name with its version."""
    return f"{name} {machine.installed([package]).get(package, '')}".strip()


def only(problem: Problem, cells: Sequence[str], dtypes: Sequence[str]) -> None:
    """Unsupported where the case is no single layer in one direction of these cells and dtypes."""
    case = problem.case
    if case.path != "layers" or case.layers > 1 or case.directions > 1 or case.cell in BESIDE:
        raise Unsupported("single layers only")
    if case.cell not in cells:
        raise Unsupported(f"{' and '.join(c.upper() for c in cells)} only")
    if case.dtype not in dtypes:
        raise Unsupported(f"{' and '.join(dtypes)} only")


def only_own(problem: Problem, cell: str) -> None:
    """Unsupported where the case is no layer of this one cell."""
    if problem.case.cell != cell:
        raise Unsupported(f"{cell} only")


def leaf(weight: Tensor, problem: Problem) -> Tensor:
    """A weight of one's own, trained where the case trains."""
    return weight.contiguous().clone().requires_grad_(problem.case.training)


def own_copy(module: nn.Module) -> nn.Module:
    """A copy with weights of its own, in one piece of memory: cuDNN would gather what lies apart, as a bare
    copy's weights do, at every call."""
    copied = copy.deepcopy(module)
    if isinstance(copied, nn.RNNBase):
        copied.flatten_parameters()
    return copied


def run(module: nn.Module, problem: Problem, x: Tensor):
    """A module's call on the case's input: packed, with a state, or as it is."""
    if problem.lengths is not None:
        return module(pack_padded_sequence(x, problem.lengths))
    if problem.case.path != "cells":
        return module(x)
    state = problem.state if problem.case.cell == "lstm" else problem.state[0]
    return module(x, state)


def output(result) -> Tensor:
    """The tensor that gradients start from: every step's output, a packed sequence's rows, a cell's h."""
    while not isinstance(result, Tensor):
        result = result.data if isinstance(result, PackedSequence) else result[0]
    return result


def synchronize(case: Case) -> Callable[[], None]:
    return torch.cuda.synchronize if case.device.startswith("cuda") else lambda: None


def mode(case: Case) -> contextlib.AbstractContextManager:
    """What whoever times a case enters once for all calls, as a server does: entering it at each call would
    add two to three microseconds of torch's own to every contender that is a torch module."""
    return torch.inference_mode(not case.training)


@contextlib.contextmanager
def _masks(case: Case) -> Iterator[None]:
    """Draws the same masks of a variant for whoever's results are compared."""
    if not case.variant:
        yield
        return
    with torch.random.fork_rng([case.device] if case.device != "cpu" else []):
        torch.manual_seed(0)
        yield


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Of what torch.nn has not. First the two whose gradients are compared: of an SRU those that every
    version has under the same name and in the same layout."""
    if not hasattr(module, "rnn_lst"):
        return list(module.parameters())
    compared = [module.rnn_lst[0].weight_c, module.rnn_lst[0].bias]
    return [*compared, *(p for p in module.parameters() if all(p is not c for c in compared))]


def torch_contender(
    key: str,
    label: str,
    problem: Problem,
    weights: Iterable[Tensor],
    run: Callable[[Tensor], object],
    *,
    gradients: Callable[[], tuple[Tensor, Tensor]] | None = None,
    batch_first: bool = False,
    **options,
) -> Contender:
    """A contender whose work is run(x), by torch's autograd in training, in inference to be called within
    mode(case). Its output is (T, B, H).

    Args:
        weights: what is trained; w_ih and w_hh first, unless there are gradients.
        gradients: those of w_ih and w_hh in torch.nn's layout, where the weights have another.
        batch_first: run's x is (B, T, I).
    """
    weights = list(weights)
    x = problem.x.transpose(0, 1).contiguous() if batch_first else problem.x

    if not problem.case.training:

        def call():
            return run(x)

        def result():
            with _masks(problem.case), mode(problem.case):
                return {"y": output(call())}

        return Contender(key, label, call, result, sync=synchronize(problem.case), **options)

    x = x.clone().requires_grad_()
    incoming: list[Tensor] = []

    def prepare():
        """What an optimiser leaves behind: no gradients, and weights that count as changed."""
        x.grad = None
        for w in weights:
            w.grad = None
        with torch.no_grad():
            for w in weights:
                w.view(-1)[:1].add_(0)

    def backward(y):
        if not incoming:  # laid out as the output is, so that nobody has to copy it
            incoming.append(torch.empty_like(y).copy_(problem.grad))
        y.backward(incoming[0])

    def call():
        backward(output(run(x)))

    def result():
        prepare()
        with _masks(problem.case):
            y = output(run(x))
        backward(y)
        grad_w_ih, grad_w_hh = (w.grad for w in weights[:2]) if gradients is None else gradients()
        return {
            "y": y.detach(),
            "grad_x": (x.grad.transpose(0, 1) if batch_first else x.grad).clone(),
            "grad_w_ih": grad_w_ih.clone(),
            "grad_w_hh": grad_w_hh.clone(),
        }

    return Contender(key, label, call, result, prepare, sync=synchronize(problem.case), **options)
