"""What the project set out to reach, and how far a run got: on the CPU, and against cuDNN on Hopper.

A ratio is the other's median over fastrnn's, from the same interleaved run: above 1, fastrnn is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fastrnn.proof import _variants as variants

from . import cudnn, kernel_rate, overhead, scan_rate
from .cases import CELLS, ELEMENTWISE_CELLS, SRU_CELLS, Case, card_name
from .presets import CELL_SHAPES, ELEMENTWISE_SHAPES, NAMED, RANDOM_SHAPES, SHAPES, SRU_SHAPES
from .results import share_of_limit

LATENCY_S = 60e-6
OVERHEAD_S = 40e-6
SCAN = 0.7
SCALING = 1.7
MEMORY = 1.0
#: Of the machine's limit, by kernel_rate's names.
KERNELS = {kernel_rate.FORWARD: 0.88, kernel_rate.BACKWARD: 0.84, kernel_rate.READING: 0.85}
CROWD = 2.0


@dataclass(frozen=True)
class Target:
    """Ratios wanted over a group of cases; geomean and worst are None where a line is for information.

    Attributes:
        against: contenders; the fastest of those that ran a case is what counts in it.
        device: "cpu" or "cuda".
        drawn: about RANDOM_SHAPES instead of the named ones.
        ours: which of fastrnn's contenders is compared with them.
        avx512: the geometric mean that is wanted of AVX-512's kernels, where it is another.
    """

    name: str
    includes: Callable[[Case], bool]
    against: tuple[str, ...]
    geomean: float | None
    worst: float | None
    device: str = "cpu"
    drawn: bool = False
    ours: str = "fastrnn"
    avx512: float | None = None

    def wanted(self, isa: str) -> float | None:
        """The geometric mean that is wanted of an instruction set's kernels."""
        return self.avx512 if self.avx512 is not None and isa.startswith("avx512") else self.geomean


def _layers(cell: str, training: bool) -> Callable[[Case], bool]:
    return lambda c: (c.path, c.cell, c.training, c.variant) == ("layers", cell, training, "")


def _path(path: str, training: bool) -> Callable[[Case], bool]:
    return lambda c: c.path == path and c.training == training


def _sru(training: bool) -> Callable[[Case], bool]:
    """The shape that the goals for SRU were set on."""
    return lambda c: c.cell == "sru" and c.training == training and (c.T, c.B, c.H) == (100, 32, 512)


#: Where the goal for MinGRU was set.
LONG = (1024, 16, 512)


def _long(cell: str) -> Callable[[Case], bool]:
    return lambda c: c.cell == cell and c.training and (c.T, c.B, c.H) == LONG


TORCH = ("torch",)


#: What every processor is to reach against torch.nn in inference and in training, with no case below 1.0,
#: and where it is more for AVX-512's kernels.
EVERYWHERE = {"lstm": (1.3, 1.3), "gru": (1.9, 2.3), "rnn": (2.2, 2.2)}
AVX512 = {"lstm": (1.35, 1.35)}


def _everywhere(cell: str, training: bool, drawn: bool = False) -> Target:
    """On the named shapes or on the random ones."""
    work = f"{cell.upper()} {'training' if training else 'inference'}"
    name = f"{work} on random shapes, against torch.nn" if drawn else f"– {work}, on every processor"
    wide = AVX512[cell][training] if cell in AVX512 else None
    wanted = EVERYWHERE[cell][training]
    return Target(name, _layers(cell, training), TORCH, wanted, 1.0, drawn=drawn, avx512=wide)


#: What an option may cost at VARIANT_SHAPES: the variant's time over the plain layer's.
COSTS = {
    ("lstm", "norm"): 1.25,
    ("lstm", "zoneout"): 1.15,
    ("lstm", "recurrent_dropout"): 1.15,
    ("lstm", "peephole"): 1.1,
    ("gru", "reset_before"): 1.6,
    ("lstm", "heads"): 1.0,
    ("gru", "heads"): 1.0,
}


def _variants(cell: str, variant: str) -> tuple[Target, Target]:
    """What an option costs, forward and in training; of those without a limit for information."""

    def of(training: bool) -> Target:
        most = COSTS.get((cell, variant))
        least = None if most is None else 1 / most
        name = f"{cell.upper()} {variant} {'training' if training else 'inference'}, against the plain layer"
        name += "" if most is None else f" (at most {most:g} of its time)"
        asked = ("layers", cell, training, variant)
        includes = lambda c: (c.path, c.cell, c.training, c.variant) == asked  # noqa: E731
        return Target(name if most else f"– {name}", includes, ("plain",), least, least)

    return of(False), of(True)


RUNTIMES = ("onnxruntime", "openvino")
CPU_TARGETS = (
    Target("LSTM inference, against torch.nn", _layers("lstm", False), TORCH, 1.6, 1.03),
    _everywhere("lstm", False),
    Target("LSTM training, against torch.nn", _layers("lstm", True), TORCH, 1.5, 1.03),
    _everywhere("lstm", True),
    Target("GRU inference, against torch.nn", _layers("gru", False), TORCH, 2.5, 1.7),
    _everywhere("gru", False),
    Target("GRU training, against torch.nn", _layers("gru", True), TORCH, 3.0, 1.8),
    _everywhere("gru", True),
    Target("RNN inference, against torch.nn", _layers("rnn", False), TORCH, 2.5, 1.5),
    _everywhere("rnn", False),
    Target("RNN training, against torch.nn", _layers("rnn", True), TORCH, 2.5, 1.5),
    _everywhere("rnn", True),
    Target("LSTM packed inference, against torch.nn", _path("packed", False), TORCH, 3.0, 2.0),
    Target("LSTM packed training, against torch.nn", _path("packed", True), TORCH, 3.0, 2.0),
    Target(
        "LSTM with projection, LSTMCell, GRUCell, against torch.nn",
        lambda c: c.path in ("proj", "cells"),
        TORCH,
        2.0,
        1.3,
    ),
    Target("– projection inference", _path("proj", False), TORCH, None, None),
    Target("– projection training", _path("proj", True), TORCH, None, None),
    Target("LSTMCell and GRUCell, against torch.nn", lambda c: c.path == "cells", TORCH, 1.3, 1.0),
    Target("– cells inference", _path("cells", False), TORCH, None, None),
    Target("– cells training", _path("cells", True), TORCH, None, None),
    Target(
        "LSTM and GRU inference, against the best of ONNX Runtime and OpenVINO",
        lambda c: c.path == "layers" and c.cell in ("lstm", "gru") and not (c.training or c.variant),
        RUNTIMES,
        1.1,
        0.97,
    ),
    Target(
        "– of that, through the modules",
        lambda c: c.path == "layers" and c.cell in ("lstm", "gru") and not c.training,
        RUNTIMES,
        1.0,
        0.8,
    ),
    Target(
        "– of that, through their streamers",
        lambda c: c.path == "layers" and c.cell in ("lstm", "gru") and not c.training,
        RUNTIMES,
        1.1,
        0.97,
        ours="streamer",
    ),
    Target("– LSTM", _layers("lstm", False), RUNTIMES, None, None),
    Target("– GRU", _layers("gru", False), RUNTIMES, None, None),
    Target(
        "GRU training, against the best of JAX and torch.nn", _layers("gru", True), ("jax", "torch"), 1.5, 1.1
    ),
    Target("SRU inference, against the sru package", _sru(False), ("sru",), 2.5, 2.5),
    Target("SRU training, against the sru package", _sru(True), ("sru",), 3.0, 3.0),
    Target("– SRU training, against nn.LSTM", _layers("sru", True), TORCH, None, None),
    Target("MinGRU training at 1024,16,512, against nn.GRU", _long("mingru"), TORCH, 5.0, 5.0),
    Target("– against a log-space scan in plain torch", _long("mingru"), ("log_scan",), 2.0, 2.0),
    Target(
        "SLSTM training, against the xlstm package's cell", _layers("slstm", True), ("xlstm",), 20.0, 20.0
    ),
    Target("– against that cell compiled", _layers("slstm", True), ("xlstm_compile",), 3.0, 3.0),
    Target("– SRU++ training, against nn.LSTM", _layers("srupp", True), TORCH, None, None),
    _everywhere("lstm", False, drawn=True),
    _everywhere("lstm", True, drawn=True),
    _everywhere("gru", False, drawn=True),
    _everywhere("gru", True, drawn=True),
    _everywhere("rnn", False, drawn=True),
    _everywhere("rnn", True, drawn=True),
    *(
        target
        for cell in CELLS
        for variant in variants.VARIANTS
        if variants.has(card_name(cell), variant)
        for target in _variants(cell, variant)
    ),
)

#: Nowhere slower.
EVEN = 1.0


def _regime(name: str) -> Callable[[Case], bool]:
    """Cases in which cuDNN runs such an algorithm forward."""
    return lambda c: cudnn.regime(replace(c, training=False)) == name


def _cuda(
    name: str, includes: Callable[[Case], bool], forward: float, training: float
) -> tuple[Target, Target]:
    """A regime in which cuDNN differs, of single layers in one direction, same precision, the input
    projection included: the geometric mean that is wanted of inference, and of forward and backward."""

    def of(work: bool) -> Callable[[Case], bool]:
        single = ("layers", 1, 1)
        return lambda c: c.training == work and (c.path, c.layers, c.directions) == single and includes(c)

    return (
        Target(f"{name}, forward", of(False), TORCH, forward, EVEN, "cuda"),
        Target(f"{name}, forward and backward", of(True), TORCH, training, EVEN, "cuda"),
    )


_STANDARD, _PERSISTENT = _regime(cudnn.STANDARD), _regime(cudnn.PERSISTENT)
CUDA_TARGETS = (
    *_cuda(
        "fp16 LSTM, H=768, B=16, T=1024",
        lambda c: (c.cell, c.dtype, c.T, c.B, c.H) == (NAMED.cell, NAMED.dtype, NAMED.T, NAMED.B, NAMED.H),
        2.0,
        1.8,
    ),
    *_cuda("H up to 64", lambda c: c.H <= 64, 2.0, 2.0),
    *_cuda("H = 128", lambda c: c.H == 128, 4.0, 3.0),
    *_cuda("H 129 to 192, B from 16", lambda c: 128 < c.H <= 192 and c.B >= 16, 10.0, 5.0),
    *_cuda("H 193 to 768, cuDNN's STANDARD", lambda c: 192 < c.H <= 768 and _STANDARD(c), 6.0, 4.0),
    *_cuda("H 256 to 768, cuDNN's PERSIST_STATIC", lambda c: 256 <= c.H <= 768 and _PERSISTENT(c), 2.0, 1.8),
    *_cuda("H 1024 to 2048, B up to 64", lambda c: 1024 <= c.H <= 2048 and c.B <= 64, 3.0, 2.0),
    *_cuda("H from 1024, B from 256", lambda c: c.H >= 1024 and c.B >= 256, EVEN, EVEN),
    Target("Every case", lambda c: True, TORCH, EVEN, EVEN, "cuda"),
)
TARGETS = (*CPU_TARGETS, *CUDA_TARGETS)


def geomean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def ratio(result: dict, against: Sequence[str], ours: str = "fastrnn") -> tuple[float, str] | None:
    """How many times faster fastrnn was than the fastest of these, and which that was. None without data."""
    contenders = result["contenders"]
    rivals = {k: contenders[k]["median_s"] for k in against if k in contenders}
    if ours not in contenders or not rivals:
        return None
    best = min(rivals, key=rivals.get)
    return rivals[best] / contenders[ours]["median_s"], best


def _counts(case: Case, device: str, drawn: bool = False) -> bool:
    """Targets on the CPU are about float32 on the named shapes, or on those drawn at random; on a GPU about
    everything."""
    if device == "cuda":
        return case.device.startswith("cuda")
    if case.dtype != "float32" or case.device != "cpu" or case.sweep:
        return False
    if drawn:
        return case.path == "layers" and (case.T, case.B, case.I, case.H) in RANDOM_SHAPES
    if case.I != case.H:
        return False
    if case.path == "cells":
        return (case.B, case.H) in CELL_SHAPES
    if case.cell in ELEMENTWISE_CELLS:
        return (case.T, case.B, case.H) in (LONG, *ELEMENTWISE_SHAPES)
    return (case.T, case.B, case.H) in (SRU_SHAPES if case.cell in SRU_CELLS else SHAPES)


def evaluate(results: Sequence[dict], threads: int, isa: str = "") -> list[dict]:
    """A line for each target that has data on this number of threads.

    isa: whose kernels of fastrnn were timed; some targets are higher with AVX-512.
    Each line has name, cases, geomean, worst, worst_case, target_geomean, target_worst and met (None for
    information lines). limit_geomean and limit_worst are what a layer at the machine's limit would have had
    in these cases and in the worst, from the rates measured in the same run (results' floor); None without.
    """
    lines = []
    for target in TARGETS:
        ratios, limits = [], []
        for result in results:
            case = Case(**result["case"])
            counts = _counts(case, target.device, target.drawn) and target.includes(case)
            if result["threads"] != threads or not counts:
                continue
            if (value := ratio(result, target.against, target.ours)) is not None:
                ratios.append((value[0], f"{case.group} {case.shape}"))
                share = share_of_limit(result, target.ours)
                limits.append(value[0] / share if share else None)
        if not ratios:
            continue
        mean, (worst, worst_case) = geomean([r for r, _ in ratios]), min(ratios)
        limit_of_worst = limits[ratios.index((worst, worst_case))]
        wanted = target.wanted(isa)
        met = None if wanted is None else mean >= wanted and worst >= target.worst
        lines.append(
            {
                "name": target.name,
                "threads": threads,
                "cases": len(ratios),
                "geomean": mean,
                "worst": worst,
                "worst_case": worst_case,
                "limit_geomean": geomean(limits) if all(limits) else None,
                "limit_worst": limit_of_worst,
                "target_geomean": wanted,
                "target_worst": target.worst,
                "met": met,
            }
        )
    return lines


def evaluate_absolute(run: dict) -> list[dict]:
    """Latency of a step, overhead of a call, rates of a scan and of kernels, scaling, peak memory.

    Each line has name, reached, limit and met.
    """
    lines = []
    for result in run["results"]:
        case = Case(**result["case"])
        if _counts(case, "cpu") and case.group == "LSTM inference" and case.shape == "1,1,256":
            seconds = result["contenders"].get("fastrnn", {}).get("median_s")
            if seconds:
                lines.append(
                    {
                        "name": f"One LSTM step, T=1 B=1 H=256, {plural(result['threads'], 'thread')}",
                        "reached": f"{seconds * 1e6:.1f} µs",
                        "limit": f"< {LATENCY_S * 1e6:.0f} µs",
                        "met": seconds < LATENCY_S,
                    }
                )
    for threads in dict.fromkeys(line["threads"] for line in run.get("overhead", ())):
        mine = [line for line in run["overhead"] if line["threads"] == threads]
        worst = max(mine, key=overhead.above)
        lines.append(
            {
                "name": f"A module's call above its operator, T=1 B=1, {plural(threads, 'thread')}",
                "reached": f"{overhead.above(worst) * 1e6:.1f} µs at worst ({worst['name']})",
                "limit": f"<= {OVERHEAD_S * 1e6:.0f} µs",
                "met": overhead.above(worst) <= OVERHEAD_S,
            }
        )
    for line in run.get("scan", ()):
        share = scan_rate.share(line)
        lines.append(
            {
                "name": f"SRU's recurrence alone, {line['name']}, {plural(line['threads'], 'thread')}",
                "reached": f"{share:.2f} of the rate of reading",
                "limit": f">= {SCAN}",
                "met": share >= SCAN,
            }
        )
    lines += _kernel_lines(run.get("kernels", ()))
    for line in run.get("crowd", ()):
        slower = line["many_s"] / line["one_s"]
        lines.append(
            {
                "name": f"{line['threads']} threads on {plural(line['cores'], 'core')} over one, B = 1",
                "reached": f"{slower:.2f}x the time",
                "limit": f"<= {CROWD:.0f}x",
                "met": slower <= CROWD,
            }
        )
    if scaling := run.get("scaling"):
        worst = min(scaling, key=lambda s: s["ratio"])
        case = Case(**worst["case"])
        mean = geomean([s["ratio"] for s in scaling])
        lines.append(
            {
                "name": f"{worst['threads']} threads over one, B >= 16",
                "reached": f"{worst['ratio']:.2f}x at worst ({case.group} {case.shape}), mean {mean:.2f}x",
                "limit": f">= {SCALING}x",
                "met": worst["ratio"] >= SCALING,
            }
        )
    if memory := memory_ratios(run):
        worst_ratio, case = max(memory, key=lambda m: m[0])
        lines.append(
            {
                "name": "Peak memory of a training step, of torch.nn's",
                "reached": f"{worst_ratio:.2f} at worst ({case.group} {case.shape})",
                "limit": f"<= {MEMORY:.0f}",
                "met": worst_ratio <= MEMORY,
            }
        )
    return lines


def _kernel_lines(measured: Sequence[dict]) -> list[dict]:
    """Shares of the machine's limits: the geometric mean over the shapes decides, the worst is told."""
    groups: dict[tuple, list[dict]] = {}
    for line in measured:
        groups.setdefault((line["threads"], line["cell"], line["name"]), []).append(line)
    lines = []
    for (threads, cell, name), group in groups.items():
        worst = min(group, key=kernel_rate.share)
        mean = geomean([kernel_rate.share(line) for line in group])
        what = "of the rate of reading" if name == kernel_rate.READING else "of the multiply-adds, B >= 16"
        all_of = [(kernel_rate.least(line) or 0.0) / line["seconds"] for line in group]
        limit = f"; {geomean(all_of):.0%} of all that it has to do" if min(all_of) > 0 else ""
        lines.append(
            {
                "name": f"{cell.upper()} {name}, share {what}, {plural(threads, 'thread')}",
                "reached": f"{mean:.0%} in the mean, {kernel_rate.share(worst):.0%} at worst "
                f"({worst['T']},{worst['B']},{worst['H']}; limit {worst['limit'] / 1e9:.0f} G/s){limit}",
                "limit": f">= {KERNELS[name]:.0%}",
                "met": mean >= KERNELS[name],
            }
        )
    return lines


def memory_ratios(run: dict) -> list[tuple[float, Case]]:
    """Peak memory of fastrnn (gates saved, the default) over torch.nn's, with the case."""
    by_case: dict[Case, dict[str, float]] = {}
    for m in run.get("memory", ()):
        if m["bytes"] is None:
            continue
        by_case.setdefault(Case(**m["case"]), {})[m["contender"]] = m["bytes"]
    return [
        (b["fastrnn"] / b["torch"], case) for case, b in by_case.items() if {"fastrnn", "torch"} <= b.keys()
    ]


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
