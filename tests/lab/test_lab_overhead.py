"""The benchmark's rows on what a module's call costs above its operator, and the plots' marks."""

import math

import pytest
import torch
from torch import nn

from benchmarks.lab import overhead, presets, targets, worker
from benchmarks.lab.contenders import registry as contenders
from benchmarks.lab.report import tables


def line(name, call_s, operator_s, threads=1, **others):
    times = {"call_s": call_s, "operator_s": operator_s}
    return {"name": name, "threads": threads, "fastrnn": times, **others}


@pytest.mark.parametrize("name", overhead.MODULES)
def test_module_and_operator_do_the_same_work(name):
    """The difference of two times is an overhead only if both calls compute the same: outputs are equal, of
    fastrnn and of torch."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        calls = overhead._calls(name)
        for call, operator in calls.values():
            outputs = []
            for result in (call(), operator()):
                while not isinstance(result, torch.Tensor):
                    result = result[0]
                outputs.append(result.flatten())
            torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)
    assert ("torch" in calls) == hasattr(nn, name)


def test_measured_lines(monkeypatch):
    """Every module has a line with positive times of both libraries, which the worker hands on before it
    times the cases."""
    monkeypatch.setattr(overhead, "MODULES", ("RNNCell", "SRU"))
    events = []
    request = {"threads": torch.get_num_threads(), "cases": [], "scaling": []}
    request |= {"overhead": True, "scan": False}
    request |= {"contenders": ["fastrnn"], "budget_s": 0.1, "limits_s": 0.1, "min_rounds": 1, "hurry": True}
    monkeypatch.setattr(overhead, "interleave", fast_interleave(overhead.interleave))
    worker.work(request, lambda event, **fields: events.append((event, fields)))
    lines = [fields for event, fields in events if event == "overhead"]
    assert [found["name"] for found in lines] == ["RNNCell", "SRU"]
    for found in lines:
        assert all(math.isfinite(s) and s > 0 for s in found["fastrnn"].values())
        assert set(found["fastrnn"]) == {"call_s", "operator_s"}
    assert "torch" in lines[0]
    assert "torch" not in lines[1]


def fast_interleave(interleave):
    return lambda contenders, **options: interleave(
        contenders, **options | {"min_rounds": 1, "budget_s": 0.0}
    )


def test_target_is_about_the_worst_module():
    """40 µs above the operator is allowed; each number of threads is judged by its worst module."""
    lines = [line("LSTM", 70e-6, 40e-6), line("SRU", 90e-6, 49e-6), line("GRU", 50e-6, 20e-6, threads=2)]
    one, two = targets.evaluate_absolute({"results": [], "overhead": lines})
    assert "1 thread" in one["name"]
    assert "41.0 µs at worst (SRU)" in one["reached"]
    assert one["met"] is False
    assert "30.0 µs" in two["reached"]
    assert two["met"] is True


def test_table():
    """Differences are the module's less the operator's; what torch has no module for is a dash."""
    lines = [line("SRU", 50e-6, 20e-6), line("GRU", 30e-6, 10e-6, torch={"call_s": 9e-6, "operator_s": 4e-6})]
    table = tables.overhead_table({"overhead": lines})
    assert len(table.columns) == 8
    assert table.rows[0][2:] == ["50.0", "20.0", "30.0", "–", "–", "–"]
    assert table.rows[1][2:] == ["30.0", "10.0", "20.0", "9.0", "4.0", "5.0"]


def test_ratio_plots_mark_every_contender():
    """Whoever ran a case has a mark in the plot of ratios, the sru package too."""
    plots = pytest.importorskip("benchmarks.lab.report.plots")
    case = next(c for c in presets.select(presets.PRESETS["quick"]) if c.cell == "sru")
    keys = [k for k in contenders.KEYS if k != "reference"]
    times = {k: {"median_s": 1e-3 * (n + 1), "label": k} for n, k in enumerate(keys)}
    run = {"results": [{"case": case.to_dict(), "threads": 1, "contenders": times, "skipped": {}}]}
    figure = plots.ratios(run, 1)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    # torch.nn is the line at one.
    assert shown == [contenders.NAMES[k] for k in keys if k != "torch"]
