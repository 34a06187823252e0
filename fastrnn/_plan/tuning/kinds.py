"""Kinds of layers: those that share an outcome of tuning, and the candidates that could run them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

from ..._ops import library
from .. import gpus

PASSES = ("forward", "backward")
ROWS = ("full", "packed", "masked")
#: Tiers that have to be proven, clusters a size each, and where x's product runs beside the loop as tiers of
#: their own. What is left, stepwise, is what every layer can.
TIERS = ("one_cta", "cluster_4", "cluster_8", "cluster_16", "grid", *library.OVERLAPS, "stepwise_graph")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A layer to tune, or a stack of them, which stands for all with its key.

    T, B, I, H, directions: of one layer; dtype without its "torch."; tf32: whether float32 products may
    round; rows: "full", "packed" or "masked", which stands for lengths and resets. layers: of a stack, whose
    lowest has I features. P: units of an LSTM's projection, of a layer by itself.
    """

    cell: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    directions: int = 1
    dtype: str = "float32"
    tf32: bool = False
    training: bool = False
    rows: str = "full"
    layers: int = 1
    P: int = 0

    @functools.cached_property
    def key(self) -> str:
        """C++'s name of the kind (csrc/plan/trust.h): what its planner looks for. Of stacks it knows
        nothing, whose name is the lowest layer's with their number behind it."""
        asked = dataclasses.asdict(self)
        layers = asked.pop("layers")
        return library.trust_key(**asked) + (f" L={layers}" if layers > 1 else "")

    @property
    def precision(self) -> str:
        return "tf32" if self.tf32 and self.dtype == "float32" else self.dtype

    @property
    def passes(self) -> tuple[str, ...]:
        return PASSES if self.training else PASSES[:1]


class Candidate(NamedTuple):
    """A tier for one pass of a kind."""

    tier: str
    which: str

    @property
    def name(self) -> str:
        return f"{self.tier} {self.which}"


def candidates(kind: Kind, gpu: gpus.Gpu) -> Iterator[Candidate]:
    """The tiers that could take each pass of a kind on a GPU: the plan's word, which is arithmetic."""
    for tier in TIERS:
        plan = library.plan(
            device="cuda",
            cell=kind.cell,
            **{"T": kind.T, "B": kind.B, "I": kind.I, "H": kind.H, "P": kind.P},
            directions=kind.directions,
            dtype=kind.dtype,
            training=True,
            gpu=gpu.properties(),
            tf32=kind.tf32,
            tier=tier,
        )
        for which, one in zip(PASSES, (plan, plan["backward"]), strict=True):
            if which in kind.passes and one["possible"]:
                yield Candidate(tier, which)


#: What the persistent kernels compute in, and what the stepwise ones do beside it.
PERSISTENT_DTYPES = ("float32", "bfloat16", "float16")
DTYPES = (*PERSISTENT_DTYPES, "float64")


class Stack(NamedTuple):
    """What is known of stacked layers before they have kinds. dtype without its "torch."."""

    cell: str
    T: int
    B: int
    inputs: int
    hidden: int
    proj: int
    directions: int
    num_layers: int
    dtype: str
    tf32: bool
    training: bool
    packed: bool

    @property
    def rounded(self) -> bool:
        """Whether products round to TensorFloat-32."""
        return self.tf32 and self.dtype == "float32"


def of_stack(stack: Stack) -> list[Kind]:
    """The kinds of a stack's layers, each once; none where no kernel that has to be proven computes any."""
    if stack.dtype not in DTYPES:
        return []
    features = {stack.inputs}
    features |= {stack.directions * (stack.proj or stack.hidden)} if stack.num_layers > 1 else set()
    sizes = stack.hidden, stack.directions
    how = stack.dtype, stack.rounded, stack.training, "packed" if stack.packed else "full"
    return [Kind(stack.cell, stack.T, stack.B, n, *sizes, *how, P=stack.proj) for n in sorted(features)]
