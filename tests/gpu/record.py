"""The committed tables of the tiers, from the results of check.py's calls: `make gpu-table RESULTS=FOLDER`.

    python tests/gpu/record.py                      prints the table of docs/gpu-verified.md
    python tests/gpu/record.py FOLDER or FILE ...   enters call-1.jsonl and call-2.jsonl into
        benchmarks/results/gpu_verification.json    which kernels are verified on which GPU at which commit
        docs/gpu-verified.md                        the same as a table
        benchmarks/results/<date>-<gpu>/            the sweep's results.json and report
        csrc/plan/table.inl                         the plan's table, from what the sweep timed the tiers at

Either call alone will do; what was not run is not claimed. A family has an entry for each GPU that has run
it; without one the table says that none has. A later outcome on the same GPU replaces the earlier one.
Nothing is taken from a dry run. --root FOLDER: another checkout's files. Build and test afterwards, and
commit all of it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import lines

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path("benchmarks/results/gpu_verification.json")
PAGE = Path("docs/gpu-verified.md")
BEGIN, END = "<!-- made by make gpu-table -->", "<!-- end of what make gpu-table made -->"
CELLS = ("lstm", "gru", "rnn")
#: Kernel families, first the tiers by their names: what they are, and the cells that they run.
FAMILIES = {
    "stepwise": ("a product and a kernel a step", CELLS),
    "stepwise_graph": ("the same as one CUDA graph", CELLS),
    "one_cta": ("one CTA", CELLS),
    "cluster": ("a thread block cluster", CELLS),
    "grid": ("the whole grid", CELLS),
    "scan": ("elementwise, one kernel whatever the tier", ("sru", "srupp")),
    "wavefront": ("stacked layers on streams", CELLS),
}
#: In the order in which the table names them. Those of a step that has no word on single cells count for all.
CHECKS = ("smoke", "tests", "soak", "tune", "memcheck")
#: Outcomes that are no failure.
GOOD = ("ok", "skipped", "not run")


def load(path: Path = ROOT / RECORD) -> dict:
    return json.loads(path.read_text())


def empty() -> dict:
    """A record of nothing: every family and cell, no run."""
    families = [
        {"family": family, "what": what, "cell": cell, "runs": []}
        for family, (what, cells) in FAMILIES.items()
        for cell in cells
    ]
    return {"format": 2, "families": families}


class Results:
    """One call's lines, sorted."""

    def __init__(self, entries: Iterable[dict]) -> None:
        self.call: dict = {}
        self.facts: dict = {}
        #: Of each step its last status, its outcomes by name, and what it left.
        self.statuses: dict[str, str] = {}
        self.outcomes: dict[str, dict[str, str]] = {}
        self.left: dict[str, dict] = {}
        self.timed: list[dict] = []
        for entry in entries:
            event, step = entry["event"], entry.get("step", "")
            if event == "call":
                self.call = entry
            elif event == "facts":
                self.facts = entry
            elif event == "step":
                self.statuses[step] = entry["status"]
            elif event == "outcome":
                self.outcomes.setdefault(step, {})[entry["name"]] = entry["outcome"]
            elif event == "left":
                self.left[step] = entry["left"]
            elif event == "result":
                self.timed.append(entry)

    @property
    def gpu(self) -> dict | None:
        devices = self.facts.get("machine", {}).get("devices")
        return devices[0] if devices else None

    def _steps(self, check: str, family: str) -> list[str]:
        """Those that speak for a check of a family: clusters have a smoke step for each size."""
        sizes = rf"{re.escape(f'{check} {family}')}(_\d+)?"
        return [name for name in self.statuses if re.fullmatch(sizes, name)]

    def verdict(self, check: str, family: str, cell: str) -> str | None:
        """ "ok" or "failed"; None where the check did not run or has no word on the cell."""
        if check == "tune":
            return self._tuned(family, cell)
        found = [self._of_step(step, family, cell) for step in self._steps(check, family)]
        if "failed" in found:
            return "failed"
        return "ok" if found and None not in found else None

    def _of_step(self, step: str, family: str, cell: str) -> str | None:
        outcomes = self.outcomes.get(step, {})
        if any(cell in cells_of(name, family) and o not in GOOD for name, o in outcomes.items()):
            return "failed"  # "running" is what a step hung or died in
        status = self.statuses[step]
        if status == "ok":
            return (
                "ok" if any(cell in cells_of(n, family) and o == "ok" for n, o in outcomes.items()) else None
            )
        # Where it is no single outcome's fault it is everybody's: what memcheck finds, a library that does
        # not load.
        everybodys = status != "skipped" and all(o in GOOD for o in outcomes.values())
        return "failed" if everybodys and not (status == "hung" and outcomes) else None

    def _tuned(self, family: str, cell: str) -> str | None:
        """Of the candidates that `fastrnn tune` has verified: "ok" where there is one and none failed."""
        states = []
        for left in self.left.values():
            for device in left.get("devices", {}).values() if isinstance(left, dict) else ():
                for kind, record in device.get("kinds", {}).items():
                    for name, candidate in record.get("candidates", {}).items():
                        if name.startswith(family) and kind.startswith(cell):
                            states.append(candidate["state"])
        if any(state not in ("verified", "not run") for state in states):
            return "failed"
        return "ok" if "verified" in states else None

    def speed(self, family: str, cell: str) -> dict[str, list[float]] | None:
        """Times that the tier is as fast as torch.nn, least and most, of inference and training."""
        found: dict[str, list[float]] = {}
        for result in self.timed:
            case, contenders = result["case"], result["contenders"]
            if case["cell"] == cell and family in contenders and "torch" in contenders:
                ratio = contenders["torch"]["median_s"] / contenders[family]["median_s"]
                found.setdefault("training" if case["training"] else "inference", []).append(round(ratio, 2))
        return {work: [min(r), max(r)] for work, r in found.items()} or None


def cells_of(name: str, family: str) -> Sequence[str]:
    """The cells that an outcome's name is about: those that it has as words, all where it has none."""
    words = re.split(r"[^a-z]+", name.rpartition("::")[2].lower())  # a test's file has words of its own
    known = FAMILIES[family][1]
    found = [cell for cell in known if cell in words]
    return found or known


def enter(results: Results, record: dict) -> None:
    """Enter a call's outcomes into a record.

    Raises:
        ValueError: it is of a dry run, of no GPU, or of no commit.
    """
    if results.call.get("dry_run"):
        raise ValueError("a dry run has measured nothing")
    if results.gpu is None:
        raise ValueError("the call ran on no GPU")
    commit = results.call.get("commit")
    if not commit:
        raise ValueError("a record needs the commit that was run: name it with check.py's --commit")
    name, driver = results.gpu["name"], results.gpu.get("driver")
    for entry in record["families"]:
        family, cell = entry["family"], entry["cell"]
        checks = {c: v for c in CHECKS if (v := results.verdict(c, family, cell))}
        speed = results.speed(family, cell)
        if not checks and not speed:
            continue
        run = next((r for r in entry["runs"] if r["gpu"] == name), None)
        if run is None or run["commit"] != commit:
            entry["runs"] = [r for r in entry["runs"] if r["gpu"] != name]
            run = {"gpu": name, "commit": commit, "driver": driver, "checks": {}}
            entry["runs"].append(run)
        run["checks"] |= checks
        if speed:
            run["speed"] = speed


def _said(run: dict) -> str:
    good = [c for c in CHECKS if run["checks"].get(c) == "ok"]
    bad = [c for c in CHECKS if run["checks"].get(c) not in ("ok", None)]
    text = f"{run['gpu']} at {run['commit']}: {', '.join(good) or 'nothing'}"
    return text + (f"; **failed: {', '.join(bad)}**" if bad else "")


def _times(run: dict) -> str:
    return ", ".join(f"{work} {low:g}-{high:g}x" for work, (low, high) in run.get("speed", {}).items())


def table(record: dict) -> str:
    """The record in Markdown: a line for each family, or for each cell where cells differ."""
    rows = ["| kernels | cells | verified on | against torch.nn |", "|---|---|---|---|"]
    for family, (what, _) in FAMILIES.items():
        groups: dict[tuple[str, str], list[str]] = {}
        for entry in record["families"]:
            if entry["family"] == family:
                where = "<br>".join(map(_said, entry["runs"])) or "not yet run on a GPU"
                times = "<br>".join(filter(None, map(_times, entry["runs"])))
                groups.setdefault((where, times), []).append(entry["cell"].upper().replace("SRUPP", "SRU++"))
        rows += [f"| {family}: {what} | {', '.join(c)} | {w} | {t} |" for (w, t), c in groups.items()]
    return "\n".join(rows)


def into_page(text: str, record: dict) -> str:
    """A page with the table between its marks.

    Raises:
        ValueError: it has no such marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE}: expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table(record)}\n\n{END}{after}"


def write(paths: Sequence[Path], root: Path) -> list[Path]:
    """Enter calls, and write everything that is made of them; the files that were written."""
    target, page = root / RECORD, root / PAGE
    record = load(target) if target.exists() else empty()
    calls = [(path, Results(lines.read(path))) for path in paths]
    for path, results in calls:
        try:
            enter(results, record)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    text = into_page(page.read_text(), record)
    target.write_text(json.dumps(record, indent=1) + "\n")
    page.write_text(text)
    written = [target, page]
    if any(results.timed for _, results in calls):
        written += _sweep(paths, root)
    return written


def _sweep(paths: Sequence[Path], root: Path) -> list[Path]:
    """The report of what was timed, and the plan's table."""
    for folder in (ROOT, ROOT / "benchmarks"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    import plan_table

    from benchmarks.lab import merge
    from benchmarks.lab.report import write as report

    run = merge.merge([r for r in map(_run, paths) if r])
    words = "-".join(re.findall(r"[a-z0-9]+", run["machine"]["devices"][0]["name"].lower()))
    folder = root / "benchmarks" / "results" / f"{run['date'][:10]}-{words}"
    report.write(run, folder)
    out = root / "csrc" / "plan" / "table.inl"
    out.write_text(plan_table.write(plan_table.measured(run)))
    return [folder, out]


def _run(path: Path) -> dict | None:
    """A call's benchmark run or latencies; None where it has neither."""
    from benchmarks.lab import results

    return results.from_lines(path) or None


def files(given: Sequence[Path]) -> list[Path]:
    """The calls' files, those of a folder among them."""
    found = []
    for path in given:
        found += sorted(path.glob("call-[12].jsonl")) if path.is_dir() else [path]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args()
    if not options.results:
        print(table(load(options.root / RECORD)))
        return 0
    try:
        found = files(options.results)
        if not found:
            raise ValueError(f"{options.results[0]}: no call-1.jsonl and no call-2.jsonl there")
        for path in write(found, options.root):
            print(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"gpu-table: {error}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
