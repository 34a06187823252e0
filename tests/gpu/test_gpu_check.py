"""What runs on a GPU, as far as it can be seen without one: the parts of gpu-check, its cases, its record."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import layer_cases
import pytest
import torch
from emu.build import NAMESPACE, OUT, ROOT, digest, find_cuda_tool, library

from fastrnn import _checks
from fastrnn._plan import gpus

FOLDER = ROOT / "tests" / "gpu"


def load(name: str):
    """A script of tests/gpu as a module."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check, record, small_cases, smoke = (load(n) for n in ("check", "record", "small_cases", "smoke"))


def test_steps_of_every_part(tmp_path, monkeypatch):
    """Each part's commands: scripts that exist, the GPU's own architecture, absent tools as absent."""
    monkeypatch.delenv("FASTRNN_CUDA_ARCHS", raising=False)
    parts = (*check.PARTS, *check.ON_DEMAND)
    names = {part: [s.name for s in check.steps(part, tmp_path, (9, 0))] for part in parts}
    assert set(check.TIERS) == set(_checks.TIERS)
    assert names["smoke"] == ["build", *(f"smoke {tier}" for tier in (*check.TIERS, "scan"))]
    tools = [f"{tool}{what}" for tool in ("memcheck", "racecheck", "synccheck") for what in ("", " cluster")]
    tests = [f"tests {tier}" for tier in (*check.TIERS, "scan", "wavefront", "others")]
    assert names["check"] == [*names["smoke"], *tests, *tools]
    assert names["measure"] == ["compile latency", "latency", "verify"]
    assert names["sweep"] == names["peers"] == ["bench"]
    assert check.steps("check", tmp_path, (9, 0))[0].environment["FASTRNN_CUDA_ARCHS"] == "9.0a"
    assert check.steps("check", tmp_path, (8, 6))[0].environment["FASTRNN_CUDA_ARCHS"] == "8.6"
    monkeypatch.setattr(check, "find_tool", lambda name: None)
    assert {s.name for s in check.steps("check", tmp_path, (9, 0)) if s.command is None} == set(tools)
    for part in parts:
        for step in check.steps(part, tmp_path, (9, 0)):
            for word in step.command or ():
                assert not word.endswith((".py", ".cu")) or (ROOT / word).exists(), word


def test_benchmarks_end_before_they_are_ended(tmp_path):
    """The runs of sweep and peers have an end of their own, a minute before `timeout` would kill them; the
    command is one that the benchmark knows; and a part takes less than ten minutes."""
    from benchmarks.lab.__main__ import parser

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
            check.Step("half", [sys.executable, "-c", write.replace("[7]", "[7")], result=result),
            check.Step("hangs", ["sleep", "60"], limit_s=1),
            check.Step("talks", ["sh", "-c", "while sleep 0.05; do echo more; done"], limit_s=1),
            check.Step("after it", ["true"], after="hangs"),
            check.Step("after another", ["true"], after="broken"),
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
        "half": "ok",
        "hangs": "failed",
        "talks": "failed",
        "after it": "skipped",
        "after another": "ok",
        "build": "failed",
    }
    assert "broken" in document["steps"]["half"]["result"]
    assert [name for name, step in document["steps"].items() if step.get("hung")] == ["hangs", "talks"]
    assert document["steps"]["first"]["result"] == [7]
    assert document["steps"]["broken"]["exit"] == 3
    assert document["ok"] is False
    assert document["versions"]["torch"] == torch.__version__
    assert "hello" in (tmp_path / "check.log").read_text()


def test_pytests_outcomes_are_taken(tmp_path):
    """How many tests there were, and which failed, from the file that pytest writes; in the summary too."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): raise ValueError\ndef test_c(): pytest.skip('no')\n"
    )
    result = tmp_path / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", str(tmp_path / "test_it.py"), f"--junit-xml={result}"]
    step = check.run_step(check.Step("tests", command, result=result), lambda text: None)
    assert step["status"] == "failed"
    assert step["result"] == {"tests": 3, "skipped": 1, "failed": ["test_b"]}
    assert check.summary(step) == "failed: 1 of 3 tests failed"


@pytest.fixture
def ops():
    """The operators on an emulated H100."""
    torch.ops.load_library(str(library()))
    found, gpu = getattr(torch.ops, NAMESPACE), gpus.KNOWN["H100"]
    found.device(gpu.compute_capability, gpu.sms, gpu.shared_bytes_per_block)
    yield found
    found.device(0, 0, 0)  # none, as other tests have it


@pytest.mark.parametrize("tier", smoke.TIERS)
def test_smoke_of_every_tier(ops, tier):
    """Each kernel family's lines: every cell and type, all right; wrong numbers, an error and a lost device
    are told apart, each by its name."""
    reports = []
    chosen = list(smoke.runs(ops, tier, lambda t: t))
    if tier != "scan":
        cells = {name.split()[1] for name, _ in chosen}
        assert cells == set(smoke.CELLS)
        assert len(chosen) == len(smoke.CELLS) * 2 * (3 if tier == "cluster" else 4)
    chosen = chosen[2:6]
    found = smoke.smoke(chosen, lambda: None, lambda: True, lambda outcomes: reports.append(dict(outcomes)))
    assert found == dict.fromkeys((name for name, _ in chosen), "ok")
    assert [list(r.values())[-1] for r in reports] == ["running", "ok"] * len(chosen)

    def wrong():
        names, tolerance, got, want = chosen[0][1]()
        return names, tolerance, [got[0] + 1, got[1] * torch.nan, *got[2:]], want

    def breaks():
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    last = [("wrong", wrong), ("breaks", breaks), ("never", breaks)]
    found = smoke.smoke(iter(last), lambda: None, lambda: len(reports) < 11, lambda o: reports.append(o))
    assert found["wrong"].startswith("wrong: ")
    assert "nan times its tolerance" in found["wrong"]
    assert found["breaks"] == "RuntimeError: CUDA error: an illegal memory access"
    assert "never" not in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_one_clear_error():
    """And an unknown part is named."""
    script = [sys.executable, str(FOLDER / "check.py")]
    done = subprocess.run(script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "gpu-check: torch sees no GPU\n")
    wrong = subprocess.run([*script, "everything"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "part: expected check, measure, sweep, smoke, peers, got everything" in wrong.stderr


def test_small_cases_meet_every_kernel():
    """Each tier with each cell and type that it takes, packed and padded, saved and recomputed."""
    found = small_cases.cases(gpus.find("H100"))
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


def test_small_scans_end_at_words():
    """What the scan copies by words ends with one, so that memcheck has nothing to say; rows may be odd."""
    found = small_cases.scans()
    for case in found:
        p = small_cases.sru_cases.problem(case)
        copied = [p.inputs["u"], p.inputs["x"], p.inputs["v"], p.mask_pad, p.cotangents[0]]
        assert all(t is None or t.numel() * t.element_size() % 4 == 0 for t in copied), case
    assert any(c.O % 2 and c.dtype == torch.bfloat16 for c in found)


def a_document(gpu: str, commit: str | None, ok: bool) -> dict:
    """As check.json and measure.json in one."""
    outcomes = [
        {"target": "cuda grid", "check": {"cell": cell, "dtype": "float16"}, "ok": ok or cell != "rnn_relu"}
        for cell in ("lstm", "rnn_tanh", "rnn_relu")
    ]
    outcomes.append({"target": "cuda auto", "check": {"cell": "sru", "dtype": "float16"}, "ok": True})
    steps = {
        "tests grid": {"status": "ok"},
        "tests cluster": {"status": "failed"},
        "tests scan": {"status": "ok"},
        "tests wavefront": {"status": "ok"},
        "memcheck": {"status": "absent"},
        "racecheck": {"status": "ok"},
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
    all_of_it = {"tests": "ok", "racecheck": "ok", "verify": "ok"}
    assert found["grid", "lstm"][0]["checks"] == found["scan", "sru"][0]["checks"] == all_of_it
    assert "verify" not in found["grid", "gru"][0]["checks"]
    assert found["cluster", "gru"][0]["checks"] == {"tests": "failed"}
    assert found["wavefront", "lstm"][0]["checks"] == {"tests": "ok"}
    record.enter(a_document("H100", "ccc", ok=False), path)
    text = record.table(record.load(path))
    assert "**failed: verify**" in text
    assert "H100 at ccc: tests, racecheck, verify" in text
    with pytest.raises(ValueError, match="needs the commit"):
        record.enter(a_document("H100", None, ok=True), path)
    before = path.read_text()
    record.enter({"steps": {}, "machine": {"devices": []}}, path)
    assert path.read_text() == before


def test_the_record_that_is_kept():
    """Every family and cell is in it, in the table's order; every run names GPU, commit and checks."""
    kept = record.load()
    assert [(e["family"], e["cell"]) for e in kept["families"]] == [
        (family, cell) for family, (_, cells) in record.FAMILIES.items() for cell in cells
    ]
    assert set(record.FAMILIES) == {*_checks.TIERS, "scan", "wavefront"}
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


def test_smoke_credits_no_tier_that_did_not_run(ops):
    """The counter's word, not the numbers': another tier computes the same."""
    case = layer_cases.Case("lstm", T=6, B=2, IN=3, H=20, dtype=torch.bfloat16, tier="one_cta")
    ops.cuda_clear_ran()
    layer_cases.forward(ops, case, layer_cases.problem(case))
    smoke.credited(ops, "one_cta", "forward")
    for tier, which in (("one_cta", "backward"), ("grid", "forward")):
        with pytest.raises(RuntimeError, match=f"{tier} {which} was asked for, and what ran is"):
            smoke.credited(ops, tier, which)
