"""The watch over a benchmark's worker: workers that hang and die are played by a script of a few lines."""

import json
import os
import signal
import sys
import time
from dataclasses import replace

import pytest

from benchmarks.lab import run as bench_run
from benchmarks.lab import supervisor as supervised
from benchmarks.lab import worker
from benchmarks.lab.cases import Case
from benchmarks.lab.supervisor import Supervisor

#: A worker whose contenders do what FATE says of (H, key); every start is noted in the file NOTES.
WORKER = """
import json, os, signal, sys, time
request = json.loads(sys.stdin.readline())
fate = {tuple(k): v for k, v in json.loads(os.environ["FATE"])}
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps({k: request[k] for k in ("budget_s", "limit_s", "limits", "excluded")}) + "\\n")
def emit(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)
if not request["limits"]:
    emit("limits", threads=1, dtype="float32", flops={"mm": 1.0}, bandwidth=[[1, 2.0]])
for case, excluded in zip(request["cases"], request["excluded"]):
    emit("start", title="x")
    for key in request["contenders"]:
        if key in excluded:
            continue
        emit("running", key=key, limit_s=None)
        end = fate.get((case["H"], key))
        if end == "hang":
            time.sleep(60)
        elif end == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif end == "raise":
            print("RuntimeError: an illegal memory access\\nsee the manual", file=sys.stderr)
            sys.exit(1)
    times = [k for k in request["contenders"] if k not in excluded]
    emit("result", case=case, threads=1, contenders=times, skipped=excluded)
"""


#: Long enough for a worker to begin on a machine with much else to do.
SILENT_S = 2.0


def a_case(H: int) -> Case:
    return Case("lstm", "layers", False, 2, 1, H, H)


def supervise(tmp_path, fate, sizes=(8, 16, 24), keys=("torch", "fastrnn", "haste"), **options):
    """Run the cases under watch: their events by H, the notes of the workers' starts, and the seconds."""
    events = {}

    def handle(event):
        if event["event"] in ("result", "dropped"):
            assert event["case"]["H"] not in events
            events[event["case"]["H"]] = event

    request = {
        "cases": [a_case(H).to_dict() for H in sizes],
        "contenders": keys,
        "threads": 1,
        "budget_s": 6.0,
    }
    environment = {"FATE": json.dumps(list(fate.items())), "NOTES": str(tmp_path / "notes"), **os.environ}
    options = {"limit_s": 100.0, "silent_s": SILENT_S, "command": [sys.executable, "-c", WORKER], **options}
    started = time.monotonic()
    Supervisor(request, handle, environment=environment, **options).run()
    seconds = time.monotonic() - started
    notes = tmp_path / "notes"
    starts = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    return events, starts, seconds


def test_whoever_fails_is_left_out_of_the_case(tmp_path):
    """A hang, a signal and an error each cost the contender the case and nobody else anything; what is done
    is not done again, and what was measured is passed on."""
    fate = {(8, "haste"): "hang", (16, "fastrnn"): "die", (24, "haste"): "raise"}
    events, starts, _ = supervise(tmp_path, fate)
    assert [e["event"] for e in events.values()] == ["result"] * 3
    assert events[8]["skipped"] == {"haste": f"no end after {SILENT_S:.0f} s"}
    assert events[16]["skipped"] == {"fastrnn": "its process died of SIGSEGV"}
    assert events[24]["skipped"] == {"haste": "RuntimeError: an illegal memory access"}
    assert [len(s["excluded"]) for s in starts] == [3, 3, 2, 1]
    assert starts[0]["limits"] == []
    assert starts[1]["limits"] == [{"dtype": "float32", "flops": {"mm": 1.0}, "bandwidth": [[1, 2.0]]}]
    assert [s["budget_s"] for s in starts] == [6.0, 6.0, 4.0, 2.0]  # each case's share


def test_who_fails_twice_is_left_out_of_the_rest(tmp_path):
    """The others are still timed everywhere. fastrnn, which the run is about, may fail in four."""
    sizes = (8, 16, 24, 32, 40)
    fate = {(H, key): "die" for H in sizes for key in ("haste", "fastrnn")}
    events, starts, _ = supervise(tmp_path, fate, sizes=sizes)
    assert len(starts) == 1 + 2 + 4
    assert events[40]["skipped"] == {
        "haste": "failed in 2 cases before: its process died of SIGSEGV",
        "fastrnn": "failed in 4 cases before: its process died of SIGSEGV",
    }
    assert all(e["contenders"] == ["torch"] for e in events.values())


def test_a_case_whose_standard_fails_is_dropped(tmp_path):
    """There is nothing to compare with; the other cases go on."""
    events, _, _ = supervise(tmp_path, {(16, "torch"): "raise"})
    assert [e["event"] for e in events.values()] == ["result", "dropped", "result"]
    assert events[16]["why"] == "torch.nn: RuntimeError: an illegal memory access"


def test_the_end_comes_in_time(tmp_path, monkeypatch):
    """A hang at the end of the time does not outlast it; every case is told of."""
    monkeypatch.setattr(supervised, "GRACE_S", 0.1)
    events, _, seconds = supervise(tmp_path, {(16, "haste"): "hang"}, limit_s=4.0, silent_s=50.0)
    assert seconds < 30  # of the 60 that it would hang
    assert [e["event"] for e in events.values()] == ["result", "dropped", "dropped"]
    assert events[24]["why"] == "out of time"
    events, starts, _ = supervise(tmp_path / "x", {}, limit_s=0.05)
    assert [e["why"] for e in events.values()] == ["out of time"] * 3
    assert starts == []


def test_a_worker_that_cannot_begin(tmp_path):
    """It is tried again for each case, once, and every case says why it has no result."""
    command = [sys.executable, "-c", "raise ImportError('no torch')"]
    events, _, _ = supervise(tmp_path, {}, sizes=(8, 16), command=command)
    assert [e["why"] for e in events.values()] == ["ImportError: no torch"] * 2


def test_excluded_from_the_start(tmp_path):
    """A preset's own few cases."""
    events, _, _ = supervise(tmp_path, {}, excluded={a_case(16): {"haste": "elsewhere only"}})
    assert events[16]["skipped"] == {"haste": "elsewhere only"}
    assert events[8]["skipped"] == {}


def test_a_run_that_is_stopped_has_what_it_had(tmp_path, monkeypatch):
    """Ctrl-C, and what `timeout` sends, end a supervised run with its results; what was done is kept on the
    way."""
    monkeypatch.setattr(bench_run, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(supervised, "COMMAND", (sys.executable, "-c", WORKER))
    monkeypatch.setenv("FATE", json.dumps([[[16, "torch"], "hang"]]))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(bench_run.targets, "evaluate", lambda results, threads, isa: [])
    monkeypatch.setattr(bench_run.targets, "evaluate_absolute", lambda run: [])
    kept = []

    def save(run):
        kept.append(json.dumps(run))
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cases = [a_case(8), a_case(16)]
        plan = bench_run.Plan("quick", cases, [1], contenders=["torch"], limit_s=60.0)
        run = bench_run.run(plan, save=save)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [r["case"]["H"] for r in run["results"]] == [8]
    assert [(d["case"]["H"], d["why"]) for d in run["dropped"]] == [(16, "the run was stopped")]
    assert run["limits"]
    assert [r["case"]["H"] for r in json.loads(kept[0])["results"]] == [8]


# The worker's side


@pytest.fixture
def ask(monkeypatch):
    """Let worker.work() do a request with an end; its events."""
    monkeypatch.setattr(worker.limits, "measure", lambda *a: pytest.fail("measured before"))
    # Flags of the whole process, which torch's module database, imported by other tests, forbids setting.
    monkeypatch.setattr(worker, "set_precision", lambda dtype: None)
    known = {"dtype": "float32", "flops": {"mm": 1e9}, "bandwidth": [[1000, 1e9]]}

    def ask(cases, **changes):
        request = {
            "cases": [c.to_dict() for c in cases],
            "excluded": [{} for _ in cases],
            "scaling": [],
            "contenders": ["fastrnn", "torch"],
            **{"threads": 1, "budget_s": 0.0, "limits_s": 0.1, "min_rounds": 7, "hurry": True},
            **{"overhead": False, "scan": False, "limits": [known], "limit_s": 60.0},
            **changes,
        }
        events = []
        worker.work(request, lambda event, **fields: events.append({"event": event, **fields}))
        return events

    return ask


def test_the_worker_says_whom_it_runs(ask):
    """Before each first call, the standard's first of all, and before each sample; not who is excluded."""
    case = a_case(8)
    events = ask([case, replace(case, B=2)], excluded=[{}, {"fastrnn": "hangs"}])
    running = [e["key"] for e in events if e["event"] == "running"]
    assert running[:3] == ["torch", "fastrnn", "torch"]
    first, second = (e for e in events if e["event"] == "result")
    assert first["contenders"].keys() == {"fastrnn", "torch"}
    # The comparison, the first timed call, the rounds.
    assert running.count("fastrnn") == 2 + first["contenders"]["fastrnn"]["rounds"]
    assert first["floor"]["flops"] > 0
    assert second["contenders"].keys() == {"torch"}
    assert second["skipped"] == {"fastrnn": "hangs"}


def test_samples_on_a_gpu_wait_for_no_threads(monkeypatch):
    """The rest before a sample is for OpenMP's workers; on a GPU it would only cost time."""
    rests = []
    monkeypatch.setattr(worker, "make_contenders", lambda *a: ([], {}, {}))
    monkeypatch.setattr(worker, "interleave", lambda made, settle, **timing: rests.append(settle) or {})
    for threads, device in ((2, "cpu"), (2, "cuda"), (1, "cpu")):
        worker.time_case(replace(a_case(8), device=device), ["fastrnn"], threads, budget_s=0.0)
    assert rests == [True, False, False]


def test_rounds_go_before_cases(ask, monkeypatch):
    """Where the time runs short a case has one round; past the end cases are dropped, and told."""
    clock = iter(float(n) for n in range(10**6))  # every look at the clock takes a second
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock))
    rounds = []

    def time_case(case, keys, threads, without, *, announce, budget_s, min_rounds, hurry):
        rounds.append(min_rounds)
        return {"case": case.to_dict(), "threads": threads, "contenders": {}, "skipped": {}}

    monkeypatch.setattr(worker, "time_case", time_case)
    events = ask([a_case(H) for H in range(8, 18)], limit_s=13.0, min_rounds=7)
    assert rounds[0] == 7
    assert rounds[-1] == 1
    dropped = [e["case"]["H"] for e in events if e["event"] == "dropped"]
    assert dropped
    assert len(rounds) + len(dropped) == 10
    assert dropped[-1] == 17
