"""What runs on a GPU, as far as it can be seen without one: the parts of gpu-check, its cases, its record."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from emu.build import OUT, ROOT, digest, find_cuda_tool

from fastrnn import _checks, _gpus

FOLDER = ROOT / "tests" / "gpu"


def load(name: str):
    """A script of tests/gpu as a module."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check, record, small_cases = load("check"), load("record"), load("small_cases")


def test_steps_of_every_part(tmp_path, monkeypatch):
    """Each part's commands: scripts that exist, the GPU's own architecture, absent tools as absent."""
    monkeypatch.delenv("FASTRNN_CUDA_ARCHS", raising=False)
    names = {part: [s.name for s in check.steps(part, tmp_path, (9, 0))] for part in check.PARTS}
    assert names["check"] == ["build", "tests", "memcheck", "racecheck", "synccheck"]
    assert names["measure"] == ["compile latency", "latency", "verify"]
    assert names["sweep"] == ["bench"]
    assert [s.name for s in check.steps("peers", tmp_path, (9, 0))] == ["bench"]
    assert check.steps("check", tmp_path, (9, 0))[0].environment["FASTRNN_CUDA_ARCHS"] == "9.0a"
    assert check.steps("check", tmp_path, (8, 6))[0].environment["FASTRNN_CUDA_ARCHS"] == "8.6"
    monkeypatch.setattr(check, "find_tool", lambda name: None)
    assert check.steps("check", tmp_path, (9, 0))[2].command is None
    for part in check.PARTS:
        for step in check.steps(part, tmp_path, (9, 0)):
            for word in step.command or ():
                assert not word.endswith((".py", ".cu")) or (ROOT / word).exists(), word


def test_benchmarks_end_before_they_are_ended(tmp_path):
    """The runs of sweep and peers have an end of their own, a minute before `timeout` would kill them; the
    command is one that the benchmark knows; and a part takes less than ten minutes."""
    from fastrnn.cli import parser

    for part in ("sweep", "peers"):
        (step,) = check.steps(part, tmp_path, (9, 0))
        options = parser().parse_args(step.command[3:])
        assert options.limit + 60 <= step.limit_s <= 570
        assert (options.device, options.tiers, options.json_only) == ("cuda", True, True)
        assert step.result == options.out / "results.json"


def test_a_part_writes_its_log_and_json(tmp_path, monkeypatch):
    """Status, time and result of every step; a failed build ends the part, others do not."""
    result = tmp_path / "result.json"
    write = f"open({str(result)!r}, 'w').write('[7]'); print('hello')"

    def steps(part, out, capability):
        return [
            check.Step("first", [sys.executable, "-c", write], result=result),
            check.Step("absent", None),
            check.Step("broken", [sys.executable, "-c", "raise SystemExit(3)"]),
            check.Step("environment", ["sh", "-c", 'test "$ASKED" = for'], {"ASKED": "for"}),
            check.Step("build", ["false"]),
            check.Step("never", ["true"]),
        ]

    monkeypatch.setattr(check, "steps", steps)
    document = check.run_part("check", tmp_path, (9, 0))
    assert json.loads((tmp_path / "check.json").read_text()) == document
    statuses = {name: step["status"] for name, step in document["steps"].items()}
    assert statuses == {
        "first": "ok",
        "absent": "absent",
        "broken": "failed",
        "environment": "ok",
        "build": "failed",
    }
    assert document["steps"]["first"]["result"] == [7]
    assert document["steps"]["broken"]["exit"] == 3
    assert document["ok"] is False
    assert document["versions"]["torch"] == torch.__version__
    assert "hello" in (tmp_path / "check.log").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_one_clear_error():
    """And an unknown part is named."""
    script = [sys.executable, str(FOLDER / "check.py")]
    done = subprocess.run(script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "gpu-check: torch sees no GPU\n")
    wrong = subprocess.run([*script, "everything"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "part: expected check, measure, sweep, peers, got everything" in wrong.stderr


def test_small_cases_meet_every_kernel():
    """Each tier with each cell and type that it takes, packed and padded, saved and recomputed."""
    found = small_cases.cases(_gpus.find("H100"))
    for tier in _checks.TIERS:
        mine = [c for c in found if c.tier == tier]
        assert {c.cell for c in mine} == {"lstm", "gru", "rnn_tanh", "rnn_relu"}
        assert {c.dtype for c in mine} >= {torch.float32, torch.bfloat16, torch.float16}
        assert any(c.tf32 for c in mine)
        assert {c.sizes is None for c in mine} == {True, False}
        assert {c.save for c in mine} == {"gates", "recompute"}
        assert {c.D for c in mine} == {1, 2}
    assert any(c.P for c in found)
    assert any(c.dtype == torch.float64 for c in found)


def a_document(gpu: str, commit: str | None, ok: bool) -> dict:
    """As check.json and measure.json in one."""
    outcomes = [
        {"target": "cuda grid", "check": {"cell": cell, "dtype": "float16"}, "ok": ok or cell != "rnn_relu"}
        for cell in ("lstm", "rnn_tanh", "rnn_relu")
    ]
    steps = {
        "tests": {"status": "ok"},
        "memcheck": {"status": "absent"},
        "verify": {"status": "ok", "result": {"outcomes": outcomes}},
    }
    return {"commit": commit, "machine": {"devices": [{"name": gpu, "driver": "1.2"}]}, "steps": steps}


def test_record(tmp_path):
    """One entry a GPU, the latest; a failed check shows; what was absent is not claimed."""
    path = tmp_path / "record.json"
    record.enter(a_document("H100", "aaa", ok=False), path)
    record.enter(a_document("A100", "aaa", ok=True), path)
    record.enter(a_document("H100", "bbb", ok=True), path)
    found = {(e["family"], e["cell"]): e["runs"] for e in record.load(path)["families"]}
    assert [(r["gpu"], r["commit"]) for r in found["grid", "lstm"]] == [("A100", "aaa"), ("H100", "bbb")]
    assert found["grid", "lstm"][0]["checks"] == {"tests": "ok", "verify": "ok"}
    assert "verify" not in found["grid", "gru"][0]["checks"]
    record.enter(a_document("H100", "ccc", ok=False), path)
    text = record.table(record.load(path))
    assert "**failed: verify**" in text
    assert "H100 at ccc: tests, verify" in text
    with pytest.raises(ValueError, match="needs the commit"):
        record.enter(a_document("H100", None, ok=True), path)
    before = path.read_text()
    record.enter({"steps": {}, "machine": {"devices": []}}, path)
    assert path.read_text() == before


def test_the_record_that_is_kept():
    """Every family and cell is in it, in the table's order; every run names GPU, commit and checks."""
    kept = record.load()
    assert [(e["family"], e["cell"]) for e in kept["families"]] == [
        (family, cell) for family in record.FAMILIES for cell in record.CELLS
    ]
    assert set(record.FAMILIES) == set(_checks.TIERS)
    for entry in kept["families"]:
        for run in entry["runs"]:
            assert all(run[key] for key in ("gpu", "commit", "checks"))
    if not any(e["runs"] for e in kept["families"]):
        assert record.table(kept).count("not yet run on a GPU") == len(kept["families"])


@pytest.mark.skipif(find_cuda_tool("nvcc") is None, reason="no nvcc here")
def test_latency_program_compiles():
    """The program that measures latencies and checks the instructions is kept compiling, for Hopper."""
    source = FOLDER / "latency.cu"
    stamp = OUT.parent / "cubin" / f"latency-{digest(source.read_text())}.ok"
    if not stamp.exists():
        stamp.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-O1", "-std=c++20", f"-I{ROOT / 'csrc'}", "-arch=sm_90a", "-cubin"]
        command = [find_cuda_tool("nvcc"), *flags, source, "-o", stamp.with_suffix(".cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        stamp.write_text("")
