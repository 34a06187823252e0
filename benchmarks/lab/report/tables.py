"""A run's results as a folder: results.json, report.md, report.html (one self-contained page), PNG plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastrnn.proof.timing import MIN_ROUNDS

from .. import overhead, scan_rate, targets
from ..cases import Case
from ..contenders.registry import KEYS, NAMES
from ..results import case_of, group_results, share_of_limit
from . import against_cudnn as gpu_report
from .document import Bullets, Document, Heading, Image, Table, Text, Verbatim

#: Load average above which somebody else was at work when a run began.
BUSY = 0.7


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
    others = [k for k in peers if k != "torch"]
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
        rows.append(
            [
                line["name"],
                str(line["cases"]),
                f"{line['geomean']:.2f}",
                wanted[0],
                f"{line['worst']:.2f}",
                wanted[1],
                line["worst_case"],
                verdict(line),
            ]
        )
    columns = ["", "cases", "geometric mean", "at least", "worst", "at least", "worst in", "verdict"]
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


def machine_lines(run: dict) -> list[str]:
    m, versions = run["machine"], run["versions"]
    cache = ", ".join(f"{level} {size}" for level, size in m["caches"].items())
    lines = [
        f"**{m['cpu']}**, {m['architecture']}, {targets.plural(m['usable_cores'], 'core')} of {m['cores']}"
        + (f", caches {cache}" if cache else ""),
        f"instruction set of fastrnn: {m['isa'] or 'not built'}; of torch: {m['torch_cpu_capability']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"commit {run['commit'] or 'unknown (installed package)'}, {run['date']}, preset {run['preset']}, "
        f"{run['seconds']:.0f} s",
    ]
    if run["load"] and run["load"] > BUSY:
        lines.append(
            f"**The machine was busy**: load {run['load']:.1f} at the start; times with threads mean little"
        )
    lines += [
        f"GPU: {d['name']}, capability {d['capability']}, driver {d.get('driver') or 'unknown'}"
        for d in m["devices"]
    ]
    return lines


def _method(run: dict) -> list[str]:
    return [
        "Contenders take turns in one process for each number of threads, in an order drawn anew every "
        "round; a figure is the median over the rounds, ± half the distance between the quartiles.",
        f"At least {run['min_rounds']} rounds (three for the reference where its calls are long); short "
        "calls are repeated within a sample until it has taken 2 ms, after an untimed call.",
        "Inputs have as many features as there are hidden units. Training is the forward and backward "
        "pass with the gradients of the input and of every weight; weights count as changed between two "
        "steps, as after an optimiser, so that nothing prepared from them survives.",
        "ONNX Runtime, OpenVINO (told to compute in float32) and JAX (a jitted scan, backward included) have "
        "fixed shapes and run as many threads as torch. The reference is a loop over steps in Python.",
        "On a GPU float32 is float32 and tf32 is float32 with TensorFloat-32, for fastrnn and torch.nn; "
        "calls are launched one after the other and waited for at the end of a sample, as a program would. "
        "torch.compile gets the plain cell, several steps at a time; haste, TorchRL and FlashRNN have their "
        "weights in their own layouts before anything is timed, and TorchRL and FlashRNN are called below "
        "their modules. Whoever hangs or dies is left out, and named.",
        "Before anything is timed, every contender's output and gradients are compared with torch.nn's; who "
        "differs is left out.",
        "The limit is the longer of the arithmetic at the best measured rate and the recurrent weights, once "
        "a step, at the measured bandwidth for that many bytes.",
        f"Overhead: one step of one row, {overhead.SIZE} inputs and hidden units, inference; operators get "
        "their tensors ready, and their time includes torch's dispatcher.",
        f"{SCAN}: the operator on T,B,H = {','.join(map(str, scan_rate.SHAPE))}, float32; bytes are those "
        "that have to move; the shortest time against the best rate of reading 256 MB on as many threads.",
        "Peak memory is the growth of the resident size over three training steps, each contender in a "
        "process of its own.",
    ]


def build(run: dict, images: Sequence[Image] = (), notes: str = "") -> Document:
    """The report on a run. notes: Markdown about what was missed and what was tried."""
    document = Document("fastrnn benchmark")
    document.add(Bullets(machine_lines(run)))
    for threads in run["threads"]:
        lines = [line for line in run["targets"] if line["threads"] == threads]
        if lines:
            on = " against cuDNN" if gpu_report.on_gpu(run) else f", {targets.plural(threads, 'thread')}"
            document.add(Heading(f"Targets{on}"), target_table(lines))
    if run["absolute_targets"]:
        document.add(Heading("Latency, overhead, scaling, memory"), absolute_table(run["absolute_targets"]))
    document.add(*gpu_report.blocks(run))
    if run["preset"] != "full":
        document.add(
            Text(f"The {run['preset']} preset runs a part of the cases: `--full` decides about targets.")
        )
    if notes:
        document.add(Heading("Notes"), Verbatim(notes))
    if images:
        document.add(Heading("Plots"), *images)
    for threads in run["threads"]:
        document.add(Heading(f"Times, {targets.plural(threads, 'thread')}"))
        for group, results in group_results(run, threads).items():
            document.add(Heading(f"{group}, ms", 3), result_table(results))
        for group, results in group_results(run, threads, sweep=True).items():
            document.add(Heading(f"{group} over hidden sizes, ms", 3), result_table(results))
    if run["scaling"]:
        document.add(Heading("Threads"), scaling_table(run))
    if run.get("overhead"):  # runs from before a thing was measured have none of it
        document.add(Heading(OVERHEAD), overhead_table(run))
    if run.get("scan"):
        document.add(Heading(SCAN), scan_table(run))
    if run["memory"]:
        document.add(Heading("Peak memory of a training step"), memory_table(run))
    document.add(Heading("Limits of the machine"), limits_table(run))
    document.add(Heading("How it was measured"), Bullets(_method(run)))
    skipped = sorted(
        {
            f"{NAMES.get(k, f'fastrnn ({k})')}: {why}"
            for r in run["results"]
            for k, why in r["skipped"].items()
            if _telling(why)
        }
    )
    hurried = [r for r in run["results"] if _rounds(r) < MIN_ROUNDS]
    if hurried:
        skipped.append(f"{len(hurried)} of {len(run['results'])} cases had fewer than {MIN_ROUNDS} rounds")
    if skipped:
        document.add(Heading("Left out"), Bullets(skipped))
    return document


def _rounds(result: dict) -> int:
    return min((t["rounds"] for k, t in result["contenders"].items() if k != "reference"), default=0)


def _telling(reason: str) -> bool:
    """Whether a reader wants to know; that a framework does not do a kind of case, the tables show."""
    return not reason.endswith("only")


def _rounded(value):
    """The same data with six digits a number, which is more than a clock knows."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def save(run: dict, folder: Path) -> None:
    """Write results.json into folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "results.json.part"
    part.write_text(json.dumps(_rounded(run), indent=1) + "\n")
    part.replace(folder / "results.json")


def write(run: dict, folder: Path, notes: str = "") -> Path:
    """Write results.json, plots, report.md and report.html into folder; the path of the HTML page.

    notes.md in the folder is taken into the report, so it can be written after the run and the report again.
    """
    save(run, folder)
    run = _rounded(run)  # the report on a stored run is the same report
    notes_file = folder / "notes.md"
    if not notes and notes_file.exists():
        notes = notes_file.read_text()
    try:
        from . import plots
    except ImportError:  # matplotlib is an extra
        images = []
    else:
        images = plots.draw(run, folder)
    document = build(run, images, notes)
    (folder / "report.md").write_text(document.to_markdown())
    page = folder / "report.html"
    page.write_text(document.to_html())
    return page
