"""The committed tables of the tiers, made of a call's results by one command, on results of our own
making."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import record
from emu.build import ROOT

from fastrnn import _checks

sys.path.insert(0, str(ROOT / "tests" / "lab"))
from gpu_runs import a_run, made_up_result

from benchmarks.lab import presets

CASE = "lstm-bfloat16-T6B9I5H41-cluster"


def call(
    number: int, events: list[dict], gpu: str = "NVIDIA H200", commit: str | None = "abc", **more
) -> list[dict]:
    """The lines of a call on a GPU."""
    facts = {"event": "facts", "step": "facts", "machine": {"devices": [{"name": gpu, "driver": "1.2"}]}}
    return [{"event": "call", "call": number, "commit": commit, "dry_run": "", **more}, facts, *events]


def step(name: str, status: str, **outcomes: str) -> list[dict]:
    """A step's outcomes and its end; "__" in a name is a space."""
    said = [
        {"event": "outcome", "step": name, "name": n.replace("__", " "), "outcome": o}
        for n, o in outcomes.items()
    ]
    return [
        {"event": "step", "step": name, "status": "running"},
        *said,
        {"event": "step", "step": name, "status": status},
    ]


def written(path, events: list[dict]):
    path.write_text("".join(json.dumps({"at": 0.0, **e}) + "\n" for e in events))
    return path


def checks(events: list[dict], family: str, cell: str) -> dict[str, str]:
    results = record.Results(call(1, events))
    return {c: v for c in record.CHECKS if (v := results.verdict(c, family, cell))}


def test_a_cell_is_credited_with_what_ran_for_it():
    """Ok only where its own outcomes are and the step came to its end; what hung, crashed or was wrong is its
    own failure; what is nobody's in particular, such as a memory error, is everybody's."""
    good = step("smoke grid", "ok", grid__lstm__float16__forward="ok", grid__rnn_tanh__tf32__forward="ok")
    assert checks(good, "grid", "lstm") == checks(good, "grid", "rnn") == {"smoke": "ok"}
    assert checks(good, "grid", "gru") == checks(good, "one_cta", "lstm") == {}
    half = step(
        "smoke grid", "failed", grid__lstm__float16__forward="ok", grid__gru__float16__forward="running"
    )
    assert checks(half, "grid", "gru") == {"smoke": "failed"}
    assert checks(half, "grid", "lstm") == checks(half, "grid", "rnn") == {}
    late = step("memcheck grid", "hung", **{CASE: "ok"})
    assert checks(late, "grid", "lstm") == {}
    memory = step("memcheck grid", "failed", **{CASE: "ok"})
    assert checks(memory, "grid", "lstm") == checks(memory, "grid", "gru") == {"memcheck": "failed"}
    assert checks(step("soak grid", "failed"), "grid", "gru") == {"soak": "failed"}
    assert checks(step("soak grid", "skipped"), "grid", "gru") == {}
    tests = step("tests scan", "ok", **{"tests/cuda/test_sru_cuda.py::test_layer[float32]": "ok"})
    assert checks(tests, "scan", "sru") == checks(tests, "scan", "srupp") == {"tests": "ok"}
    for outcome in ("skipped", "not run"):
        none = step("tests scan", "ok", **{"tests/cuda/test_sru_cuda.py::test_layer[float32]": outcome})
        assert checks(none, "scan", "sru") == {}


def test_clusters_are_verified_in_every_size():
    """One size that fails is a failure of the family."""
    sizes = [e for n in (4, 8, 16) for e in step(f"smoke cluster_{n}", "ok", **{CASE: "ok"})]
    assert checks(sizes, "cluster", "lstm") == {"smoke": "ok"}
    broken = sizes[:-3] + step("smoke cluster_16", "failed", **{CASE: "wrong: y"})
    assert checks(broken, "cluster", "lstm") == {"smoke": "failed"}
    late = sizes[:-3] + step("smoke cluster_16", "hung")
    assert checks(late, "cluster", "lstm") == {"smoke": "failed"}


def test_what_tune_verified():
    """Its cache's candidates, by tier and cell; one in quarantine is a failure, one that was not run is
    not."""

    def tuned(**states: str) -> list[dict]:
        candidates = {n.replace("__", " "): {"state": s, "why": ""} for n, s in states.items()}
        kinds = {"lstm float16 H64": {"candidates": candidates}}
        left = {"format": 1, "devices": {"x": {"kinds": kinds}}}
        return [{"event": "left", "step": "tune lstm float16", "left": left}]

    found = tuned(grid__forward="verified", one_cta__forward="not run", cluster_8__backward="quarantined")
    assert checks(found, "grid", "lstm") == {"tune": "ok"}
    assert checks(found, "grid", "gru") == checks(found, "one_cta", "lstm") == {}
    assert checks(found, "cluster", "lstm") == {"tune": "failed"}
    assert checks(tuned(grid__forward="running"), "grid", "lstm") == {"tune": "failed"}
    assert checks(tuned(wavefront_4__grid="verified"), "wavefront", "lstm") == {"tune": "ok"}
    assert checks([{"event": "left", "step": "tune lstm float16", "left": []}], "grid", "lstm") == {}


def test_one_entry_a_gpu():
    """The latest, with both calls of a commit together; a failed check shows."""
    kept = record.empty()
    ok, bad = (step("smoke grid", s, **{CASE: o}) for s, o in (("ok", "ok"), ("failed", "wrong: y")))
    record.enter(record.Results(call(1, bad, commit="aaa")), kept)
    record.enter(record.Results(call(1, bad, gpu="NVIDIA H100", commit="aaa")), kept)
    assert "NVIDIA H200 at aaa: nothing; **failed: smoke**" in record.table(kept)
    record.enter(record.Results(call(1, ok, commit="bbb")), kept)
    record.enter(record.Results(call(2, step("memcheck grid", "ok", **{CASE: "ok"}), commit="bbb")), kept)
    (entry,) = [e for e in kept["families"] if (e["family"], e["cell"]) == ("grid", "lstm")]
    assert [(r["gpu"], r["commit"], r["checks"]) for r in entry["runs"]] == [
        ("NVIDIA H100", "aaa", {"smoke": "failed"}),
        ("NVIDIA H200", "bbb", {"smoke": "ok", "memcheck": "ok"}),
    ]
    row = next(
        line for line in record.table(kept).splitlines() if line.startswith("| grid") and "LSTM" in line
    )
    assert "<br>NVIDIA H200 at bbb: smoke, memcheck |" in row
    assert "| grid: the whole grid | GRU, RNN | not yet run on a GPU |  |" in record.table(kept)


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (call(1, [], dry_run="well"), "a dry run has measured nothing"),
        (call(1, [], commit=None), "needs the commit"),
        (call(1, [])[:1], "ran on no GPU"),
    ],
)
def test_what_is_not_entered(events, text, tmp_path):
    """One clear error with the file's name, and nothing is written."""
    path, root = written(tmp_path / "call-1.jsonl", events), a_checkout(tmp_path)
    before = {p: p.read_text() for p in root.rglob("*") if p.is_file()}
    done = made(root, path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"gpu-table: {path}: ")
    assert text in done.stderr
    assert {p: p.read_text() for p in root.rglob("*") if p.is_file()} == before


def a_checkout(folder):
    """The files that the command writes to, in a folder of their own: what is made up is never committed."""
    root = folder / "checkout"
    for name in (str(record.PAGE), "csrc/plan/table.inl", str(record.RECORD)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    return root


def made(root, *results):
    """`make gpu-table`'s command on another checkout."""
    command = [sys.executable, ROOT / "tests" / "gpu" / "record.py", *results, "--root", root]
    return subprocess.run([str(w) for w in command], capture_output=True, text=True)


def test_all_tables_by_one_command(tmp_path):
    """From the folder with both calls, the second cut off: record, page, report and the plan's table, which
    holds what the tiers were timed at; nothing else of the page changes, and a second time changes
    nothing."""
    chosen = [c for c in presets.select_cuda(presets.CUDA_PRESETS["gpu-check"]) if c.dtype == "float16"]
    timed = [made_up_result(c, 1e-3, 2e-3, grid=0.5e-3 * (1 + 2 * c.training), stepwise=4e-3) for c in chosen]
    run = a_run([]) | {"event": "run", "date": "2026-01-31T00:00:00+00:00"}
    del run["seconds"], run["targets"], run["absolute_targets"]
    folder, root = tmp_path / "results", a_checkout(tmp_path)
    folder.mkdir()
    tier = step("smoke grid", "ok", grid__lstm__float16__forward="ok", grid__gru__float16__forward="ok")
    latency = [{"event": "left", "step": "latency", "left": {"graph_launch_us": 1.5}}]
    written(folder / "call-1.jsonl", call(1, tier + latency, gpu="NVIDIA H100"))
    path = written(
        folder / "call-2.jsonl", call(2, [run, *({"event": "result", **r} for r in timed)], gpu="NVIDIA H100")
    )
    path.write_text(path.read_text() + '{"event": "resu')
    (folder / "call-1-hang.jsonl").write_text("of a dry run")
    done = made(root, folder)
    assert done.returncode == 0, done.stderr
    report = root / "benchmarks" / "results" / "2026-01-31-nvidia-h100"
    assert [line.removeprefix(f"{root}/") for line in done.stdout.splitlines()] == [
        str(record.RECORD),
        str(record.PAGE),
        "benchmarks/results/2026-01-31-nvidia-h100",
        "csrc/plan/table.inl",
    ]
    text, before = (root / record.PAGE).read_text(), (ROOT / record.PAGE).read_text()
    times = "inference 4-4x, training 1.33-1.33x"
    assert f"| grid: the whole grid | LSTM, GRU | NVIDIA H100 at abc: smoke | {times} |" in text
    assert text.partition(record.END)[2] == before.partition(record.END)[2]
    assert text.partition(record.BEGIN)[0] == before.partition(record.BEGIN)[0]
    kept = json.loads((report / "results.json").read_text())
    assert len(kept["results"]) == len(timed)
    assert kept["latency"] == {"graph_launch_us": 1.5}
    assert (report / "report.md").exists()
    table = (root / "csrc" / "plan" / "table.inl").read_text()
    assert table.startswith("// NVIDIA H100, driver 1.2, ")
    assert "{kGrid, kLstm, kHalf, kForward, 64," in table
    assert "kOneCta" not in table
    first = {p: p.read_bytes() for p in root.rglob("*") if p.suffix in (".md", ".json", ".inl")}
    assert made(root, folder).returncode == 0
    assert {p: p.read_bytes() for p in first} == first


def test_what_is_not_there_is_one_error(tmp_path):
    """A folder without results, a page without the marks."""
    root = a_checkout(tmp_path)
    assert "no call-1.jsonl and no call-2.jsonl there" in made(root, tmp_path).stderr
    (root / record.PAGE).write_text("words")
    path = written(tmp_path / "call-1.jsonl", call(1, []))
    done = made(root, path)
    assert done.returncode == 1
    assert "expected the lines <!-- made by make gpu-table -->" in done.stderr


def test_the_record_that_is_kept():
    """Every family and cell is in it, in the table's order; every run names GPU, commit and checks; and the
    page has it as it is."""
    kept = record.load()
    assert [(e["family"], e["cell"]) for e in kept["families"]] == [
        (family, cell) for family, (_, cells) in record.FAMILIES.items() for cell in cells
    ]
    assert set(record.FAMILIES) == {*_checks.TIERS, "scan", "wavefront"}
    for entry in kept["families"]:
        for run in entry["runs"]:
            assert run["gpu"]
            assert run["commit"]
            assert run["checks"] or run["speed"]
    if not any(e["runs"] for e in kept["families"]):
        assert record.table(kept).count("not yet run on a GPU") == len(record.FAMILIES)
    page = (ROOT / record.PAGE).read_text()
    assert record.into_page(page, kept) == page
