"""Show how much faster fastrnn's layers are than torch.nn's on this machine, in half a minute.

The same weights and data, compared first and then timed in turns; medians of the rounds. Exit status 1 if a
layer fails or its numbers differ from torch.nn's. The whole benchmark, with other libraries, the machine's
limits and reports, is in the repository: python -m benchmarks.lab.

  python -m fastrnn bench
  python -m fastrnn bench --quick
  python -m fastrnn bench --cell gru --shape 50,64,512 --work training --threads 1
  python -m fastrnn bench --device cuda --dtype float16 --json speed.json
"""

from __future__ import annotations

import argparse
import json
import time

from . import console
from . import options as types


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..proof import speed

    some = {"nargs": "+", "default": [], "metavar": ""}
    parser.add_argument("--cell", choices=speed.CELLS, help=", ".join(speed.CELLS), **some)
    parser.add_argument("--shape", type=types.shape, help="T,B,H, any sizes; inputs are as many as H", **some)
    parser.add_argument("--dtype", choices=speed.DTYPES, help=", ".join(speed.DTYPES), **some)
    parser.add_argument("--work", choices=speed.WORK, help=", ".join(speed.WORK), **some)
    parser.add_argument("--threads", type=types.threads, metavar="N", help="(default: torch's number)")
    parser.add_argument("--device", type=types.device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--budget",
        type=types.seconds,
        metavar="S",
        help=f"seconds of timing ({speed.BUDGET_S:g}); every layer has three rounds at least",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few seconds: one shape, {},{},{}, where none is named, and three seconds of timing".format(
            *speed.QUICK_SHAPE
        ),
    )
    parser.add_argument("--json", type=types.output, metavar="FILE", help="write every time there too")


def show(outcomes) -> None:
    """A row for each case, a table for each cell and kind of work, and what they come to."""
    from ..proof import speed

    def milliseconds(times: dict) -> str:
        spread = (times["q75_s"] - times["q25_s"]) / 2 / times["median_s"]
        return f"{times['median_s'] * 1e3:.3g} ±{spread:.0%}"

    rows = []
    for group in dict.fromkeys(o.case.group for o in outcomes):
        found = [o for o in outcomes if o.case.group == group]
        for o in found:
            times = [milliseconds(o.times[key]) if o.ok else "–" for key in ("torch", "fastrnn")]
            ratio = f"**{o.ratio:.2f}**" if o.ok else "FAILED"
            rows.append([o.case.title, *times, ratio, f"{o.difference:.0e}"])
        if good := [o.ratio for o in found if o.ok]:
            rows.append([f"{group}, geometric mean", "", "", f"**{speed.geomean(good):.2f}**", ""])
    console.table(["T,B,H", "torch.nn, ms", "fastrnn, ms", "times faster", "difference"], rows)


def run(options: argparse.Namespace) -> int:
    import torch

    from .._ops import library
    from ..proof import machine, speed

    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: torch sees no GPU")
    if not library.cpu_loaded:
        raise SystemExit(f"there is nothing to measure: fastrnn's kernels are not loaded: {library.cpu_why}")
    before = torch.get_num_threads()
    threads = options.threads or before
    shapes = options.shape or ([speed.QUICK_SHAPE] if options.quick else [])
    budget = options.budget or (speed.QUICK_BUDGET_S if options.quick else speed.BUDGET_S)
    chosen = speed.cases(options.cell, shapes, options.dtype, options.work, options.device)
    console.heading(f"fastrnn and torch.nn on {_where(options.device, threads)}")
    start, load, busy = time.perf_counter(), machine.load(), machine.busy()
    torch.set_num_threads(threads)
    try:
        with console.progress(len(chosen)) as advance:
            outcomes = speed.prove(chosen, budget, advance)
    finally:
        torch.set_num_threads(before)
    show(outcomes)
    if busy:
        print(f"the machine was busy, with a load of {busy:.1f} at the start: these times mean little")
    failed = [o for o in outcomes if not o.ok]
    for o in failed:
        print(f"FAILED {o.case.title}: {o.error}")
    if options.json:
        document = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "commit": machine.commit(),
            "machine": machine.describe(),
            "versions": machine.versions(),
            "load": load,
            "threads": threads,
            "seconds": round(time.perf_counter() - start, 1),
            "ok": not failed,
            "outcomes": [o.to_dict() for o in outcomes],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failed else 0


def _where(device: str, threads: int) -> str:
    import torch

    from ..proof import machine

    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{machine.cpu_model()}, {threads} thread{'s' * (threads != 1)}, {machine.instruction_sets()[0]}"
