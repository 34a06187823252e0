"""What a report says of a GPU run: where cuDNN wins, its regimes, ratios, the others, a step's floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import cudnn, step_floor, targets
from ..cases import Case
from ..contenders.registry import CUDA_PEERS, NAMES
from ..results import case_of
from . import planes
from .document import Block, Bullets, Heading, Table, Text

#: Batches of the table of microseconds a step.
STEP_BATCHES = (1, 16, 64, 256)


def on_gpu(run: dict) -> list[dict]:
    return [r for r in run["results"] if case_of(r).device.startswith("cuda")]


def _gpu(run: dict) -> dict | None:
    """Properties of the GPU, as the planner takes them."""
    devices = run["machine"]["devices"]
    return devices[0].get("properties") if devices else None


def _ratios(results: Sequence[dict]) -> list[tuple[Case, float]]:
    found = ((case_of(r), targets.ratio(r, targets.TORCH)) for r in results)
    return [(case, value[0]) for case, value in found if value is not None]


# Where cuDNN wins


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def losses(results: Sequence[dict]) -> list[str]:
    """A line for each kind of work with cases in which torch.nn is faster, the worst first."""
    groups: dict[tuple[str, int], list[tuple[Case, float]]] = {}
    for case, value in _ratios(results):
        groups.setdefault((case.group, case.T), []).append((case, value))
    found = []
    for (group, T), timed in groups.items():
        lost = [(c, v) for c, v in timed if v < planes.EVEN]
        if not lost:
            continue
        worst_case, worst = min(lost, key=lambda t: t[1])
        dtype = " float32" if worst_case.dtype == "float32" else ""  # groups name the others
        text = (
            f"**{group}{dtype}, T={T}**: down to {worst:.2f}x (B={worst_case.B}, H={worst_case.H}), "
            f"in {len(lost)} of {targets.plural(len(timed), 'case')}, B {_span([c.B for c, _ in lost])}, "
            f"H {_span([c.H for c, _ in lost])}"
        )
        found.append((worst, text))
    return [text for _, text in sorted(found)]


def where_cudnn_wins(results: Sequence[dict]) -> list[Block]:
    count, lines = len(_ratios(results)), losses(results)
    if not lines:
        return [Text(f"Nowhere: in none of the {count} cases of this run was torch.nn faster.")]
    lost = sum(value < planes.EVEN for _, value in _ratios(results))
    return [Text(f"In {lost} of the {count} cases of this run torch.nn was faster:"), Bullets(lines)]


# cuDNN's regimes


def regime_table(results: Sequence[dict], gpu: dict | None) -> Table:
    """Ratios by the algorithm that torch.nn asks cuDNN for."""
    options = {"capability": gpu["compute_capability"], "sms": gpu["sms"]} if gpu else {}
    groups: dict[tuple[bool, str], list] = {}
    for case, value in _ratios(results):
        name = cudnn.regime(case, **options)
        groups.setdefault((case.training, name), []).append(((case.B, case.H), value))
    rows = [
        [f"{name}, {'training' if training else 'inference'}", *planes.spread(ratios)]
        for (training, name), ratios in sorted(groups.items())
    ]
    return Table(["cuDNN's algorithm", *planes.SPREAD], rows)


# Microseconds a step


@dataclass(frozen=True)
class Step:
    """A case's time a step, microseconds, by contender, and its floor."""

    case: Case
    us: dict[str, float]
    floor: step_floor.Floor


def steps(run: dict) -> list[Step]:
    """Single layers in one direction that fastrnn ran, with their floors; [] where the GPU is not known."""
    gpu = _gpu(run)
    if gpu is None:
        return []
    peaks = {entry["dtype"]: max(entry["flops"].values()) for entry in run["limits"] if entry["flops"]}
    found = []
    for result in on_gpu(run):
        case = case_of(result)
        if (case.path, case.layers, case.directions) != ("layers", 1, 1):
            continue
        us = {k: t["median_s"] / case.T * 1e6 for k, t in result["contenders"].items()}
        if "fastrnn" in us:
            found.append(
                Step(case, us, step_floor.floor(case, gpu, run.get("latency"), peaks.get(case.dtype)))
            )
    return found


def step_table(found: Sequence[Step]) -> Table:
    rows = []
    for step in found:
        floor = step.floor
        torch = step.us.get("torch")
        source = "measured" if floor.measured else "published"
        bound = f"exchange, {floor.tier}, {source}" if floor.bound == "exchange" else floor.bound
        rows.append(
            [
                f"{step.case.group} {step.case.shape}",
                f"{step.us['fastrnn']:.2f}",
                f"{torch:.2f}" if torch else "–",
                f"{floor.us:.2f}",
                bound,
                f"{step.us['fastrnn'] / floor.us:.1f}",
                f"{torch / floor.us:.1f}" if torch else "–",
            ]
        )
    columns = [
        "T,B,H",
        "fastrnn, µs a step",
        "torch.nn",
        "floor",
        "set by",
        "fastrnn over it",
        "torch.nn over it",
    ]
    return Table(columns, rows)


def floor_source(run: dict) -> str:
    """Where the floor comes from, in words."""
    published = ", ".join(f"{k} {v:.2f}" for k, v in step_floor.PUBLISHED.items())
    latency = (
        "latencies measured on this GPU by tests/gpu/latency.cu, published ones where it has none"
        if run.get("latency")
        else "published latencies, which are of others' programs (none measured on this GPU are at hand)"
    )
    return (
        "The floor is the longest of: the exchange of h by the cheapest tier that can run the case, and "
        "reading it; the bytes that the sequence moves through the GPU's memory; its arithmetic at the "
        f"measured rate of a matrix product. It rests on {latency}. Published, µs: {published} (a graph's "
        f"kernel); L2 {step_floor.L2_RATE / 1e12:g} TB/s, memory {step_floor.MEMORY_RATE / 1e12:g} TB/s."
    )


# The others


def peer_table(results: Sequence[dict]) -> Table | None:
    """How many times faster fastrnn is than each of the others, torch.nn among them; None without any."""
    keys = [k for k in (*CUDA_PEERS, "reference") if any(k in r["contenders"] for r in results)]
    if not keys:
        return None
    rows = []
    for r in results:
        times = r["contenders"]
        if "fastrnn" not in times or not any(k in times for k in keys):
            continue
        case, ours = case_of(r), times["fastrnn"]["median_s"]
        ratios = [f"{times[k]['median_s'] / ours:.2f}x" if k in times else "–" for k in ("torch", *keys)]
        rows.append([f"{case.group} {case.shape}", f"{ours * 1e3:.3g}", *ratios])
    return Table(["T,B,H", "fastrnn, ms", *(NAMES[k] for k in ("torch", *keys))], rows)


def not_timed(run: dict) -> list[str]:
    """Cases that were dropped, by reason, and contenders that failed."""
    by_reason: dict[str, list[dict]] = {}
    for entry in run.get("dropped", ()):
        by_reason.setdefault(entry["why"], []).append(entry)
    return [
        f"{targets.plural(len(entries), 'case')} ({why}): {', '.join(case_of(e).title for e in entries[:3])}"
        + (" …" if len(entries) > 3 else "")
        for why, entries in by_reason.items()
    ]


def blocks(run: dict) -> list[Block]:
    """Everything that a GPU run has beyond times; [] for a run on the CPU."""
    results = on_gpu(run)
    if not results:
        return []
    out: list[Block] = [Heading("Where cuDNN wins"), *where_cudnn_wins(results)]
    if missing := not_timed(run):
        out += [Text("Not timed:"), Bullets(missing)]
    if _ratios(results):
        out += [Heading("By cuDNN's regimes"), regime_table(results, _gpu(run))]
    if table := peer_table(results):
        out += [Heading("Times faster than the others"), table]
    if found := planes.read(results):
        out += [Heading("Times faster than torch.nn"), planes.summary(found)]
        out += [planes.table(p) for p in found if planes.is_map(p)]
    if shown := [s for s in steps(run) if s.case.cell == "lstm" and s.case.B in STEP_BATCHES]:
        dtype = min((s.case.dtype for s in shown), key=("float16", "bfloat16", "tf32", "float32").index)
        shown = [s for s in shown if s.case.dtype == dtype]
        out += [Heading("Microseconds a step, and the floor"), Text(floor_source(run)), step_table(shown)]
    return out
