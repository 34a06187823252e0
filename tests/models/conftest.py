"""What the trainings of these tests reached: a table after ``make models``, and a folder of results."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
import torch

from fastrnn.proof import machine

#: Name of the property of a test's report that holds its figures.
FIGURES = "figures"


@pytest.fixture
def record_figures(record_property):
    """A function that notes what a training reached: figures by name, and the targets of some of them, by
    name too, as the examples have them."""

    def record(training: str, values: dict[str, float], targets: dict[str, tuple[str, float]]) -> None:
        figures = {
            name: {"value": value, "target": " ".join(map(str, targets.get(name, ())))}
            for name, value in values.items()
        }
        record_property(FIGURES, {"training": training, "figures": figures})

    return record


class Results:
    """The figures of this run and, in a folder, those of earlier parts of it: results.json, report.md."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        # Read at once: files may change while the models train.
        self.facts = {
            "commit": machine.commit(),
            "cpu": machine.cpu_model(),
            "threads": 1,  # tests/conftest.py
            "torch": torch.__version__,
        }
        self.trainings: dict[str, dict] = {}

    def pytest_runtest_logreport(self, report) -> None:
        noted = dict(report.user_properties).get(FIGURES)
        if report.when == "call" and noted:
            self.trainings[noted["training"]] = {
                "figures": noted["figures"],
                "seconds": round(report.duration, 1),
                "passed": report.passed,
            }

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if not self.trainings:
            return
        terminalreporter.section("What the models reached")
        terminalreporter.write_line(table(self.trainings))
        if self.folder is not None:
            self.write()

    def write(self) -> None:
        """Both files; the parts of a run are of one commit, on one machine."""
        path, trainings = self.folder / "results.json", {}
        if path.exists():
            before = json.loads(path.read_text())
            if all(before[name] == fact for name, fact in self.facts.items()):
                trainings = before["trainings"]
        trainings |= self.trainings
        run = {"date": date.today().isoformat(), **self.facts, "trainings": trainings}
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run, indent=1) + "\n")
        lines = [f"- {name}: {run[name]}" for name in ("date", "commit", "cpu", "threads", "torch")]
        report = ["# fastrnn.models: what each training reached", "\n".join(lines), table(trainings)]
        (self.folder / "report.md").write_text("\n\n".join(report) + "\n")


def table(trainings: dict[str, dict]) -> str:
    """Markdown, a row a figure."""
    rows = ["| training | figure | value | target | seconds |", "|---|---|---|---|---|"]
    for training, result in trainings.items():
        name, seconds = training + ("" if result["passed"] else ", FAILED"), f"{result['seconds']:.0f}"
        for figure, found in result["figures"].items():
            rows.append(f"| {name} | {figure} | {found['value']:.4g} | {found['target']} | {seconds} |")
            name = seconds = ""
    return "\n".join(rows)


def pytest_configure(config) -> None:
    if config.getoption("--full"):
        config.pluginmanager.register(Results(config.getoption("--results")))
