"""A run's results as a folder: results.json, report.md, PNG plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastrnn.proof import machine
from fastrnn.proof.timing import MIN_ROUNDS

from .. import overhead, scan_rate, targets
from ..contenders.registry import NAMES
from ..results import group_results
from . import against_cudnn, tables
from .document import Bullets, Document, Heading, Image, Text, Verbatim


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
    if run["load"] and run["load"] > machine.BUSY:
        lines.append(
            f"**The machine was busy**: load {run['load']:.1f} at the start; times with threads mean little"
        )
    lines += [
        f"{d['name']}: cannot be used: {d['error']}"
        if "error" in d
        else f"GPU: {d['name']}, capability {d['capability']}, driver {d.get('driver') or 'unknown'}"
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
        f"{tables.SCAN}: the operator on T,B,H = {','.join(map(str, scan_rate.SHAPE))}, float32; bytes are "
        "those that have to move; the shortest time against the best rate of reading 256 MB on as many "
        "threads.",
        f"{tables.KERNELS}: operators, float32, as many inputs as units; operations of the products alone, "
        "beside the best rate of multiply-adds in registers; with one row the bytes of the recurrent "
        "weights, once a step, beside the best rate of reading as many again and again. Both limits are "
        "measured around each layer. The activations and the packing of weights count as nothing, and with "
        "one row neither does the input projection. What else a pass has to do, and how long that takes at "
        "its own limit in the same run, stands in the columns behind: the functions of the cell alone, the "
        "inputs' product of one row at the multiply-adds' rate, and where threads split the units their "
        "meetings alone, one a step.",
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
            on = " against cuDNN" if against_cudnn.on_gpu(run) else f", {targets.plural(threads, 'thread')}"
            document.add(Heading(f"Targets{on}"), tables.target_table(lines))
    if run["absolute_targets"]:
        document.add(
            Heading("Latency, overhead, scaling, memory"), tables.absolute_table(run["absolute_targets"])
        )
    document.add(*against_cudnn.blocks(run))
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
            document.add(Heading(f"{group}, ms", 3), tables.result_table(results))
        for group, results in group_results(run, threads, sweep=True).items():
            document.add(Heading(f"{group} over hidden sizes, ms", 3), tables.result_table(results))
    if run["scaling"]:
        document.add(Heading("Threads"), tables.scaling_table(run))
    if run.get("overhead"):  # runs from before a thing was measured have none of it
        document.add(Heading(tables.OVERHEAD), tables.overhead_table(run))
    if run.get("scan"):
        document.add(Heading(tables.SCAN), tables.scan_table(run))
    if run.get("kernels"):
        document.add(Heading(tables.KERNELS), tables.kernels_table(run))
    if run["memory"]:
        document.add(Heading("Peak memory of a training step"), tables.memory_table(run))
    document.add(Heading("Limits of the machine"), tables.limits_table(run))
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
    """Write results.json, plots and report.md into folder; the path of the report.

    notes.md in the folder is taken into the report, so it can be written after the run and the report again.
    """
    save(run, folder)
    run = _rounded(run)  # the report on a stored run is the same report
    notes_file = folder / "notes.md"
    if not notes and notes_file.exists():
        notes = notes_file.read_text()
    try:
        from . import pictures
    except ImportError:  # matplotlib is an extra
        images = []
    else:
        images = pictures.draw(run, folder)
    report = folder / "report.md"
    report.write_text(build(run, images, notes).to_markdown())
    return report
