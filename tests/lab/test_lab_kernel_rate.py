"""The benchmark's rows on the kernels alone, beside the machine's limits, and on more threads than cores."""

from __future__ import annotations

import argparse
import math
from functools import partial

import pytest
import torch

from benchmarks.lab import __main__ as cli
from benchmarks.lab import kernel_rate, run, targets, worker
from benchmarks.lab.report import tables, write

SHAPES = ((2, 16, 8), (50, 1, 16), (1, 1, 8), (2, 3, 8))


def line(name, share, cell="lstm", T=100, threads=1):
    """A pass that reaches such a share of 100 GFLOP/s."""
    of = {"cell": cell, "name": name, "T": T, "B": 16, "H": 128, "threads": threads}
    return of | {"seconds": 1e-3, "work": 1e8 * share, "limit": 1e11}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(kernel_rate, "measure", partial(kernel_rate.measure, budget_s=0.0, shapes=SHAPES))
    monkeypatch.setattr(kernel_rate, "crowd", partial(kernel_rate.crowd, budget_s=0.0, shape=(2, 1, 16)))


def _events(**asked):
    request = {"cases": [], "scaling": [], "overhead": False, "scan": False, "contenders": ["fastrnn"]}
    request |= {"budget_s": 0.1, "limits_s": 0.1, "min_rounds": 1, "hurry": True, **asked}
    events = []
    worker.work(request, lambda event, **fields: events.append((event, fields)))
    return events


def test_measured_lines(quick):
    """A layer with rows enough is held against the multiply-adds, forward and backward; one of a single row
    and many steps against the rate of reading. Others, whose limit is neither, are left out."""
    lines = [fields for event, fields in _events(threads=1, kernels=True) if event == "kernels"]
    assert [(x["cell"], x["name"], x["T"]) for x in lines] == [
        (cell, name, T)
        for cell in kernel_rate.CELLS
        for name, T in ((kernel_rate.FORWARD, 2), (kernel_rate.BACKWARD, 2), (kernel_rate.READING, 50))
    ]
    assert all(math.isfinite(x[key]) and x[key] > 0 for x in lines for key in ("seconds", "work", "limit"))
    forward, backward, reading = lines[:3]
    assert forward["work"] == 2 * 2 * 16 * 4 * 8 * (8 + 8), "both products"
    assert backward["work"] == 2 * forward["work"], "gradients of both factors of each"
    assert reading["work"] == 50 * 4 * 16 * 16 * 4, "the bytes of W_hh, once a step"
    assert not any(event in ("kernels", "crowd") for event, _ in _events(threads=1, kernels=False))


def test_more_threads_than_cores(quick):
    """Only a run of several threads asks for more of them; afterwards there are as many as before."""
    assert not any(event == "crowd" for event, _ in _events(threads=1, kernels=True))
    (found,) = [fields for event, fields in _events(threads=2, kernels=True) if event == "crowd"]
    assert torch.get_num_threads() == 2
    assert found["threads"] == kernel_rate.CROWD
    assert found["one_s"] > 0
    assert found["many_s"] > 0


def test_verdicts():
    """The geometric mean decides and the worst is told, with the limit that was measured beside it."""
    lines = [
        line("forward", 0.95),
        line("forward", 0.9, T=7),
        line("backward", 0.5),
        line("forward", 0.99, "gru"),
    ]
    forward, backward, gru = targets.evaluate_absolute({"results": [], "kernels": lines})
    assert [x["met"] for x in (forward, backward, gru)] == [True, False, True]
    assert forward["reached"] == "92% in the mean, 90% at worst (7,16,128; limit 100 G/s)"
    assert (forward["limit"], backward["limit"]) == (">= 88%", ">= 84%")
    crowds = [{"threads": 8, "cores": 2, "one_s": 1.0, "many_s": many} for many in (1.9, 2.1)]
    good, bad = targets.evaluate_absolute({"results": [], "crowd": crowds})
    assert (good["met"], bad["met"]) == (True, False)
    assert bad["name"] == "8 threads on 2 cores over one, B = 1"
    assert bad["reached"] == "2.10x the time"


def test_table():
    table = tables.kernels_table(
        {"kernels": [line("forward", 0.5), line(kernel_rate.READING, 0.25, threads=2)]}
    )
    assert table.rows == [
        ["LSTM forward", "100,16,128", "1", "1.00", "50 GFLOP/s", "100 GFLOP/s", "50%"],
        ["LSTM forward, one row", "100,16,128", "2", "1.00", "25 GB/s", "100 GB/s", "25%"],
    ]


def test_what_a_pass_does_beside_its_limit(quick):
    """Forward the cell's functions, of one row the inputs' product too; backward neither is counted. Meetings
    are those of threads that split the units."""
    lines = [fields for event, fields in _events(threads=1, kernels=True) if event == "kernels"]
    forward, backward, reading = lines[:3]
    assert forward["beside"].keys() == {"cell", "meetings"}
    assert reading["beside"].keys() == {"cell", "meetings", "inputs"}
    assert forward["beside"]["cell"] > 0
    assert reading["beside"]["inputs"] > 0
    assert backward["beside"] == {"meetings": 0.0} == {"meetings": forward["beside"]["meetings"]}
    assert kernel_rate.least(forward) > forward["work"] / forward["limit"]


def test_meetings_of_two_threads(monkeypatch):
    monkeypatch.setattr(kernel_rate.library, "cpu_last_plan", lambda: {"unit_groups": 2})
    beside = kernel_rate._beside("lstm", 2, 50, 1, 16)
    assert 0 < beside["meetings"] < 50
    monkeypatch.setattr(kernel_rate.library, "cpu_last_plan", lambda: {"unit_groups": 1})
    assert kernel_rate._beside("lstm", 2, 50, 1, 16)["meetings"] == 0.0


def test_the_least_time_is_reported():
    """Beside the share of one limit that of all of them, where a run has it. An older run has not."""
    whole = line("forward", 0.5) | {"beside": {"cell": 2e-4, "meetings": 0.0}}
    assert kernel_rate.least(line("forward", 0.5)) is None
    assert kernel_rate.least(whole) == pytest.approx(7e-4)
    (verdict,) = targets.evaluate_absolute({"results": [], "kernels": [whole]})
    assert verdict["reached"].endswith("limit 100 G/s); 70% of all that it has to do")
    assert not verdict["met"], "the target is the share of the one limit still"
    table = tables.kernels_table({"kernels": [whole]})
    assert table.columns[-5:] == [*tables.BESIDE.values(), "all at its limit, ms", "share"]
    assert table.rows[0][-6:] == ["50%", "0.200", "", "", "0.700", "70%"]
    mixed = tables.kernels_table({"kernels": [whole, line("forward", 0.5)]})
    assert {len(row) for row in mixed.rows} == {7}, "a merged run, a part of which has not"


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_the_probes_of_a_cell_and_a_meeting(cell):
    assert 1e6 < torch.ops.fastrnn.cpu_cell_rate(cell) < 1e13, "units a second"
    for threads in (1, 2, 3):
        assert 0 < torch.ops.fastrnn.cpu_meeting(threads) < 1
    with pytest.raises(RuntimeError, match="cell: "):
        torch.ops.fastrnn.cpu_cell_rate("sru")
    with pytest.raises(RuntimeError, match="threads: expected 1 to 1024, got 0"):
        torch.ops.fastrnn.cpu_meeting(0)


def test_a_run_keeps_and_reports_them(monkeypatch):
    def work(plan, threads, handle):
        handle({"event": "kernels", **line("backward", 0.5, threads=threads)})
        handle({"event": "crowd", "threads": 8, "cores": 2, "one_s": 1.0, "many_s": 1.0})

    monkeypatch.setattr(run, "_run_worker", work)
    stored = run.run(run.Plan(preset="rates", cases=[], threads=[2], kernels=True))
    assert len(stored["kernels"]) == len(stored["crowd"]) == 1
    assert len(stored["absolute_targets"]) == 2
    assert write.build(stored).to_markdown().count(tables.KERNELS) >= 2


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("--rates", True),
        ("--full", True),
        ("--quick", False),
        ("--full --no-extras", False),
        ("--random", False),
    ],
)
def test_which_runs_time_the_kernels(arguments, wanted):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    plan = cli.make_plan(parser.parse_args(arguments.split()))
    assert plan.kernels is wanted
    assert bool(plan.cases) is (arguments != "--rates")
