"""The benchmark's rows on the rate of SRU's recurrence alone."""

import argparse
import math
from functools import partial

import pytest
import torch

from benchmarks.lab import __main__ as cli
from benchmarks.lab import run, scan_rate, targets, worker
from benchmarks.lab.report import tables, write

SHAPE = (3, 5, 64)


def line(name, seconds, threads=1):
    """10 MB moved where reading makes 100 MB/s."""
    return {"name": name, "threads": threads, "seconds": seconds, "bytes": 10_000_000, "reading": 1e8}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(scan_rate, "measure", partial(scan_rate.measure, budget_s=0.0, shape=SHAPE))
    monkeypatch.setattr(scan_rate, "_READ_BYTES", 1 << 20)


def test_measured_lines(quick):
    """The worker hands on a line for every pass, before it times the cases, where it was asked to."""
    request = {"threads": torch.get_num_threads(), "cases": [], "scaling": []}
    request |= {"overhead": False, "scan": True}
    request |= {"contenders": ["fastrnn"], "budget_s": 0.1, "limits_s": 0.1, "min_rounds": 1, "hurry": True}
    events = []
    worker.work(request, lambda event, **fields: events.append((event, fields)))
    lines = [fields for event, fields in events if event == "scan"]
    assert [found["name"] for found in lines] == list(scan_rate.VALUES)
    for found in lines:
        assert found["threads"] == request["threads"]
        assert all(math.isfinite(found[key]) and found[key] > 0 for key in ("seconds", "bytes", "reading"))

    events.clear()
    worker.work(request | {"scan": False}, lambda event, **fields: events.append((event, fields)))
    assert not any(event == "scan" for event, _ in events)


def test_bytes_are_those_of_the_tensors(quick, monkeypatch):
    """The bytes of a pass are those of the large tensors that its operator takes and returns: a rate is only
    as right as they are. Weights, biases and first states are less than a step and do not count."""
    moved = {}
    recorded = {"sru_forward": torch.ops.fastrnn.sru_forward, "sru_backward": torch.ops.fastrnn.sru_backward}

    def record(name):
        def call(*arguments):
            results = recorded[name](*arguments)
            tensors = [t for t in (*arguments, *results) if isinstance(t, torch.Tensor)]
            key = name if name == "sru_backward" else f"{name} {arguments[-1]}"
            moved[key] = sum(t.numel() * t.element_size() for t in tensors if t.numel() >= math.prod(SHAPE))
            return results

        return call

    for name in recorded:
        monkeypatch.setattr(torch.ops.fastrnn, name, record(name))
    lines = {found["name"]: found["bytes"] for found in scan_rate.measure(1)}
    assert lines == {
        "inference": moved["sru_forward False"],
        "forward in training": moved["sru_forward True"],
        "backward": moved["sru_backward"],
    }


def test_targets_judge_every_pass():
    """Seven tenths of the rate of reading are wanted of each pass on each number of threads; a run stored
    before this was measured has no such line."""
    lines = [line("inference", 1 / 7.1), line("backward", 1 / 6.9), line("inference", 0.2, threads=2)]
    met, missed, two = targets.evaluate_absolute({"results": [], "scan": lines})
    assert (met["met"], missed["met"], two["met"]) == (True, False, False)
    assert "inference, 1 thread" in met["name"]
    assert "backward, 1 thread" in missed["name"]
    assert "0.69" in missed["reached"]
    assert "2 threads" in two["name"]
    assert targets.evaluate_absolute({"results": []}) == []


def test_table():
    """A row has time, bytes, both rates and their ratio in the units of its columns."""
    table = tables.scan_table({"scan": [line("backward", 0.125, threads=2)]})
    assert len(table.columns) == len(table.rows[0])
    assert table.rows[0] == ["backward", "2", "125", "10.0", "0.1", "0.1", "80%"]


def test_from_the_worker_to_the_report(monkeypatch, capsys):
    """The worker's lines reach the stored run, its targets, the page and the terminal; of a run without them
    neither the page nor the terminal speaks."""

    def worker_process(plan, threads, handle):
        if plan.scan:
            handle({"event": "scan", **line("backward", 1 / 6.9, threads)})

    monkeypatch.setattr(run, "_run_worker", worker_process)
    for scan in (True, False):
        stored = run.run(run.Plan(preset="full", cases=[], threads=[2], scan=scan))
        assert len(stored["scan"]) == len(stored["absolute_targets"]) == scan
        cli.show(stored)
        for text in (write.build(stored).to_markdown(), capsys.readouterr().out):
            assert text.count(tables.SCAN) >= 2 * scan
            assert ("MB moved" in text) == scan


def test_only_runs_with_an_sru_time_the_scan():
    """A run filtered to other cells does not wait for it, nor one without extras."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    for arguments, expected in (
        ("", True),
        ("--cell gru", False),
        ("--cell srupp", True),
        ("--no-extras", False),
    ):
        assert cli.make_plan(parser.parse_args(arguments.split())).scan is expected
