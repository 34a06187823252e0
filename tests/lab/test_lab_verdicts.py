"""What is said of a run's times on the CPU: the targets' verdicts, and the report; from made-up times."""

import json
import math
import re
import sys

import pytest
from gpu_runs import tiny

import benchmarks.lab
from benchmarks.lab import limits, presets, targets
from benchmarks.lab.cases import Case
from benchmarks.lab.problem import flops
from benchmarks.lab.report import tables
from benchmarks.lab.report import write as report
from benchmarks.lab.report.document import Bullets, Document, Heading, Image, Table, Text, Verbatim
from fastrnn.proof import machine

# Targets


def fake_result(case: Case, seconds: dict[str, float], threads: int = 1) -> dict:
    def times(s):
        return {
            "label": "x",
            "difference": 1e-7,
            "median_s": s,
            "q25_s": 0.98 * s,
            "q75_s": 1.04 * s,
            "min_s": 0.9 * s,
            "max_s": 1.5 * s,
            "rounds": 7,
            "calls": 1,
        }

    floor = {"floor_s": 1e-3, "compute_s": 1e-3, "memory_s": 0.0, "flops": flops(case), "weight_bytes": 1000}
    return {
        "case": case.to_dict(),
        "threads": threads,
        "contenders": {k: times(s) for k, s in seconds.items()},
        "skipped": {"openvino": "float32 layers on the CPU only", "jax": "jax is not installed"},
        "floor": floor,
    }


def test_targets_take_the_best_rival_and_the_worst_case():
    named = {"T": 100, "B": 1, "I": 256, "H": 256}
    fast = fake_result(tiny("gru", training=True, **named), {"fastrnn": 1.0, "torch": 4.0, "jax": 2.0})
    slow = fake_result(
        tiny("gru", training=True, **{**named, "T": 1}), {"fastrnn": 1.0, "torch": 2.0, "jax": 3.0}
    )
    half = fake_result(tiny("gru", training=True, dtype="bfloat16", **named), {"fastrnn": 9.0, "torch": 1.0})
    other = fake_result(tiny("gru", training=True), {"fastrnn": 9.0, "torch": 1.0})
    lines = {line["name"]: line for line in targets.evaluate([fast, slow, half, other], 1)}
    against_torch = lines["GRU training, against torch.nn"]
    assert against_torch["cases"] == 2
    assert against_torch["geomean"] == pytest.approx(math.sqrt(8))
    assert against_torch["worst"] == 2
    assert against_torch["met"] is False
    assert lines["GRU training, against the best of JAX and torch.nn"]["geomean"] == pytest.approx(2)
    assert lines["GRU training, against the best of JAX and torch.nn"]["met"] is True
    assert targets.evaluate([fast], threads=2) == []
    # The made-up floor is a millisecond: 2.8 times as fast in 1 s is 2828 at the limit, 2 in the worst 2000.
    assert against_torch["limit_geomean"] == pytest.approx(1000 * math.sqrt(8))
    assert against_torch["limit_worst"] == pytest.approx(2000)
    columns, (row,) = tables.target_table([against_torch]).columns, tables.target_table([against_torch]).rows
    assert [row[i] for i, c in enumerate(columns) if c == "limit"] == ["2828.43", "2000.00"]
    assert "mean 5.7% short" in tables.verdict(against_torch)


def test_random_shapes_have_targets_of_their_own():
    drawn = [Case("gru", "layers", True, T, B, inputs, H) for T, B, inputs, H in presets.RANDOM_SHAPES[:2]]
    results = [fake_result(c, {"fastrnn": 1.0, "torch": s}) for c, s in zip(drawn, (2.0, 8.0), strict=True)]
    named = fake_result(tiny("gru", training=True, T=100, B=1, I=256, H=256), {"fastrnn": 1.0, "torch": 9.0})
    lines = {line["name"]: line for line in targets.evaluate([*results, named], 1)}
    line = lines["GRU training on random shapes, against torch.nn"]
    assert (line["cases"], line["geomean"], line["worst"], line["met"]) == (2, pytest.approx(4), 2, True)
    assert lines["GRU training, against torch.nn"]["cases"] == 1


def test_what_every_processor_is_to_reach():
    """Beside the further aims: a mean, which is higher for the LSTM with AVX-512, and no case below 1.0."""

    def line(cell, ratio, isa, drawn=False):
        T, B, inputs, H = presets.RANDOM_SHAPES[0] if drawn else (100, 1, 256, 256)
        result = fake_result(Case(cell, "layers", False, T, B, inputs, H), {"fastrnn": 1.0, "torch": ratio})
        lines = {line["name"]: line["met"] for line in targets.evaluate([result], 1, isa)}
        where = (
            "{} inference on random shapes, against torch.nn"
            if drawn
            else "– {} inference, on every processor"
        )
        return lines[where.format(cell.upper())]

    for drawn in (False, True):
        assert [line("lstm", r, "avx2", drawn) for r in (1.29, 1.31)] == [False, True]
        for isa in ("avx512", "avx512_bf16"):
            assert [line("lstm", r, isa, drawn) for r in (1.31, 1.34, 1.36)] == [False, False, True]
            assert [line("gru", r, isa, drawn) for r in (1.89, 1.91)] == [False, True]
    fast, slow = (
        fake_result(Case("rnn", "layers", True, T, 1, 256, 256), {"fastrnn": 1.0, "torch": ratio})
        for T, ratio in ((100, 9.0), (1, 0.99))
    )
    lines = {line["name"]: line for line in targets.evaluate([fast, slow], 1, "avx2")}
    assert lines["– RNN training, on every processor"]["met"] is False, "one case below 1.0"


def test_verdicts_on_what_options_cost():
    """The limits are those of the options' time over the plain layer's: forward and in training."""

    def line(variant, cell, cost, training=True):
        case = Case(cell, "layers", training, 100, 32, 256, 256, variant=variant)
        (found,) = targets.evaluate([fake_result(case, {"fastrnn": cost, "plain": 1.0})], 1)
        return found

    limits = {("lstm", "norm"): 1.25, ("lstm", "zoneout"): 1.15, ("lstm", "recurrent_dropout"): 1.15}
    limits |= {("lstm", "peephole"): 1.1, ("gru", "reset_before"): 1.6, ("lstm", "heads"): 1.0}
    for (cell, variant), limit in limits.items():
        for training in (False, True):
            assert line(variant, cell, limit - 0.01, training)["met"] is True
            over = line(variant, cell, limit + 0.01, training)
            assert over["met"] is False
            assert over["name"].endswith(f"against the plain layer (at most {limit:g} of its time)")
    assert line("coupled", "lstm", 3.0)["met"] is None


@pytest.fixture
def fake_run() -> dict:
    results = [
        fake_result(c, {"fastrnn": 1e-3, "torch": 2e-3 * (n % 3 + 1), "onnxruntime": 3e-3, "reference": 9e-3})
        for n, c in enumerate(presets.select(presets.PRESETS["quick"]))
    ]
    case = tiny(training=True, B=16)
    run = {
        "format": 1,
        "preset": "quick",
        "date": "2026-01-02T03:04:05+00:00",
        "commit": None,
        "load": 3.0,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "threads": [1],
        "min_rounds": 7,
        "seconds": 12.3,
        "limits": [{"threads": 1, **limits.Limits("float32", {"torch.mm": 1e11}, [(65536, 1e11)]).to_dict()}],
        "results": results,
        "scaling": [{"case": case.to_dict(), "threads": 2, "one_s": 2.0, "all_s": 1.25, "ratio": 1.6}],
        "memory": [
            {"case": case.to_dict(), "contender": "torch", "threads": 1, "bytes": 2_000_000},
            {"case": case.to_dict(), "contender": "fastrnn", "threads": 1, "bytes": 1_000_000},
            {"case": case.to_dict(), "contender": "fastrnn recompute", "threads": 1, "bytes": None},
        ],
    }
    run["targets"] = targets.evaluate(results, 1)
    run["absolute_targets"] = targets.evaluate_absolute(run)
    return run


def test_absolute_targets(fake_run):
    latency, scaling, peak = fake_run["absolute_targets"]
    assert "1000.0 µs" in latency["reached"]
    assert latency["met"] is False
    assert scaling["met"] is False
    assert peak["met"] is True


# Report


@pytest.mark.parametrize("with_plots", [True, False])
def test_report_folder(fake_run, tmp_path, monkeypatch, with_plots):
    if not with_plots:
        monkeypatch.setitem(sys.modules, "benchmarks.lab.report.pictures", None)  # no matplotlib
        monkeypatch.delattr(benchmarks.lab.report, "pictures", raising=False)
    (tmp_path / "notes.md").write_text("### Tried\n\n- something, **hard**\n  indeed\n- `else`\n\nAnd so on.")
    written = report.write(fake_run, tmp_path)
    assert written == tmp_path / "report.md"
    text = written.read_text()
    plots = sorted(p.name for p in tmp_path.iterdir() if p.suffix not in (".md", ".json"))
    assert plots == (["hidden-inference-1t.png", "limit-1t.png", "ratios-1t.png"] if with_plots else [])
    assert re.findall(r"!\[[^]]+\]\((.*)\)", text) == sorted(plots, key=text.index)
    assert "- something, **hard**\n  indeed\n- `else`" in text
    assert "**missed**" in text
    assert "LSTM packed inference" in text
    assert "jax is not installed" in text
    assert "The machine was busy" in text
    assert "layers on the CPU only" not in text
    stored = json.loads((tmp_path / "results.json").read_text())
    assert len(stored["results"]) == len(fake_run["results"])
    assert report.write(stored, tmp_path).read_text() == text  # a stored run gives the same report


def test_document(tmp_path):
    """Every kind of block in Markdown; what would end a table's cell does not."""
    document = Document("a < b")
    document.add(
        Heading("h"), Text("1 < 2 & `x<y`"), Bullets(["**b**", "c"]), Table(["", "n"], [["a|b", "1"]])
    )
    document.add(Image(tmp_path / "p.png", "a picture"), Verbatim("# head\ntail\n"), Heading("deep", 3))
    assert (
        document.to_markdown()
        == """# a < b

## h

1 < 2 & `x<y`

- **b**
- c

|  | n |
| --- | ---: |
| a\\|b | 1 |

![a picture](p.png)

# head
tail

### deep
"""
    )


def test_times_have_three_digits():
    times = [tables.milliseconds(s) for s in (0.812, 0.0123, 4.05e-3, 3.12e-5)]
    assert times == ["812", "12.3", "4.05", "0.0312"]
