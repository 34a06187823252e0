"""The plan's table of times a step: from a sweep's JSON to the choice among tiers. No GPU is asked."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from fastrnn import _C
from fastrnn._plan import gpus

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import plan_table  # noqa: E402

T = 100
HIDDEN, BATCHES = (64, 256, 1024), (1, 16, 128)
#: Microseconds a step of forward at (H, B), chosen to be nothing like the model's.
TIMES = {
    "one_cta": lambda H, B: 3 + H / 100 + B / 50,
    "cluster": lambda H, B: 6.5 + H / 1000 + B / 40,
    "grid": lambda H, B: 9 - H / 300 + B / 20,
    "stepwise": lambda H, B: 7 + B / 400,
}


def sweep(**changes) -> dict:
    """What a sweep with --tiers leaves, of float16 LSTMs on an H100: training takes three times as long."""
    results = []
    for training in (False, True):
        for H in HIDDEN:
            for B in BATCHES:
                case = {
                    "cell": "lstm",
                    "path": "layers",
                    "training": training,
                    "T": T,
                    "B": B,
                    "I": H,
                    "H": H,
                }
                case |= {"dtype": "float16", "layers": 1, "directions": 1}
                largest = {"one_cta": 64, "cluster": 256}
                tiers = {t: f for t, f in TIMES.items() if largest.get(t, H) >= H}
                times = {
                    t: {"median_s": f(H, B) * T * 1e-6 * (3 if training else 1)} for t, f in tiers.items()
                }
                results.append({"case": case, "contenders": times})
    gpu = {"name": "NVIDIA H100 80GB HBM3", "driver": "580.1", "properties": gpus.find("H100").properties()}
    run = {"date": "2026-11-23T00:00:00+00:00", "commit": "abc", "versions": {"torch": "2.14"}}
    return run | {"machine": {"devices": [gpu]}, "results": results} | changes


@pytest.fixture(scope="module")
def table() -> dict:
    return plan_table.measured(sweep())


def plan(table, H, B, tier="auto", gpu="H100", **sizes):
    shape = {"cell": "lstm", "T": T, "B": B, "I": H, "H": H, "dtype": "float16"} | sizes
    properties = gpus.find(gpu).properties()
    return _C.plan(device="cuda", **shape, training=True, gpu=properties, tier=tier, table=table)


def test_the_timings_are_the_plans(table):
    """At the sweep's points, forward and backward: to the rounding of the table, and said to be measured."""
    for H in HIDDEN:
        for B in BATCHES:
            for tier, us in TIMES.items():
                found = plan(table, H, B, tier)
                if not found["possible"]:
                    continue
                assert found["source"] == "measured"
                assert found["step_us"] == pytest.approx(us(H, B), abs=1e-3)
                assert found["backward"]["step_us"] == pytest.approx(2 * us(H, B), abs=2e-3)


def test_the_cheapest_that_fits_is_chosen(table):
    """By the table, whatever the model thinks, and never a tier that cannot run."""
    for H, B in (
        (64, 1),
        (64, 128),
        (90, 3),
        (256, 16),
        (1024, 1),
        (1024, 128),
        (1024, 64),
        (2048, 1),
        (64, 4000),
    ):
        chosen = plan(table, H, B)
        named = {t: plan(table, H, B, t) for t in TIMES}
        possible = {t: p["step_us"] for t, p in named.items() if p["possible"]}
        if "one_cta" in possible:  # a cluster is not asked where one SM holds the weights
            del possible["cluster"]
        assert chosen["possible"]
        assert chosen["kernel"] == min(possible, key=possible.get)
    assert plan(table, 64, 1)["kernel"] == "one_cta"
    assert plan(table, 256, 16)["kernel"] == "stepwise"
    assert plan(table, 256, 1)["kernel"] == "cluster"
    assert plan(table, 1024, 1)["kernel"] == "grid"
    # Cheap in the table and impossible on the device: a table cannot make a tier fit.
    tempting = table | {"rows": [("grid", "lstm", "float16", "forward", 64, [1e-3, 1e-3, 1e-3])]}
    assert plan(tempting, 4096, 16)["kernel"] == "stepwise"
    assert not plan(tempting, 4096, 16, "grid")["possible"]


def test_between_the_points(table):
    """A straight line in the logarithms between two timings, so never outside of them."""
    for H, B, near in ((64, 4, (1, 16)), (1024, 45, (16, 128))):
        low, middle, high = (plan(table, H, b, "stepwise")["step_us"] for b in (near[0], B, near[1]))
        part = math.log(B / near[0]) / math.log(near[1] / near[0])
        assert middle == pytest.approx(low * (high / low) ** part)
    found = plan(table, 128, 16, "grid")
    low, high = (plan(table, h, 16, "grid")["step_us"] for h in (64, 256))
    assert found["source"] == "interpolated"
    assert found["step_us"] == pytest.approx(math.sqrt(low * high))  # 128 is half way
    falling = [plan(table, H, 16, "grid")["step_us"] for H in range(64, 1025, 24)]
    assert falling == sorted(falling, reverse=True)
    rising = [plan(table, 256, B, "grid")["step_us"] for B in range(1, 129)]
    assert rising == sorted(rising)


def test_beyond_the_points_the_model_goes_on(table):
    """Other GPUs, directions and sizes: the timing next to it, times what the model makes of the rest."""
    here = plan(table, 256, 128, "stepwise")
    for change in ({"gpu": "A100"}, {"directions": 2}):
        there = plan(table, 256, 128, "stepwise", **change)
        assert there["source"] == "scaled"
        ratio = there["model_us"] / here["model_us"]
        assert there["step_us"] == pytest.approx(here["step_us"] * ratio)
    larger = plan(table, 4096, 1024, "stepwise")
    edge = plan(table, 1024, 128, "stepwise")
    assert larger["step_us"] / edge["step_us"] == pytest.approx(larger["model_us"] / edge["model_us"])
    other = plan(table, 256, 16, "stepwise", cell="gru")
    assert (other["source"], other["step_us"]) == ("model", other["model_us"])


def test_the_named_case_is_no_point_of_the_table(table):
    """It has steps of its own, and is timed with the tiers in the same sweep."""
    document = sweep()
    named = {"T": 1024, "B": 16, "I": 768, "H": 768}
    first = document["results"][0]
    document["results"].insert(0, first | {"case": first["case"] | named})
    assert plan_table.measured(document) == table


def test_a_sweep_without_tiers_is_one_error():
    """And so is one of several numbers of steps."""
    with pytest.raises(ValueError, match="expected a sweep that times the tiers"):
        plan_table.measured(sweep(results=[]))
    with pytest.raises(ValueError, match=r"got steps .* on no GPU"):
        plan_table.measured(sweep(machine={"devices": []}))
    mixed = sweep()
    mixed["results"][0]["case"]["T"] = 7
    with pytest.raises(ValueError, match=r"got steps \[7, 100\]"):
        plan_table.measured(mixed)


def _without(*path):
    """A sweep that lacks an entry."""
    document = sweep()
    at = document
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return document


def _timed(seconds):
    """A sweep with another time of its first case."""
    document = sweep()
    document["results"][0]["contenders"]["grid"]["median_s"] = seconds
    return document


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (lambda: [], "expected a sweep's JSON"),
        (lambda: sweep(results=None), "expected a sweep's JSON"),
        (lambda: _without("versions"), "'versions'"),
        (lambda: _without("results", 0, "case"), "'case'"),
        (lambda: _without("machine", "devices", 0, "properties", "sms"), "'sms'"),
        (lambda: _timed(float("nan")), "expected positive times, got nan s of grid"),
        (lambda: _timed(-1.0), "expected positive times, got -1.0 s of grid"),
        (lambda: _timed(0), "expected positive times"),
        (lambda: _timed("1"), "expected a sweep's JSON"),
    ],
)
def test_a_broken_sweep_is_one_error(document, text):
    """Protects the plan: a NaN or a negative time in its table would win or lose every comparison."""
    with pytest.raises(ValueError, match=text):
        plan_table.write(plan_table.measured(document()))


def test_the_script_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    """Protects the table in use, and who runs the script from a traceback."""
    out = tmp_path / "table.inl"
    (tmp_path / "no.json").write_text("{")
    for name in ("absent.json", "no.json"):
        monkeypatch.setattr(sys, "argv", ["plan_table.py", str(tmp_path / name), "--out", str(out)])
        with pytest.raises(SystemExit, match="2"):
            plan_table.main()
        assert name in capsys.readouterr().err
    assert not out.exists()


def test_gpu_checks_lines_are_a_sweep_too(table, tmp_path, monkeypatch, capsys):
    """call-2.jsonl holds the same results, a line each."""
    run = sweep()
    events = [{"event": "call", "call": 2}, {"event": "run", **run, "results": []}]
    events += [{"event": "result", **r} for r in run["results"]]
    lines = tmp_path / "call-2.jsonl"
    lines.write_text("".join(json.dumps(e) + "\n" for e in events) + '{"event": "result", "ca')
    out = tmp_path / "table.inl"
    monkeypatch.setattr(sys, "argv", ["plan_table.py", str(lines), "--out", str(out)])
    plan_table.main()
    text = plan_table.write(table)
    assert out.read_text() == text
    assert text.startswith("// NVIDIA H100 80GB HBM3, driver 580.1, torch 2.14, commit abc, 2026-11-23\n")
    assert "{kOneCta, kLstm, kHalf, kForward, 64, {3.66, 3.96, 6.2}}," in text


def test_the_table_that_is_kept():
    """What is built in is what the script writes: measured, or the model's estimates as they are now."""
    kept = plan_table.OUT.read_text()
    provenance = _C.plan_table_provenance()
    assert kept.startswith(f"// {provenance}\n")
    if provenance.startswith("estimated"):
        assert kept == plan_table.write(plan_table.estimates())
