"""Verify this GPU's kernels, time those that are right, and let the winners run by default.

On a GPU torch's own layers run until a kernel is proven to be right and faster on this very kind of device.
Each candidate runs first in a child process with a time limit; what is wrong, hangs or crashes goes into
quarantine. What was found is kept in $FASTRNN_CACHE or the user's cache folder. Exit status 1 if a candidate
failed now.

  python -m fastrnn tune
  python -m fastrnn tune --shape 100,16,256,256 100,64,256,256 --cell gru --dtype bfloat16
  python -m fastrnn tune --shape 100,16,64,64 --layers 4 --dtype bfloat16
  python -m fastrnn tune --model my_project.models:make --input 100,16
  python -m fastrnn tune --show
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import sys
from pathlib import Path

from . import console
from . import options as types

_COLUMNS = ["kind of layer", "runs by default", ""]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .._cells import RNN
    from .._plan.tuning.kinds import DTYPES, ROWS

    some = {"nargs": "+", "metavar": ""}
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--shape",
        type=types.full_shape,
        help="T,B,I,H; by default the shapes that most programs have",
        **some,
    )
    what.add_argument("--model", metavar="MODULE:NAME", help="a module or what makes one; or FILE.pt of one")
    parser.add_argument("--input", type=types.steps_and_rows, metavar="T,B", help="of --model (100,16)")
    parser.add_argument("--cell", choices=tuple(RNN), default=["lstm"], help=", ".join(RNN), **some)
    of_model = "; float32, for a model its own"
    parser.add_argument("--dtype", choices=DTYPES, help=", ".join(DTYPES) + of_model, **some)
    parser.add_argument("--layers", type=types.count, default=1, metavar="L", help="stacked, of shapes (1)")
    parser.add_argument("--bidirectional", action="store_true", help="both directions, of shapes")
    parser.add_argument("--rows", choices=ROWS, default="full", help="how rows of a batch differ (full)")
    parser.add_argument("--work", choices=("inference", "training"), help="by default both")
    parser.add_argument("--device", type=types.device, default="cuda", help="such as cuda:1")
    parser.add_argument("--limit", type=types.seconds, default=60.0, metavar="S", help="of a candidate (60)")
    parser.add_argument("--again", action="store_true", help="also what has an outcome, quarantine included")
    parser.add_argument("--json", type=types.output, metavar="FILE", help="write what was found there too")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--verify-only", action="store_true", help="time nothing: nothing new will run by default"
    )
    way.add_argument("--show", action="store_true", help="only print what is known, of every device")
    way.add_argument("--clear", action="store_true", help="forget it")
    way.add_argument("--export", type=types.output, metavar="FILE", help="write it as a table to ship")


def run(options: argparse.Namespace) -> int:
    if options.show or options.clear or options.export:
        return _known(options)
    return _tune(options)


def _tune(options: argparse.Namespace) -> int:
    import torch

    from .._run.tuning import tune

    if options.device == "cpu":
        raise SystemExit("--device cpu: the CPU's kernels need no tuning")
    if options.input and not options.model:
        raise SystemExit("--input is about --model: a shape has T and B")
    try:
        found = tune.tune(
            _model(options.model) if options.model else options.shape,
            options.input,
            cell=options.cell,
            dtype=options.dtype and [getattr(torch, name) for name in options.dtype],
            num_layers=options.layers,
            device=options.device if options.device != "cuda" else None,
            bidirectional=options.bidirectional,
            training=None if options.work is None else options.work == "training",
            rows=options.rows,
            verify_only=options.verify_only,
            again=options.again,
            progress=console.progress,
            limit_s=options.limit,
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise SystemExit(str(error)) from None
    console.table(_COLUMNS, found.rows(), f"{found.device['gpu']}, {found.path}")
    if options.json:
        _write(options.json, {"ok": not found.quarantined} | found.to_dict())
    for name, why in found.quarantined.items():
        print(f"QUARANTINED {name}: {why}")
    failed = [why for why in found.quarantined.values() if not why.startswith("slow")]
    print(f"\n{len(found.kinds)} kinds of layers, {len(failed)} candidates failed")
    return 1 if failed else 0


def _model(name: str):
    import torch

    # The project that one stands in: `fastrnn` itself, unlike `python -m fastrnn`, sees installed ones alone.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    module, _, attribute = name.partition(":")
    is_file = name.endswith((".pt", ".pth"))
    if not is_file and not attribute:
        raise SystemExit(f"--model: expected MODULE:NAME or FILE.pt, got {name!r}")
    try:
        if is_file:
            return torch.load(name, weights_only=False, map_location="cpu")
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise SystemExit(f"--model {name}: {error}") from None
    return found if isinstance(found, torch.nn.Module) else found()


def _known(options: argparse.Namespace) -> int:
    from .._plan.tuning import trust

    store = trust.store()
    document = store.read()
    devices = document["devices"]
    if options.clear:
        store.update(lambda known: known["devices"].clear())
        print(f"{len(devices)} devices forgotten: {store.path}")
        return 0
    if options.export:
        if not devices:
            raise SystemExit(f"--export: nothing is known yet: {store.path}")
        _write(options.export, document)
        print(f"{len(devices)} devices written to {options.export}")
        return 0
    if options.json:
        _write(options.json, document)
    if not devices:
        print(f"nothing is known yet: {store.path}")
    for name, device in devices.items():
        console.table(_COLUMNS, _rows(device), name)
    return 0


def _rows(device: dict) -> list[list[str]]:
    from .._plan.tuning import cache

    rows = [[f"tier {t}", "quarantined", why] for t, why in sorted(device.get("quarantined", {}).items())]
    for key, record in sorted(device.get("kinds", {}).items()):
        tiers = [record[which] for which in ("forward", "backward") if which in record]
        rows.append([key, " / ".join(dict.fromkeys(tiers)) or "torch (not timed)", record.get("why", "")])
        for candidate, entry in sorted(record.get("candidates", {}).items()):
            rows.append([f"  {candidate}", *cache.candidate_state(entry)])
    return rows


def _write(path: Path, document: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
