"""Real programs, as installed, with torch.nn's recurrent layers and with fastrnn's: `make test-clients`.

Each test trains or runs a program twice, and its numbers must agree; or it runs the program's own tests. What
each run took is printed at the end, and written down with ``--clients-json FILE``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from helpers import kernels_called
from torch import Tensor

import fastrnn

#: Results of the session, in order.
ROWS: list[dict[str, object]] = []


def pytest_addoption(parser):
    parser.addoption("--clients-json", type=Path, metavar="FILE", help="write what tests/clients measured")


def pytest_report_header():
    return f"fastrnn from {Path(fastrnn.__file__).parent}, torch {torch.__version__}"


def _error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference over the largest magnitude of the tensor it is in, among tensors by name."""
    assert got.keys() == expected.keys()
    assert got, "nothing to compare"
    worst = 0.0
    for name, t in expected.items():
        assert got[name].shape == t.shape, name
        assert t.isfinite().all(), name
        # NaN is no smaller than any limit: max() would lose it.
        assert got[name].isfinite().all(), name
        worst = max(
            worst, float((got[name].double() - t.double()).abs().max() / t.abs().max().clamp_min(1e-3))
        )
    return worst


@pytest.fixture
def compare():
    """compare(program, what, road, run, short=..., full=..., limit=...): a program with both libraries.

    run(library, size) runs it with "torch.nn" or "fastrnn" and returns tensors by name. First come short
    runs, which warm things and show that fastrnn's kernels run in the one and not in the other (in neither,
    where kernels=False: torch.func's transforms go through the reference); then the full ones, which are
    timed and must agree within `limit` of each tensor's largest magnitude.
    """

    def compare(
        program: str,
        what: str,
        road: str,
        run: Callable[[str, int], dict[str, Tensor]],
        *,
        short: int,
        full: int,
        limit: float,
        kernels: bool = True,
    ) -> None:
        calls = {name: kernels_called(lambda name=name: run(name, short)) for name in ("torch.nn", "fastrnn")}
        assert calls["torch.nn"] == 0
        assert (calls["fastrnn"] > 0) == kernels
        results, seconds = {}, {}
        for name in calls:
            start = time.perf_counter()
            results[name] = run(name, full)
            seconds[name] = time.perf_counter() - start
        error = _error(results["fastrnn"], results["torch.nn"])
        ROWS.append(
            {
                "program": f"{program} {version(program)}",
                "what": what,
                "road": road,
                "torch_seconds": seconds["torch.nn"],
                "fastrnn_seconds": seconds["fastrnn"],
                "difference": error,
            }
        )
        assert error <= limit, f"{program}, {what}: difference {error:.1e}, limit {limit:.1e}"

    return compare


@pytest.fixture
def own_tests():
    """own_tests(*arguments, summary=...): pytest, inside fastrnn.patch(), passes and says the summary.

    In a process of its own: what other projects leave behind in one is not what a suite expects. (hypothesis
    asks every module for its file, and speechbrain's lazy ones then fail to import what is not installed.)
    """

    def own_tests(*arguments: str, summary: str) -> None:
        here = Path(__file__).parent
        path = os.pathsep.join(map(str, (Path(fastrnn.__file__).parents[1], here, here.parent)))
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "patched_suite",
                *arguments,
            ],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
        assert summary in run.stdout

    return own_tests


def pytest_terminal_summary(terminalreporter, config):
    if not ROWS:
        return
    terminalreporter.section("seconds with torch.nn (opacus: its own layers) and fastrnn, one thread")
    titles = ("program", "what", "road", "torch.nn", "fastrnn", "times faster", "largest difference")
    lines = [titles]
    for row in ROWS:
        before, after = row["torch_seconds"], row["fastrnn_seconds"]
        lines.append(
            (
                row["program"],
                row["what"],
                row["road"],
                f"{before:.2f}",
                f"{after:.2f}",
                f"{before / after:.2f}",
                f"{row['difference']:.0e}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        terminalreporter.write_line("  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip())
    path = config.getoption("--clients-json")
    if path is not None:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        path.write_text(json.dumps({**machine, "threads": 1, "runs": ROWS}, indent=1) + "\n")
