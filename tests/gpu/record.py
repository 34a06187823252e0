"""Which kernels are verified on which GPU at which commit: benchmarks/results/gpu_verification.json.

    python tests/gpu/record.py             prints it as the table of docs/gpu-verified.md
    python tests/gpu/record.py FILE ...    enters the outcomes of gpu-check's check.json and measure.json

A family has an entry for each GPU that has run it; without one the table says that none has. A later outcome
on the same GPU replaces the earlier one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

RECORD = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "gpu_verification.json"
CELLS = ("lstm", "gru", "rnn")
#: Kernel families, first the tiers by their names: what they are, and the cells that they run.
FAMILIES = {
    "stepwise": ("a product and a kernel a step", CELLS),
    "one_cta": ("one CTA", CELLS),
    "cluster": ("a thread block cluster", CELLS),
    "grid": ("the whole grid", CELLS),
    "scan": ("elementwise, one kernel whatever the tier", ("sru", "srupp")),
    "wavefront": ("stacked layers on streams", CELLS),
}
SANITIZERS = ("memcheck", "racecheck", "synccheck")


def load(path: Path = RECORD) -> dict:
    return json.loads(path.read_text())


def empty() -> dict:
    """A record of nothing: every family and cell, no run."""
    families = [
        {"family": family, "what": what, "cell": cell, "runs": []}
        for family, (what, cells) in FAMILIES.items()
        for cell in cells
    ]
    return {"format": 1, "families": families}


def outcomes(document: dict, family: str, cell: str) -> dict[str, str]:
    """What a part of gpu-check says of a family and a cell: "ok" or "failed" by the name of the check."""
    found = {}
    steps = document["steps"]
    # The sanitizers run single layers, those of the clusters apart from all others.
    sanitized = () if family == "wavefront" else SANITIZERS
    names = {"tests": f"tests {family}"} | {
        s: f"{s} cluster" if family == "cluster" else s for s in sanitized
    }
    for check, name in names.items():
        if steps.get(name, {}).get("status") in ("ok", "failed"):
            found[check] = steps[name]["status"]
    for outcome in steps.get("verify", {}).get("result", {}).get("outcomes", ()):
        target = "auto" if family == "scan" else family
        if outcome["target"].endswith(f" {target}") and outcome["check"]["cell"].partition("_")[0] == cell:
            ok = outcome["ok"] and found.get("verify") != "failed"
            found["verify"] = "ok" if ok else "failed"
    return found


def enter(document: dict, path: Path = RECORD) -> None:
    """Enter a part's outcomes. A document without a GPU enters nothing; ValueError where it has no commit."""
    devices = document.get("machine", {}).get("devices") or []
    if not devices:
        return
    if not document.get("commit"):
        raise ValueError("a record needs the commit that was run: the document has none")
    record = load(path) if path.exists() else empty()
    gpu, commit = devices[0]["name"], document["commit"]
    for entry in record["families"]:
        found = outcomes(document, entry["family"], entry["cell"])
        if not found:
            continue
        run = next((r for r in entry["runs"] if r["gpu"] == gpu), None)
        if run is None or run["commit"] != commit:
            entry["runs"] = [r for r in entry["runs"] if r["gpu"] != gpu]
            run = {"gpu": gpu, "commit": commit, "driver": devices[0].get("driver"), "checks": {}}
            entry["runs"].append(run)
        run["checks"] |= found
    path.write_text(json.dumps(record, indent=1) + "\n")


def table(record: dict) -> str:
    """The record in Markdown."""
    lines = ["| kernels | cell | verified on |", "|---|---|---|"]
    for entry in record["families"]:
        runs = []
        for run in entry["runs"]:
            good = [name for name, status in run["checks"].items() if status == "ok"]
            bad = [name for name, status in run["checks"].items() if status != "ok"]
            text = f"{run['gpu']} at {run['commit']}: {', '.join(good) or 'nothing'}"
            runs.append(text + (f"; **failed: {', '.join(bad)}**" if bad else ""))
        where = "<br>".join(runs) or "not yet run on a GPU"
        lines.append(f"| {entry['family']}: {entry['what']} | {entry['cell'].upper()} | {where} |")
    return "\n".join(lines)


def main() -> int:
    for name in sys.argv[1:]:
        enter(json.loads(Path(name).read_text()))
    print(table(load()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
