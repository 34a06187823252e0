"""The calls of gpu-check, as far as they can be seen without a GPU: they end in time and write what they
should, whatever their steps do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import calls
import check
import dry_run
import lines
import pytest
import record
import smoke
import soak
import stages
import torch
from emu.build import ROOT
from stages import Stage, Step

from fastrnn import _checks

FOLDER = ROOT / "tests" / "gpu"
SCRIPT = [sys.executable, str(FOLDER / "check.py")]


def entries(path, event: str) -> list[dict]:
    return [e for e in lines.read(path) if e["event"] == event]


# The calls


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("call", calls.LIMIT_S)
def test_every_step_is_one_that_can_run(call, packed, tmp_path, monkeypatch):
    """Protects minutes with a GPU: scripts and tests that exist, options that the programs know, tools that
    are not there as absent, each name once, and whoever waits for a step waits for one before it."""
    monkeypatch.setattr(calls, "find_tool", lambda name: f"/opt/{name}")
    found = calls.stages(call, tmp_path, tmp_path if packed else None)
    steps = [s for stage in found for s in stage.steps]
    names = [s.name for s in steps]
    assert len(set(names)) == len(names)
    assert found[0].vital
    assert stages.needed(found) <= calls.LIMIT_S[call]
    for stage in found:
        assert stage.least_s <= stage.limit_s
    for n, step in enumerate(steps):
        assert (
            not step.after
            or step.after in names[:n]
            or step.after == "smoke wavefront"
            or "others" in step.after
        )
        told = step.told(100)
        assert "{" not in " ".join(told)
        for word in told:
            file = word.partition("::")[0]
            assert not file.endswith((".py", ".cu")) or (ROOT / file).exists(), word
    monkeypatch.setattr(calls, "find_tool", lambda name: None)
    absent = [s.name for stage in calls.stages(call, tmp_path) for s in stage.steps if s.command is None]
    assert absent == {1: ["latency"], 2: ["memcheck cluster", "memcheck grid"]}[call]


def test_what_the_calls_are_made_of(tmp_path):
    """The issue's list: every tier and cluster size in a process of its own, tests, soak, latencies, tuning;
    then the sweep, then memcheck."""
    first, second = ([s.name for stage in calls.stages(n, tmp_path) for s in stage.steps] for n in (1, 2))
    assert first[1:9] == [f"smoke {t}" for t in (*calls.TIERS, "scan")]
    assert {t.partition("_")[0] if "cluster" in t else t for t in calls.TIERS} == set(_checks.TIERS)
    assert {f"cluster_{n}" for n in (4, 8, 16)} <= set(calls.TIERS)
    assert set(smoke.TIERS) == {*calls.TIERS, "scan"}
    assert first[9:17] == [f"tests {t}" for t in (*calls.TESTED, "scan", "wavefront", "others")]
    assert set(calls.TESTED) == set(_checks.TIERS)
    assert first[17:21] == ["soak one_cta", "soak cluster", "soak grid", "latency"]
    assert set(calls.SOAKED) == set(soak.SIZES)
    assert first[21:] == [*(f"tune {cell} {dtype}" for cell, dtype in calls.TUNED), "tune wavefront"]
    assert second == ["facts", "sweep", "memcheck cluster", "memcheck grid"]


def test_the_sweep_is_the_benchmarks(tmp_path):
    """Its command is one that the benchmark knows; it ends by itself before it is ended; the named case is
    first, a rival's own come next; sizes, types and kinds of work are those that were asked for."""
    from benchmarks.lab import presets
    from benchmarks.lab.__main__ import parser

    stage = calls.stages(2, tmp_path)[1]
    (step,) = stage.steps
    options = parser().parse_args(step.told(stage.limit_s)[3:])
    assert options.limit + 10 <= stage.limit_s
    assert (options.device, options.gpu_check, options.tiers, options.json_only) == ("cuda", True, True, True)
    assert options.lines == calls.results(tmp_path, 2)
    chosen = presets.select_cuda(presets.CUDA_PRESETS["gpu-check"])
    assert chosen[:2] == [replace(presets.NAMED, training=t, device="cuda") for t in (False, True)]
    rival = [c for c in chosen[2:20] if (c.T, c.H, c.layers, c.dtype) == (32, 64, 4, "float16")]
    assert {(c.cell, c.B, c.training) for c in rival} == {
        (cell, B, t) for cell in ("lstm", "gru") for B in (1, 4, 16, 64) for t in (False, True)
    }
    assert (chosen[18].dtype, chosen[18].B, chosen[18].T, chosen[18].H) == ("bfloat16", 16, 128, 64)
    plane = chosen[20:]
    assert {(c.cell, c.dtype, c.training) for c in plane} == {
        (cell, dtype, t)
        for cell in ("lstm", "gru")
        for dtype in ("float16", "bfloat16", "tf32")
        for t in (False, True)
    }
    assert {c.H for c in plane} == {64, 128, 256, 512, 1024}
    assert {c.B for c in plane} == {1, 16, 64}


def test_what_tune_is_asked_for(tmp_path, monkeypatch):
    """Its own command line's options, on its own grid of shapes; each process keeps what it found in the file
    that the call takes."""
    from fastrnn import cli
    from fastrnn._plan.tuning import cache, kinds, stacks

    steps = calls.stages(1, tmp_path)[-1].steps
    for step in steps:
        options = cli.parser().parse_args(step.told(100)[3:])
        assert (options.command, options.verify_only, options.work) == ("tune", True, "training")
        monkeypatch.setenv("FASTRNN_CACHE", step.environment["FASTRNN_CACHE"])
        assert cache.place() == step.left
    assert len({step.left for step in steps}) == len(steps)
    for step, (cell, dtype) in zip(steps[:-1], calls.TUNED, strict=True):
        options = cli.parser().parse_args(step.told(100)[3:])
        assert (options.cell, options.dtype, options.shape, options.model) == ([cell], [dtype], None, None)
    # The wavefront: a stack of which there are wavefronts at all, of every cell.
    options = cli.parser().parse_args(steps[-1].told(100)[3:])
    assert {cell.partition("_")[0] for cell in options.cell} == set(record.CELLS)
    ((T, B, inputs, hidden),) = options.shape
    facts = T, B, inputs, hidden, 0, 1, options.layers, options.dtype[0], False, True, False
    assert stacks.of_layers(kinds.Stack("lstm", *facts)) is not None


# Dry runs


@pytest.mark.parametrize("call", calls.LIMIT_S)
def test_a_dry_run_ends_in_time(call, tmp_path):
    """By the command that anybody can type: as it should go, where everything hangs and does not die, and
    where
    everything crashes at the last moment; each writes its files, and says of every step how it ended."""
    done = subprocess.run(
        [*SCRIPT, str(call), "--dry-run", "--out", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    steps = [s for stage in calls.stages(call, tmp_path) for s in stage.steps]
    assert done.stdout.count(f"of {calls.LIMIT_S[call]:.0f} s") == len(dry_run.SCENARIOS)
    for scenario, status in (("", "ok"), ("-hang", "hung"), ("-crash", "failed")):
        path = tmp_path / f"call-{call}{scenario}.jsonl"
        first, *_, last = lines.read(path)
        assert (first["event"], last["event"]) == ("call", "end")
        assert first["dry_run"]
        assert last["seconds"] <= calls.LIMIT_S[call]
        ended = {e["step"]: e["status"] for e in entries(path, "step")}
        assert list(ended) == [s.name for s in steps]
        assert set(ended.values()) <= {status, "absent"}
        assert path.with_suffix(".log").read_text().count("== ") >= len(steps)
    path = tmp_path / f"call-{call}.jsonl"
    said = {e["step"] for e in lines.read(path) if e["event"] not in ("call", "end", "step")}
    assert said == {s.name for s in steps if s.command is not None}
    assert len(entries(path, "facts")) == 1
    with pytest.raises(ValueError, match="a dry run has measured nothing"):
        record.write([path], ROOT)


class Lines:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.found: list[dict] = []

    def write(self, event: str, **fields) -> None:
        self.found.append({"event": event, **fields})

    def environment(self, step: str) -> dict[str, str]:
        return {}


def played(stages_: list[Stage], limit_s: float, ends: dict[str, tuple[float | None, int]]):
    """A call with a made-up clock, in which steps end as is said, or after a second; when each began and how
    long it was given."""
    clock, found = dry_run.Clock(), Lines()
    began: dict[str, tuple[float, float]] = {}
    actors: dict[str, dry_run.Actor] = {}

    def launch(step, seconds, environment):
        began[step.name] = (round(clock.now(), 1), round(seconds, 1))
        actors[step.name] = dry_run.Actor(clock, *ends.get(step.name, (1.0, 0)))
        return actors[step.name]

    call = stages.Call(stages_, limit_s, found, launch=launch, clock=clock)
    return call.run(), call, clock, began, actors


def one(name: str, least: float, limit: float, **options) -> Stage:
    return Stage([Step(name, ["x"], **options)], least, limit)


def test_time_is_lent_and_never_taken():
    """What is early lends its time to those behind it, up to their limit; what hangs takes nothing that
    others need at least."""
    plan = [one("a", 10, 50), one("b", 10, 100), one("c", 20, 30)]
    _, call, clock, began, _ = played(plan, 100, {})
    assert began["a"] == (0, 50)
    assert began["b"][1] == pytest.approx(100 - 1 - 3 * stages.ENDING_S + stages.ENDING_S - 20, abs=1)
    assert began["c"][1] == 30
    _, call, clock, began, actors = played(plan, 100, dict.fromkeys("abc", (None, 0)))
    assert set(call.statuses.values()) == {"hung"}
    assert all(began[s.steps[0].name][1] >= s.least_s for s in plan)
    assert clock.now() <= 100
    assert [set(a.signals) for a in actors.values()] == [{signal.SIGTERM, signal.SIGKILL}] * 3
    with pytest.raises(ValueError, match="need 86 s at least, and there are 80"):
        played([one("a", 80, 90), one("b", 2.4, 3)], 80, {})


def test_a_crash_goes_on_with_the_next():
    """Steps beside each other do not mind each other; who would hang or crash as well is left out, whoever
    only failed is followed; without what is vital nothing else runs."""
    both = Stage([Step("a", ["x"]), Step("b", ["x"]), Step("d", None)], 10, 20)
    last = Stage([Step("after a", ["x"], after="a"), Step("after b", ["x"], after="b")], 10, 20)
    ends = {"a": (3.0, -signal.SIGSEGV), "b": (4.0, 3)}
    ok, call, *_ = played([both, last], 100, ends)
    assert not ok
    assert call.statuses == {
        "a": "failed",
        "b": "failed",
        "d": "absent",
        "after a": "skipped",
        "after b": "ok",
    }
    why = {e["step"]: e.get("why") or e.get("exit") for e in call.lines.found if e["status"] != "running"}
    assert why == {
        "a": "died of SIGSEGV",
        "b": 3,
        "d": "what it needs is not here",
        "after a": "a failed",
        "after b": None,
    }
    ok, call, *_ = played([both, last], 100, {"a": (None, 0)})
    assert (call.statuses["a"], call.statuses["b"], call.statuses["after a"]) == ("hung", "ok", "skipped")
    vital = replace(one("facts", 5, 10), vital=True)
    ok, call, *_ = played([vital, both], 100, {"facts": (1.0, 1)})
    assert call.statuses == {"facts": "failed", "a": "skipped", "b": "skipped", "d": "skipped"}


def test_real_processes(tmp_path):
    """What hangs, though it ignores being asked to end and has children, is killed; what talks on and on too;
    what has written its lines and its file has written them; broken files are told."""
    left, half = tmp_path / "left.json", tmp_path / "half.json"
    python = [sys.executable, "-c"]
    hangs = "import signal, subprocess, time; signal.signal(15, lambda *a: None); "
    hangs += "subprocess.Popen(['sleep', '77.25']); print('hello', flush=True); "
    hangs += f"open({str(left)!r}, 'w').write('[7]'); "
    hangs += "import lines; lines.write('outcome', name='x', outcome='ok')\n"
    hangs += "while True: time.sleep(1)"
    first = [
        Step("hangs", [*python, hangs], left=left),
        Step("talks", ["sh", "-c", "while sleep 0.05; do echo more; done"]),
        Step("broken", [*python, f"open({str(half)!r}, 'w').write('[7'); raise SystemExit(3)"], left=half),
        Step("dies", [*python, "import os; os.kill(os.getpid(), 11)"]),
    ]
    told = Step(
        "told", ["sh", "-c", 'test "$ASKED" = for && test {seconds} = 3'], {"ASKED": "for"}, margin_s=2
    )
    start = time.monotonic()
    call = check.play(1, tmp_path, [Stage(first, 3, 6), Stage([told], 5, 5)], commit="abc", show=False)
    assert time.monotonic() - start < 20
    assert call.statuses == {
        "hangs": "hung",
        "talks": "hung",
        "broken": "failed",
        "dies": "failed",
        "told": "ok",
    }
    path = tmp_path / "call-1.jsonl"
    (call_line,) = entries(path, "call")
    assert (call_line["commit"], call_line["dry_run"]) == ("abc", "")
    (outcome,) = entries(path, "outcome")
    assert (outcome["step"], outcome["name"], outcome["outcome"]) == ("hangs", "x", "ok")
    assert [(e["step"], e["left"]) for e in entries(path, "left")] == [("hangs", [7])]
    whys = {e["step"]: e.get("why", "") for e in entries(path, "step")}
    assert "half.json is broken" in whys["broken"]
    assert whys["dies"] == "died of SIGSEGV"
    log = (tmp_path / "call-1.log").read_text()
    assert "hangs: hello" in log
    assert "talks: more" in log
    children = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sleep 77.25" not in children


def test_a_call_that_is_killed_leaves_what_it_had(tmp_path):
    """By the signal that nobody can catch, in the middle of a step: every line up to there is whole."""
    program = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(FOLDER)!r}]
import check
from stages import Stage, Step
say = "import lines, os, time; [lines.write('outcome', name=str(n), outcome='ok') for n in range(50)]; "
say += "lines.write('pid', pid=os.getpid()); time.sleep(60)"
steps = [Step("one", ["true"]), Step("two", [sys.executable, "-c", say])]
check.play(2, Path({str(tmp_path)!r}), [Stage([s], 90, 90) for s in steps], commit=None, show=False)
"""
    path = tmp_path / "call-2.jsonl"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while (
            not (path.exists() and len(path.read_text().splitlines()) >= 55) and time.monotonic() < deadline
        ):
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        for entry in entries(path, "pid"):  # in a session of its own
            os.kill(entry["pid"], signal.SIGKILL)
    found = list(lines.read(path))
    assert [e["status"] for e in found if e["event"] == "step"] == ["running", "ok", "running"]
    assert [e["name"] for e in found if e["event"] == "outcome"] == [str(n) for n in range(50)]


def test_lines(tmp_path, monkeypatch):
    """Without a call nothing is written; a last line that is cut off is none; any other is an error."""
    monkeypatch.delenv("FASTRNN_GPU_LINES", raising=False)
    lines.write("outcome", name="x")
    path = tmp_path / "x.jsonl"
    for name, value in lines.Lines(path, time.time() - 5).environment("a step").items():
        monkeypatch.setenv(name, value)
    lines.write("outcome", name="x", outcome="ok")
    (found,) = lines.read(path)
    assert found.pop("at") == pytest.approx(5, abs=3)
    assert found == {"event": "outcome", "step": "a step", "name": "x", "outcome": "ok"}
    path.write_text(path.read_text() + '{"event": "outc')
    assert len(list(lines.read(path))) == 1
    path.write_text(path.read_text() + "\n[]\n")
    with pytest.raises(ValueError, match=r"x.jsonl, line 2: expected JSON"):
        list(lines.read(path))


def test_pytests_outcomes_are_lines(tmp_path):
    """Each test as it begins and as it ends, and why one failed."""
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n"
        "def test_c(): pytest.skip('no')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('x')\ndef test_d(broken): pass\n"
        "def test_e(): os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "x.jsonl"
    environment = os.environ | lines.Lines(path, time.time()).environment("tests")
    environment["PYTHONPATH"] = str(FOLDER)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "lines", "-p", "no:cacheprovider", "test_it.py"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    found = {e["name"].rpartition("::")[2]: e["outcome"] for e in lines.read(path)}
    assert found == {
        "test_a": "ok",
        "test_b": "failed: assert 1 == 2",
        "test_c": "skipped",
        "test_d": "failed: ValueError: x",
        "test_e": "running",
    }
    path.unlink()
    environment["FASTRNN_GPU_SECONDS"] = "9"  # which its end takes
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert {e["outcome"] for e in lines.read(path)} == {"running", "not run"}


# The command


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_told_in_the_results(tmp_path):
    """Nothing else runs, the files say why; an unknown call is named."""
    wrong = subprocess.run([*SCRIPT, "3"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "argument call: invalid choice" in wrong.stderr
    stale = tmp_path / "pack"
    stale.mkdir()
    refused = subprocess.run(
        [*SCRIPT, "1", "--pack", stale, "--out", tmp_path], capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "not a whole pack" in refused.stderr
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = [{str(FOLDER)!r}]; import facts; sys.exit(facts.main())",
    ]
    path = tmp_path / "x.jsonl"
    environment = os.environ | lines.Lines(path, time.time()).environment("facts")
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (found,) = lines.read(path)
    assert found["why"] == "torch sees no GPU"
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["devices"] == []


def test_the_commit_is_told(tmp_path, monkeypatch):
    """By an environment variable where there is no git: the benchmark and `machine` then name it."""
    from fastrnn.proof import machine

    monkeypatch.setenv("FASTRNN_COMMIT", "0123456789ab")
    assert machine.commit() == "0123456789ab"
