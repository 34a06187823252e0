"""Benchmark fastrnn against torch.nn, ONNX Runtime, OpenVINO, JAX and the plain reference on this machine.

Prints the results and writes a folder with report.md, results.json and plots. The other frameworks take part
where they are installed: requirements/bench.txt has them, on a GPU requirements/bench-cuda.txt. Exit status 1
if fastrnn fails in a case or its numbers differ from torch.nn's.

  --quick                        under a minute (make bench)
  --full --save                  all shapes on 1 and 2 threads, into benchmarks/results/
  --variants                     what options such as norm and zoneout cost, beside the plain layers
  --cell gru --shape 50,64,512 --mode training --threads 1
  --device cuda --quick          against cuDNN on a GPU, under six minutes
  --device cuda --full --part 1/6   a part of everything, under ten minutes each
  --device cuda --peers          torch.compile, haste, TorchRL, FlashRNN, in a few cases
  --device cuda --gpu-check      what tests/gpu/check.py has time for, the most telling cases first
  --merge A B --out DIR          one report of several runs on one machine
  --models                       whole models, with fastrnn's layers and with torch.nn's
  --render FOLDER                write a report again, with what FOLDER/notes.md says
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from fastrnn.cli import console, ended
from fastrnn.cli import options as types


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .cases import CELLS, DTYPES, MODES
    from .contenders.registry import KEYS
    from .presets import parse_part

    def part(text: str):
        try:
            return parse_part(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    def positive(text: str) -> int:
        if not text.isdigit() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
        return int(text)

    preset = parser.add_mutually_exclusive_group()
    preset.add_argument(
        "--quick", action="store_true", help="a part of the shapes, under a minute (the default)"
    )
    preset.add_argument("--full", action="store_true", help="everything, on 1 and 2 threads; some 20 minutes")
    preset.add_argument(
        "--random",
        action="store_true",
        help="LSTM, GRU and RNN on 30 shapes drawn from a fixed seed, against torch.nn, on 1 and 2 threads",
    )
    preset.add_argument(
        "--rates",
        action="store_true",
        help="no layer against another: the kernels alone, against what this machine can do; some 20 seconds",
    )
    preset.add_argument(
        "--variants",
        action="store_true",
        help="the options of LSTM, GRU and RNN, each beside the plain layer, on 1 and 2 threads",
    )
    preset.add_argument(
        "--peers",
        action="store_true",
        help="on a GPU: the few cases of contenders that compile at their first call; under ten minutes",
    )
    preset.add_argument(
        "--gpu-check", action="store_true", help="on a GPU: the main plane against cuDNN; three minutes"
    )
    preset.add_argument(
        "--models",
        nargs="*",
        metavar="NAME",
        help="the models of examples/, all or those named, with either library's layers inside",
    )
    some = {"nargs": "+", "default": [], "metavar": ""}
    parser.add_argument("--cell", choices=CELLS, help=", ".join(CELLS), **some)
    parser.add_argument("--shape", type=types.shape, help="T,B,H, any sizes; inputs are as many as H", **some)
    parser.add_argument("--dtype", choices=DTYPES, help=", ".join(DTYPES), **some)
    parser.add_argument(
        "--mode",
        choices=MODES,
        help="inference, training; layers, packed, proj, cells. A kind that is not named is not filtered",
        **some,
    )
    parser.add_argument(
        "--threads", type=types.threads, help="numbers of threads, each a run of its own", **some
    )
    parser.add_argument(
        "--contender", choices=KEYS, help=f"{', '.join(KEYS)}; torch and fastrnn always run", **some
    )
    parser.add_argument("--device", type=types.device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--budget", type=types.seconds, metavar="S", help="seconds of timing for each number of threads"
    )
    parser.add_argument(
        "--limit",
        type=float,
        metavar="S",
        help="on a GPU: seconds for everything; rounds and then cases are left out to keep it",
    )
    parser.add_argument(
        "--part", type=part, metavar="K/N", help="on a GPU: one of N parts of the cases, to be merged"
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="rounds at least (default 7)")
    parser.add_argument(
        "--tiers", action="store_true", help="on a GPU: each tier of the kernels too, for the plan's table"
    )
    parser.add_argument(
        "--json-only", action="store_true", help="write results.json alone; --render makes the report later"
    )
    parser.add_argument(
        "--lines",
        type=types.output,
        metavar="FILE",
        help="append everything as it comes, a line of JSON each",
    )
    parser.add_argument(
        "--no-extras", action="store_true", help="neither thread scaling nor peak memory, overhead, scan"
    )
    parser.add_argument(
        "--merge",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="no timing: one report of several runs, folders, or the lines of gpu-check; a later one counts",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--out", type=types.output, metavar="DIR", help="folder to write (default out/bench-<date>-…)"
    )
    target.add_argument(
        "--save", action="store_true", help="write to benchmarks/results/<date>-<cpu> to be kept"
    )
    target.add_argument(
        "--render", type=Path, metavar="DIR", help="no timing: write the report of a folder again"
    )


#: Those that only mean something there.
_GPU_OPTIONS = ("peers", "gpu-check", "part", "limit", "tiers")


def folder_name(preset: str, cpu: str) -> str:
    """ "2026-01-31-amd-epyc-zen-4", with the preset where it is not the full one."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((?:r|tm)\)|\bcpu\b|@.*", "", cpu.lower()))
    name = "-".join([date.today().isoformat(), *words[:6]])
    return name if preset == "full" else f"{name}-{preset}"


def make_plan(options: argparse.Namespace):
    """The run that the options ask for. SystemExit where nothing is left to run."""
    from fastrnn.proof import machine

    from . import memory, presets
    from .cases import SRU_CELLS
    from .contenders import registry as contenders
    from .run import Plan

    if options.device != "cpu":
        return _cuda_plan(options)
    for option, given in (
        ("--dtype tf32", "tf32" in options.dtype),
        *((f"--{name}", getattr(options, name.replace("-", "_"))) for name in _GPU_OPTIONS),
    ):
        if given:
            raise SystemExit(f"{option} is about a GPU: add --device cuda")
    cores = machine.usable_cores()
    if options.rates:
        return Plan(
            preset="rates",
            cases=[],
            threads=options.threads or sorted({1, min(2, cores)}),
            contenders=["fastrnn"],
            scan=True,
            kernels=True,
        )
    name = next((n for n in ("full", "random", "variants") if getattr(options, n)), "quick")
    preset = presets.PRESETS[name]
    chosen = presets.select(
        preset,
        cells=options.cell,
        shapes=options.shape,
        dtypes=options.dtype,
        modes=options.mode,
        device=options.device,
    )
    if not chosen:
        raise SystemExit("the filters leave nothing to run")
    budget_s = preset.budget_s if options.budget is None else options.budget
    threads = options.threads or ([min(2, cores)] if name == "quick" else sorted({1, min(2, cores)}))
    alone = name in ("random", "variants")
    everyone = () if alone else contenders.KEYS
    wanted = options.contender or [k for k in everyone if k not in (*contenders.CUDA_PEERS, "plain")]
    always = ("fastrnn", "torch", *(("plain",) if any(c.variant for c in chosen) else ()))
    keys = [k for k in contenders.KEYS if k in (*wanted, *always)]
    extras = not (options.no_extras or options.shape or alone)
    plain = [c for c in chosen if (c.path, c.dtype, c.variant) == ("layers", "float32", "") and not c.sweep]
    return Plan(
        preset=name
        if not (options.cell or options.shape or options.mode or options.dtype)
        else f"{name}, filtered",
        cases=chosen,
        threads=threads,
        contenders=keys,
        scaling_cases=[c for c in plain if (c.T, c.B, c.H) in preset.scaling_shapes] if extras else [],
        memory_cases=_memory_cases(preset, chosen) if extras else [],
        overhead=extras,
        scan=extras and any(c.cell in SRU_CELLS for c in chosen),
        kernels=extras and options.full,
        memory_contenders=memory.CONTENDERS if options.full else ("torch", "fastrnn"),
        budget_s=budget_s,
        hurry=name == "quick" and options.rounds is None,
        limits_s=min(1.5 if name == "quick" else 6.0, budget_s),
        **({"min_rounds": options.rounds} if options.rounds else {}),
    )


def _cuda_plan(options: argparse.Namespace):
    """The run on a GPU: supervised, so that it ends in time with whatever it has."""
    import torch

    from fastrnn.proof import machine

    from . import presets
    from .contenders import registry as contenders
    from .run import Plan

    if not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: torch sees no GPU")
    asked = [n for n in ("gpu-check", "peers", "full") if getattr(options, n.replace("-", "_"))]
    name = asked[0] if asked else "quick"
    preset, part = presets.CUDA_PRESETS[name], options.part or (1, 1)
    filters = {"cells": options.cell, "shapes": options.shape, "dtypes": options.dtype, "modes": options.mode}
    chosen = presets.select_cuda(preset, **filters, device=options.device, part=part)
    if not chosen:
        raise SystemExit("the filters leave nothing to run")
    # By default nobody that compiles, and not the reference, which waits for every kernel.
    wanted = options.contender or ([*contenders.CUDA_PEERS, "reference"] if options.peers else ["haste"])
    keys = [k for k in contenders.KEYS if k in (*wanted, "fastrnn", "torch")]
    limit_s = presets.limit_s(preset, part[1]) if options.limit is None else options.limit
    budget_s = preset.budget_s / part[1] if options.budget is None else options.budget
    title = name if part[1] == 1 else f"{name} {part[0]}/{part[1]}"
    return Plan(
        preset=f"{title}, filtered" if any(filters.values()) else title,
        cases=chosen,
        threads=options.threads[:1] or [machine.usable_cores()],
        contenders=[*keys, *(contenders.TIERS if options.tiers else ())],
        budget_s=min(budget_s, 0.85 * limit_s),
        hurry=options.rounds is None,
        limits_s=1.5,
        limit_s=limit_s,
        excluded={} if options.contender else presets.excluded(preset, chosen),
        **({"min_rounds": options.rounds} if options.rounds else {}),
    )


def _memory_cases(preset, chosen) -> list:
    """Training of the LSTM and the GRU on the preset's shapes, where training is run at all."""
    from .cases import Case

    cells = {c.cell for c in chosen if c.path == "layers" and c.training} & {"lstm", "gru"}
    if preset.budget_s < 60:
        cells &= {"lstm"}
    return [
        Case(cell, "layers", True, T, B, H, H) for cell in sorted(cells) for T, B, H in preset.memory_shapes
    ]


def show(run: dict) -> None:
    """The results on the terminal."""
    from . import targets
    from .report import against_cudnn, planes, tables, write
    from .results import group_results

    console.heading("fastrnn benchmark")
    for line in write.machine_lines(run):
        print("  " + line.replace("**", ""))
    for threads in run["threads"]:
        on = targets.plural(threads, "thread")
        for sweep in (False, True):
            for group, results in group_results(run, threads, sweep).items():
                shown = tables.result_table(results)
                title = f"{group}{' over hidden sizes' if sweep else ''}, {on}, ms"
                console.table(shown.columns, shown.rows, title)
    if run["scaling"]:
        shown = tables.scaling_table(run)
        console.table(shown.columns, shown.rows, "Threads")
    if run["memory"]:
        shown = tables.memory_table(run)
        console.table(shown.columns, shown.rows, "Peak memory of a training step")
    for threads in run["threads"]:
        lines = [line for line in run["targets"] if line["threads"] == threads]
        if lines:
            shown = tables.target_table(lines)
            console.table(shown.columns, shown.rows, f"Targets, {targets.plural(threads, 'thread')}")
    if run.get("overhead"):
        shown = tables.overhead_table(run)
        console.table(shown.columns, shown.rows, tables.OVERHEAD)
    if run.get("scan"):
        shown = tables.scan_table(run)
        console.table(shown.columns, shown.rows, tables.SCAN)
    if run.get("kernels"):
        shown = tables.kernels_table(run)
        console.table(shown.columns, shown.rows, tables.KERNELS)
    if run["absolute_targets"]:
        shown = tables.absolute_table(run["absolute_targets"])
        console.table(shown.columns, shown.rows, "Latency, overhead, scaling, memory")
    if results := against_cudnn.on_gpu(run):
        shown = planes.summary(planes.read(results))
        console.table(shown.columns, shown.rows, "Times faster than torch.nn")
        for line in against_cudnn.losses(results) or ["torch.nn is nowhere faster"]:
            print("  " + line.replace("**", ""))


def run_models(options: argparse.Namespace) -> int:
    """``--models``: the exit status is 1 where a model fails or differs between the two libraries."""
    from fastrnn.proof import machine
    from fastrnn.proof.timing import MIN_ROUNDS

    from . import models

    if options.device != "cpu":
        raise SystemExit(f"--device {options.device}: --models runs on the CPU")
    for filtered in ("cell", "shape", "dtype", "mode", "contender"):
        if getattr(options, filtered):
            raise SystemExit(f"--{filtered} is about layers, not about --models")
    names = options.models or list(models.examples().NAMES)
    for name in names:
        try:
            models.examples().load(name)
        except ValueError as error:
            raise SystemExit(f"--models: {error}") from None
    threads = options.threads or [min(2, machine.usable_cores())]
    budget_s = 4.0 * len(names) if options.budget is None else options.budget
    with console.progress(len(names) * len(threads)) as advance:
        results = models.run(
            names, threads, budget_s=budget_s, min_rounds=options.rounds or MIN_ROUNDS, advance=advance
        )
    for title, group in models.by_threads(results).items():
        shown = models.table(group)
        console.table(shown.columns, shown.rows, f"Models with either library's layers, {title}")
        for line in models.reasons(group):
            print(line)
    name = f"{folder_name('full', machine.cpu_model())}-models"
    folder = options.out or Path("benchmarks/results" if options.save else "out") / (
        name if options.save else f"bench-{name}"
    )
    print(f"\nreport: {models.write(results, folder).resolve()}")
    return 1 if any(r.get("skipped", "").startswith("FAILED") for r in results["results"]) else 0


def gpu_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def merge_runs(options: argparse.Namespace) -> int:
    """``--merge``: one folder of several runs."""
    from . import merge
    from .report import write as report

    if options.out is None:
        raise SystemExit("--merge: needs --out DIR to write to")
    try:
        merged = merge.merge([merge.load(path) for path in options.merge])
    except ValueError as error:
        raise SystemExit(f"--merge: {error}") from None
    show(merged)
    print(f"\nreport: {report.write(merged, options.out).resolve()}")
    return 0


def run(options: argparse.Namespace) -> int:
    from fastrnn.proof import machine

    from .report import write as report
    from .results import case_of, writer
    from .run import run as run_plan

    if options.render:
        import json

        source = options.render / "results.json"
        if not source.exists():
            raise SystemExit(f"--render: {source} does not exist")
        print(f"report: {report.write(json.loads(source.read_text()), options.render)}")
        return 0
    if options.merge:
        return merge_runs(options)

    if options.models is not None:
        return run_models(options)
    plan = make_plan(options)
    gpu = options.device != "cpu"
    processor = gpu_name(options.device) if gpu else machine.cpu_model()
    name = folder_name(re.split(r"[ ,]", plan.preset)[0], processor)
    if options.part:
        name += "-part-{}-of-{}".format(*options.part)
    folder = options.out or Path("benchmarks/results" if options.save else "out") / (
        name if options.save else f"bench-{name}"
    )
    if gpu:  # what `timeout` sends ends the run with what it has, as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with console.progress(plan.steps) as advance:
        results = run_plan(plan, advance, lambda partial: report.save(partial, folder), writer(options.lines))
    report.save(results, folder)
    show(results)
    written = folder / "results.json" if options.json_only else report.write(results, folder)
    if not options.json_only and not any(folder.glob("*.png")):
        print("no plots: matplotlib is not installed")
    if dropped := results.get("dropped"):
        first = dropped[0]
        print(f"{len(dropped)} cases were not timed, the first: {case_of(first).title}: {first['why']}")
    missing = [r for r in results["results"] if "fastrnn" not in r["contenders"]]
    for r in missing:
        print(f"FAILED {case_of(r).title}: fastrnn {r['skipped']['fastrnn']}")
    print(f"\nreport: {written.resolve()}")
    return 1 if missing else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    options = parser().parse_args(arguments)
    return ended("benchmarks.lab", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
