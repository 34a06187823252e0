"""Several runs on one machine as one: the parts of a sweep, and contenders that have a run of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from .results import from_lines
from .run import with_targets


def load(path: Path) -> dict:
    """A run: a results.json, the folder that holds one, or the lines of one (.jsonl), such as gpu-check's
    call 2.

    Those of call 1 have no run, but latencies: {"latency": …}.

    Raises:
        ValueError: it holds neither.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        document = from_lines(path) if path.suffix == ".jsonl" else json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(document, dict) or not {"results", "latency"} & set(document):
        raise ValueError(f"{path}: expected a benchmark's results.json, or the lines of one or of gpu-check")
    return document


def _machine(run: dict) -> tuple:
    return run["machine"]["cpu"], *(d["name"] for d in run["machine"]["devices"])


def _presets(names: Sequence[str]) -> str:
    """Their names; all the parts of one preset are that preset."""
    names = list(dict.fromkeys(names))
    for name in list(names):
        if match := re.fullmatch(r"(\w+) \d+/(\d+)", name):
            every = {f"{match[1]} {k}/{match[2]}" for k in range(1, int(match[2]) + 1)}
            if every <= set(names):
                names = [match[1], *(n for n in names if n not in every)]
    return " + ".join(names)


def merge(runs: Sequence[dict]) -> dict:
    """One run of several, of which a later one counts where both have a case: a ratio is from one run.

    Raises:
        ValueError: no run has results, or they are of different machines.
    """
    timed = [r for r in runs if "results" in r]
    if not timed:
        raise ValueError("expected at least one run with results")
    if len(machines := {_machine(r) for r in timed}) > 1:
        raise ValueError(f"expected runs of one machine, got {' and '.join(map(str, sorted(machines)))}")
    out = dict(timed[-1])

    def key(entry: dict) -> tuple:
        return (*entry["case"].items(), entry["threads"])

    results = {key(r): r for run in timed for r in run["results"]}
    out["results"] = list(results.values())
    dropped = {key(d): d for run in timed for d in run.get("dropped", ())}
    out["dropped"] = [d for k, d in dropped.items() if k not in results]
    out["limits"] = list({(x["dtype"], x["threads"]): x for run in timed for x in run["limits"]}.values())
    for name in ("scaling", "overhead", "scan", "kernels", "crowd", "memory"):
        out[name] = [entry for run in timed for entry in run.get(name, ())]
    out["threads"] = sorted({n for run in timed for n in run["threads"]})
    out["preset"] = _presets([r["preset"] for r in timed])
    out["commit"] = " and ".join(dict.fromkeys(r["commit"] or "unknown" for r in timed))
    out["seconds"] = sum(r["seconds"] for r in timed)
    out["load"] = max(r["load"] or 0.0 for r in timed)
    if latencies := [r["latency"] for r in runs if r.get("latency")]:
        out["latency"] = latencies[-1]
    return with_targets(out)
