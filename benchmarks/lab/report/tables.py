"""A run's results as tables."""

from __future__ import annotations

from collections.abc import Sequence

from .. import kernel_rate, overhead, scan_rate, targets
from ..cases import Case
from ..contenders.registry import KEYS, NAMES
from ..results import case_of, share_of_limit
from .document import Table


def milliseconds(seconds: float) -> str:
    """Three significant digits: "0.0312", "4.05", "812"."""
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 1 else f"{ms:#.3g}"


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f}"


def spread(times: dict) -> float:
    return (times["q75_s"] - times["q25_s"]) / 2 / times["median_s"]


def result_table(results: Sequence[dict]) -> Table:
    """A group's results: every contender's median in ms and its spread, ratios, the distance to the limit."""
    keys = [k for k in KEYS if any(k in r["contenders"] for r in results)]
    peers = [k for k in keys if k not in ("fastrnn", "reference")]
    others = [k for k in peers if k not in ("torch", "streamer")]
    labels = [next(r["contenders"][k]["label"] for r in results if k in r["contenders"]) for k in keys]
    columns = ["T,B,H", *labels, "over torch.nn"]
    columns += ["over best other"] if others else []
    columns += ["of limit", "GFLOP/s", "weights GB/s"]
    rows = []
    for r in results:
        times = r["contenders"]
        fastest = min((times[k]["median_s"] for k in keys if k in times), default=None)
        row = [case_of(r).shape]
        for k in keys:
            if k not in times:
                row.append("–")
                continue
            cell = f"{milliseconds(times[k]['median_s'])} ±{spread(times[k]):.0%}"
            row.append(f"**{cell}**" if times[k]["median_s"] == fastest else cell)
        row.append(_ratio(r, ("torch",)))
        if others:
            row.append(_ratio(r, others, name=True))
        if "fastrnn" in times:
            seconds = times["fastrnn"]["median_s"]
            row += [
                f"{share_of_limit(r):.0%}",
                f"{r['floor']['flops'] / seconds / 1e9:.1f}",
                f"{r['floor']['weight_bytes'] / seconds / 1e9:.1f}",
            ]
        else:
            row += ["–"] * 3
        rows.append(row)
    return Table(columns, rows)


def _ratio(result: dict, against: Sequence[str], name: bool = False) -> str:
    value = targets.ratio(result, against)
    if value is None:
        return "–"
    return f"{value[0]:.2f}x" + (f" ({NAMES[value[1]]})" if name else "")


def verdict(line: dict) -> str:
    """ "reached", or by how much the mean or the worst case falls short."""
    if line["met"] is None:
        return ""
    if line["met"]:
        return "reached"
    short = []
    for what, key in (("mean", "geomean"), ("worst", "worst")):
        if line[key] < line[f"target_{key}"]:
            short.append(f"{what} {1 - line[key] / line[f'target_{key}']:.1%} short")
    return "**missed**: " + ", ".join(short)


def target_table(lines: Sequence[dict]) -> Table:
    rows = []
    for line in lines:
        wanted = [f"{line[k]:g}" if line[k] is not None else "" for k in ("target_geomean", "target_worst")]
        # An earlier run's lines have none.
        limits = [f"{line[k]:.2f}" if line.get(k) else "" for k in ("limit_geomean", "limit_worst")]
        rows.append(
            [
                line["name"],
                str(line["cases"]),
                f"{line['geomean']:.2f}",
                limits[0],
                wanted[0],
                f"{line['worst']:.2f}",
                limits[1],
                wanted[1],
                line["worst_case"],
                verdict(line),
            ]
        )
    columns = [
        "",
        "cases",
        "geometric mean",
        "limit",
        "at least",
        "worst",
        "limit",
        "at least",
        "worst in",
        "verdict",
    ]
    return Table(columns, rows)


def absolute_table(lines: Sequence[dict]) -> Table:
    rows = [[a["name"], a["reached"], a["limit"], "reached" if a["met"] else "**missed**"] for a in lines]
    return Table(["", "reached", "wanted", "verdict"], rows)


def scaling_table(run: dict) -> Table:
    rows = []
    for s in run["scaling"]:
        case = case_of(s)
        rows.append(
            [
                f"{case.group} {case.shape}",
                milliseconds(s["one_s"]),
                milliseconds(s["all_s"]),
                f"{s['ratio']:.2f}x",
            ]
        )
    n = run["scaling"][0]["threads"]
    return Table(["", "1 thread, ms", f"{n} threads, ms", "ratio"], rows)


#: What overhead_table is called.
OVERHEAD = "A call of a module above its operator, µs"


def overhead_table(run: dict) -> Table:
    """A module's call, its operator and the difference, of fastrnn and of torch.nn."""
    rows = []
    for line in run["overhead"]:
        row = [line["name"], str(line["threads"])]
        for library in ("fastrnn", "torch"):
            times = line.get(library)
            if times is None:
                row += ["–"] * 3
                continue
            spans = (times["call_s"], times["operator_s"], overhead.above(line, library))
            row += [f"{s * 1e6:.1f}" for s in spans]
        rows.append(row)
    columns = [f"{name} {what}" for name in ("fastrnn", "torch.nn") for what in ("call", "operator", "above")]
    return Table(["", "threads", *columns], rows)


#: What scan_table is called.
SCAN = "SRU's recurrence alone"


def scan_table(run: dict) -> Table:
    """Shortest time and best rate of each pass of the scan, and its share of the rate of reading."""
    rows = []
    for line in run["scan"]:
        rates = (line["bytes"] / line["seconds"], line["reading"])
        row = [line["name"], str(line["threads"]), milliseconds(line["seconds"]), megabytes(line["bytes"])]
        rows.append([*row, *(f"{rate / 1e9:.1f}" for rate in rates), f"{scan_rate.share(line):.0%}"])
    return Table(["", "threads", "shortest, ms", "MB moved", "GB/s", "reading, GB/s", "share"], rows)


#: What kernels_table is called.
KERNELS = "The kernels alone"
#: What kernel_rate calls that which a pass does beside its limit, and what the table does.
BESIDE = {"cell": "cell's functions, ms", "inputs": "inputs' product, ms", "meetings": "meetings, ms"}


def kernels_table(run: dict) -> Table:
    """Each pass of each layer beside its limit: multiply-adds, or the reading of the recurrent weights; and,
    of runs that measured it, beside the time of all that it has to do."""
    rows, columns = [], ["", "T,B,H", "threads", "ms", "reached", "limit", "share"]
    whole = bool(run["kernels"]) and all(kernel_rate.least(line) for line in run["kernels"])
    for line in run["kernels"]:
        unit = "GB/s" if line["name"] == kernel_rate.READING else "GFLOP/s"
        rates = (line["work"] / line["seconds"], line["limit"])
        shape = f"{line['T']},{line['B']},{line['H']}"
        row = [f"{line['cell'].upper()} {line['name']}", shape, str(line["threads"])]
        row += [milliseconds(line["seconds"]), *(f"{rate / 1e9:.0f} {unit}" for rate in rates)]
        row.append(f"{kernel_rate.share(line):.0%}")
        if whole:
            beside = line["beside"]
            row += [milliseconds(beside[part]) if beside.get(part) else "" for part in BESIDE]
            row += [milliseconds(least := kernel_rate.least(line)), f"{least / line['seconds']:.0%}"]
        rows.append(row)
    columns += [*BESIDE.values(), "all at its limit, ms", "share"] if whole else []
    return Table(columns, rows)


def memory_table(run: dict) -> Table:
    entries: dict[Case, dict[str, str]] = {}
    for m in run["memory"]:
        text = megabytes(m["bytes"]) if m["bytes"] is not None else "–"
        entries.setdefault(case_of(m), {})[m["contender"]] = text
    keys = list(dict.fromkeys(m["contender"] for m in run["memory"]))
    names = {
        "torch": "torch.nn",
        "fastrnn": "fastrnn, gates saved",
        "fastrnn recompute": "fastrnn, gates recomputed",
    }
    rows = [[f"{c.group} {c.shape}", *(e.get(k, "–") for k in keys)] for c, e in entries.items()]
    return Table(["", *(f"{names[k]}, MB" for k in keys)], rows)


def limits_table(run: dict) -> Table:
    rows = []
    for entry in run["limits"]:
        name = f"{entry['dtype']}, {targets.plural(entry['threads'], 'thread')}"
        rows += [[f"{name}: {what}", f"{rate / 1e9:.0f} GFLOP/s"] for what, rate in entry["flops"].items()]
        rows += [
            [f"{name}: reading {size // 1024} KB again and again", f"{rate / 1e9:.0f} GB/s"]
            for size, rate in entry["bandwidth"]
        ]
    return Table(["limit", "measured"], rows)
