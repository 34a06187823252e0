"""Check every cell, variant, dtype, path, instruction set and CUDA tier against the float64 reference and,
where it has them, torch.nn.

Prints the worst errors over sizes, inference, training and recomputed gates, "output / gradient", each
relative to the largest magnitude of its tensor; and in float32 on the CPU how many times torch.nn's own error
that is, as root mean squares over inputs of 1e-3 to 1e3. Then the layers with weights of bfloat16 and int8
against those in float32. Exit status 1 if one is over its tolerance.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict

from . import console
from . import options as types


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .. import _checks
    from ..proof import numbers

    some = {"nargs": "+", "default": [], "metavar": ""}
    cells, paths = numbers.CELLS, numbers.PATHS
    dtypes = (*numbers.DTYPES, numbers.TF32)
    parser.add_argument("--cell", choices=cells, help=", ".join(cells), **some)
    parser.add_argument("--dtype", choices=dtypes, help=", ".join(dtypes), **some)
    parser.add_argument("--path", choices=paths, help=", ".join(paths), **some)
    variants = (numbers.PLAIN_NAME, *numbers.VARIANTS)
    parser.add_argument(
        "--variant", choices=variants, help=f"of the cells: {', '.join(variants)}; by default all", **some
    )
    parser.add_argument("--isa", help="instruction sets; by default all that can run here", **some)
    parser.add_argument("--device", type=types.device, default="cpu", help="cpu (default) or cuda")
    tiers = ("auto", *_checks.TIERS)
    parser.add_argument("--tier", choices=tiers, help=f"of a GPU: {', '.join(tiers)}; by default all", **some)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="some ten seconds: every cell and path in float32, with the kernels in use, no comparison of "
        "errors with torch.nn's own",
    )
    parser.add_argument("--json", type=types.output, metavar="FILE", help="write every outcome there too")


def _pair(output: float, gradient: float) -> str:
    return f"{output:.1e} / {gradient:.1e}"


def _error_tables(outcomes) -> None:
    """For each target: checks down, dtypes across."""
    for target in dict.fromkeys(o.target for o in outcomes):
        cells = {}
        for o in outcomes:
            if o.target == target:
                text = _pair(o.output, o.gradient) if not o.error else "error"
                cells.setdefault(o.check.name, {})[o.check.dtype] = text if o.ok else f"**{text} missed**"
        dtypes = list(dict.fromkeys(o.check.dtype for o in outcomes))
        rows = [[name, *(found.get(d, "") for d in dtypes)] for name, found in cells.items()]
        console.table(["", *dtypes], rows, f"Worst errors against float64, output / gradient: {target}")


def _accuracy_table(outcomes) -> None:
    """For each check in float32: error over torch.nn's, of the worst quantity and of the worst draw."""
    from ..proof._accuracy import allowed

    measured = [o for o in outcomes if o.accuracy]
    if not measured:
        return
    targets = list(dict.fromkeys(o.target for o in measured))
    rows = []
    for name in dict.fromkeys(o.check.name for o in measured):
        mine = {o.target: o for o in measured if o.check.name == name}
        cells = dict.fromkeys(targets, "")
        for target, o in mine.items():
            text = f"{o.accuracy.ratio:.2f} ({o.accuracy.worst:.1f})"
            cells[target] = text if o.accurate else f"**{text} missed**"
        verdict = "ok" if all(o.accurate for o in mine.values()) else "FAILED"
        rows.append([name, *cells.values(), verdict])
    limits = ", ".join(f"{t} {allowed(t):.1f}" for t in targets)
    title = f"float32: error over torch.nn's, worst quantity (worst single draw); allowed: {limits}"
    console.table(["", *targets, "verdict"], rows, title)


def _summary(outcomes) -> None:
    rows = []
    for dtype in dict.fromkeys(o.check.dtype for o in outcomes):
        mine = [o for o in outcomes if o.check.dtype == dtype]
        rows.append(
            [
                dtype,
                _pair(*mine[0].check.tolerance),
                _pair(max(o.output for o in mine), max(o.gradient for o in mine)),
                _pair(max(o.torch_output for o in mine), max(o.torch_gradient for o in mine)),
                f"{max(o.from_torch for o in mine):.0%}",
                "ok" if all(o.ok for o in mine) else "FAILED",
            ]
        )
    columns = [
        "",
        "tolerance",
        "fastrnn",
        "torch.nn's own",
        "fastrnn to torch.nn, of what is allowed",
        "verdict",
    ]
    console.table(columns, rows, "Worst of all, output / gradient")


def _quantized(options: argparse.Namespace, isas) -> list:
    """Rows of weights of low precision, where the filters leave them: they are float32 layers on the CPU."""
    from .._cells import RNN
    from ..proof import quantized

    cells = [cell for cell in options.cell or RNN if cell in RNN]
    asked = not options.path or "layers" in options.path
    if options.device != "cpu" or not cells or not asked or "float32" not in (options.dtype or ["float32"]):
        return []
    return quantized.verify(cells, isas)


def _quantized_table(found) -> None:
    if not found:
        return
    targets = list(dict.fromkeys(row.target for row in found))
    rows = []
    for cell, weights in dict.fromkeys((row.cell, row.weights) for row in found):
        mine = {row.target: row for row in found if (row.cell, row.weights) == (cell, weights)}
        texts = [
            (row.error and "error") or f"{row.output:.1e}" if row.ok else f"**{row.output:.1e} missed**"
            for row in mine.values()
        ]
        verdict = "ok" if all(row.ok for row in mine.values()) else "FAILED"
        rows.append([f"{cell} {weights}", *texts, f"{next(iter(mine.values())).tolerance:.0e}", verdict])
    console.table(
        ["", *targets, "allowed", "verdict"], rows, "Weights of low precision: largest error against float32"
    )


def write_json(outcomes, options: argparse.Namespace, seconds: float, quantized=()) -> None:
    """Every outcome, and what it was measured on, for scripts and for the record of what is verified."""
    from ..proof import machine

    document = {
        "commit": machine.commit(),
        "device": options.device,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "seconds": round(seconds, 1),
        "ok": all(o.ok for o in (*outcomes, *quantized)),
        "outcomes": [
            asdict(o) | {"ok": o.ok, "tolerance": {**o.check.tolerance._asdict()}} for o in outcomes
        ],
        "quantized": [asdict(row) | {"ok": row.ok, "tolerance": row.tolerance} for row in quantized],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1) + "\n")


def run(options: argparse.Namespace) -> int:
    import torch

    from .._ops import library
    from ..proof import numbers

    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: torch sees no GPU")
    if not library.cpu_loaded:
        raise SystemExit(f"there is nothing to verify: fastrnn's kernels are not loaded: {library.cpu_why}")
    unknown = set(options.isa) - set(library.available_cpu_isas())
    if unknown:
        raise SystemExit(f"--isa: {', '.join(sorted(unknown))} cannot run here")
    if options.device == "cpu" and (options.tier or numbers.TF32 in options.dtype):
        raise SystemExit("--tier and --dtype tf32 are about a GPU: add --device cuda")
    dtypes, isas, tiers = options.dtype, options.isa, options.tier
    if options.quick:
        dtypes, isas, tiers = dtypes or ["float32"], isas or [library.cpu_isa()], tiers or ["auto"]
    if options.device != "cpu" and not dtypes:
        dtypes = (*numbers.DTYPES, numbers.TF32)
    wanted = numbers.checks(options.cell, dtypes, options.path, options.variant)
    if not wanted:
        raise SystemExit("the filters leave nothing to check")

    start = time.perf_counter()
    with console.progress(len(wanted)) as advance:
        outcomes = numbers.verify(
            wanted, isas, options.device, tiers, advance, beside_torch=not options.quick
        )
    quantized = _quantized(options, isas)
    _error_tables(outcomes)
    _accuracy_table(outcomes)
    _summary(outcomes)
    _quantized_table(quantized)

    for name, why in dict.fromkeys((f"{o.check.name} {o.check.dtype}", o.torch_error) for o in outcomes):
        if why:
            print(f"{name}: not compared with torch.nn, which cannot run all of it: {why}")
    failed = [o for o in outcomes if not o.ok]
    for o in failed:
        reasons = (
            [o.error]
            if o.error
            else [f"{k}: {o.where[k]}" for k in ("output", "gradient", "from_torch") if k in o.where]
        )
        if not o.accurate:
            reasons.append(f"{o.accuracy.ratio:.2f} times torch.nn's error: {o.accuracy.where}")
        print(f"FAILED {o.check.name} {o.check.dtype} on {o.target}: " + "; ".join(reasons))
    for row in quantized:
        if not row.ok:
            print(
                f"FAILED {row.cell} with weights of {row.weights} on {row.target}: {row.error or row.where}"
            )
    seconds = time.perf_counter() - start
    if options.json:
        write_json(outcomes, options, seconds, quantized)
    failures = len(failed) + sum(not row.ok for row in quantized)
    paths = len(outcomes) + len(quantized)
    print(f"\n{paths} paths checked in {seconds:.0f} s, {failures} over their tolerance")
    return 1 if failures else 0
