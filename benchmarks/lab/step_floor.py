"""The least time that a step can take on a GPU, and where the figures come from.

A step cannot end before every SM that has a part of the recurrent weights has read the new h. So it takes
the longest of
    exchange     h's way to the other SMs, and then reading it, from shared memory or the L2 cache;
    memory       what the sequence reads and writes in the GPU's memory, a step's share of it;
    arithmetic   at the rate of a matrix product that the run has measured.
Backward exchanges the gradient of h in the same way. The exchange is that of the cheapest tier that can run
the case: within an SM shared memory's latency, in a cluster a push into other SMs' shared memory, over the
grid a flag in the L2 cache; a step at a time it is two launches of a graph, and the weights are read anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastrnn import _C

from .cases import GATES, Case
from .problem import flops, weight_bytes

#: Microseconds, published for Hopper: clusters' and shared memory's latency from microbenchmarks (a load of
#: 181-213 cycles from another SM, 33 from its own, at 1.755 GHz), flags over atomics 1.04-1.31 on an H200, a
#: kernel in a graph 1.3. The least of each: this is a floor.
PUBLISHED = {"one_cta": 33 / 1755, "cluster": 181 / 1755, "grid": 1.04, "launch": 1.3}
#: Bytes a second, published: the L2 cache of an H200, the memory of an H100 SXM, and shared memory of one SM
#: (128 bytes a cycle).
L2_RATE, MEMORY_RATE, SHARED_RATE = 9.7e12, 3.35e12, 128 * 1.755e9
#: Kernels a step of the stepwise tier: a product and the cell.
LAUNCHES = 2


@dataclass(frozen=True)
class Floor:
    """Microseconds a step. tier: whose exchange it is. measured: its latency is of this machine."""

    us: float
    exchange_us: float
    memory_us: float
    arithmetic_us: float
    tier: str
    measured: bool

    @property
    def bound(self) -> str:
        """What sets it."""
        parts = {"exchange": self.exchange_us, "memory": self.memory_us, "arithmetic": self.arithmetic_us}
        return max(parts, key=parts.get)


def exchange_us(tier: str, ctas: int, latency: dict | None) -> tuple[float, bool]:
    """A tier's exchange among so many CTAs: of latency.cu's JSON where it has it, else published."""
    latency = latency or {}
    found = None
    if tier == "cluster":
        found = latency.get("clusters", {}).get(str(ctas), {}).get("push8_us")
    elif tier == "grid":
        # Measured with 2 to 128 CTAs: those with no more than it has.
        flags = {int(n): us for n, us in latency.get("flag_exchange_us", {}).items() if us > 0}
        found = max((us for n, us in flags.items() if n <= max(ctas, 2)), default=None)
    elif tier == "stepwise":
        found = latency.get("graph_launch_us")
        return LAUNCHES * (found or PUBLISHED["launch"]), bool(found)
    return (found, True) if found else (PUBLISHED[tier], False)


def floor(case: Case, gpu: dict, latency: dict | None = None, peak: float | None = None) -> Floor:
    """The floor of a single layer in one direction.

    Args:
        gpu: properties as machine.devices() tells them. latency: latency.cu's JSON. peak: operations a second
            of a matrix product in this dtype; without it arithmetic sets no bound.
    """
    element = {"float16": 2, "bfloat16": 2}.get(case.dtype, 4)
    state = case.B * case.H * element
    gates = GATES[case.cell] * state
    # Forward reads the gates' inputs and writes h; in training it writes gates and c besides, and backward
    # reads those and the gradient of h, and writes the gates' gradients.
    moved = gates + state
    if case.training:
        moved += gates + 4 * case.B * case.H + (gates + 4 * case.B * case.H + state) + gates
    memory_us = moved / MEMORY_RATE * 1e6
    arithmetic_us = flops(case) / case.T / peak * 1e6 if peak else 0.0
    best: Floor | None = None
    for tier in ("one_cta", "cluster", "grid", "stepwise"):
        passes = passes_of(case, gpu, tier)
        if passes is None:
            continue
        spans, measured = [], []
        for one in passes:
            ctas = one.get("cluster") if tier == "cluster" else one.get("ctas", 0) // one.get("replicas", 1)
            exchange, known = exchange_us(tier, ctas or 0, latency)
            spans.append(exchange + _reading_us(case, tier, one, element))
            measured.append(known)
        us = max(sum(spans), memory_us, arithmetic_us)
        if best is None or us < best.us:
            best = Floor(us, sum(spans), memory_us, arithmetic_us, tier, all(measured))
    return best


def _reading_us(case: Case, tier: str, plan: dict, element: int) -> float:
    """What every SM reads in a step: h of its rows; where it keeps no weights, those."""
    if tier == "stepwise":
        return weight_bytes(case)[0] / L2_RATE * 1e6
    h = min(case.B, 8 * plan.get("row_tiles", 1)) * case.H * element
    return h * plan["ctas"] / L2_RATE * 1e6 if tier == "grid" else h / SHARED_RATE * 1e6


def passes_of(case: Case, gpu: dict, tier: str) -> list[dict] | None:
    """The plans of a case's passes on one tier, in training backward too; None where it cannot run."""
    plan = _C.plan(
        device="cuda",
        cell="rnn_tanh" if case.cell == "rnn" else case.cell,
        **{"T": case.T, "B": case.B, "I": case.I, "H": case.H},
        dtype=case.storage,
        training=case.training,
        directions=case.directions,
        gpu=gpu,
        tf32=case.dtype == "tf32",
        tier=tier,
    )
    passes = [plan, plan["backward"]] if case.training else [plan]
    return passes if all(p["possible"] for p in passes) else None
