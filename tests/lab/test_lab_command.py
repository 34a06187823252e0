"""``python -m benchmarks.lab`` and benchmarks/char_lm.py, on tiny shapes."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from selection import thorough
from usage import check_usage

from benchmarks.lab import __main__ as lab
from benchmarks.lab.__main__ import main, make_plan, parser
from fastrnn._ops import library
from fastrnn.cli import console

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plain(monkeypatch):
    """As where rich is not installed."""
    monkeypatch.setattr(console, "rich", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shape 1,2", "a shape is T,B,H"),
        ("--threads 0", "must be an integer from 1 to"),
        ("--threads 9999", "must be an integer from 1 to"),
        ("--budget -1", "must be a positive number, got '-1'"),
        ("--budget nan", "must be a positive number, got 'nan'"),
        ("--device tpu", "must be cpu or cuda, got 'tpu'"),
        ("--out README.md/report", "README.md is no folder"),
    ],
)
def test_wrong_arguments_end_with_usage(arguments, message, capsys, monkeypatch):
    """Whatever is wrong with an option is said before any work begins, with the option's name."""
    monkeypatch.chdir(ROOT)
    check_usage(main, arguments, message, capsys)


def test_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the workers find the packages all the same
    arguments = "--quick --cell lstm --shape 3,2,8 --mode layers --threads 1 --rounds 3 --budget 0.1"
    assert main([*arguments.split(), "--out", "report"]) == 0
    out = capsys.readouterr().out
    assert "LSTM inference" in out
    assert "over torch.nn" in out
    assert out.strip().splitlines()[-1] == f"report: {tmp_path / 'report' / 'report.md'}"
    run = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [r["case"]["training"] for r in run["results"]] == [False, True]
    for result in run["results"]:
        assert {"fastrnn", "torch", "reference"} <= result["contenders"].keys(), result["skipped"]
        assert all(t["rounds"] >= 3 for t in result["contenders"].values())
    assert run["machine"]["isa"] == library.cpu_isa()
    assert run["limits"][0]["flops"]
    before = (tmp_path / "report" / "report.md").read_text()
    assert main(["--render", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "report.md").read_text() == before


@thorough
def test_on_two_threads_with_extras(tmp_path, capsys, plain, monkeypatch):
    from benchmarks.lab import presets

    small = presets.Preset(
        shapes=((2, 16, 8),),
        packed_shapes=((2, 16, 8),),
        proj_shapes=((2, 16, 8),),
        cell_shapes=((1, 8),),
        sweep_steps=2,
        sweep_batches=(1,),
        sweep_hidden=(8, 16),
        sweep_work=("inference",),
        scaling_shapes=((2, 16, 8),),
        memory_shapes=((2, 16, 8),),
        budget_s=0.1,
    )
    monkeypatch.setitem(presets.PRESETS, "quick", small)
    arguments = "--cell lstm --mode layers --threads 2 --rounds 2 --contender reference"
    assert main([*arguments.split(), "--out", str(tmp_path)]) == 0
    run = json.loads((tmp_path / "results.json").read_text())
    assert {r["threads"] for r in run["results"]} == {2}
    assert {tuple(r["contenders"]) for r in run["results"]} == {("fastrnn", "torch", "reference")}
    assert [s["threads"] for s in run["scaling"]] == [2, 2]
    assert {m["contender"] for m in run["memory"]} == {"torch", "fastrnn"}
    assert all(m["bytes"] is not None for m in run["memory"])
    assert "Peak memory of a training step" in capsys.readouterr().out


def test_fails_where_fastrnn_does(tmp_path, capsys, monkeypatch):
    from benchmarks.lab import run as bench_run

    def fake(plan, progress, save, line):
        case = plan.cases[0]
        result = {"case": case.to_dict(), "threads": 1, "contenders": {}, "skipped": {"fastrnn": "differs"}}
        everything = {
            "preset": "quick",
            "date": "",
            "commit": None,
            "load": 0.1,
            "seconds": 1.0,
            "min_rounds": 7,
            "threads": [1],
        }
        empty = {key: [] for key in ("limits", "scaling", "memory", "targets", "absolute_targets")}
        facts = {"machine": bench_run.machine.describe(), "versions": bench_run.machine.versions()}
        return {**everything, **empty, **facts, "results": [result]}

    monkeypatch.setattr(bench_run, "run", fake)
    assert main(["--out", str(tmp_path)]) == 1
    assert "FAILED LSTM inference T=1 B=1 H=256: fastrnn differs" in capsys.readouterr().out


def test_refuses_an_empty_selection():
    with pytest.raises(SystemExit, match="nothing to run"):
        main(["--cell", "rnn", "--mode", "packed"])
    with pytest.raises(SystemExit, match="does not exist"):
        main(["--render", "/nonexistent"])
    with pytest.raises(SystemExit, match="--cell is about layers"):
        main(["--models", "--cell", "lstm"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_one_clear_error():
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        main(["--device", "cuda"])


def test_plans():
    def plan(*arguments):
        return make_plan(parser().parse_args(arguments))

    full = plan("--full")
    assert full.min_rounds == 7
    assert full.hurry is False
    assert {c.B >= 16 for c in full.scaling_cases} == {True}
    assert plan("--quick").hurry is True
    assert plan("--quick", "--rounds", "9").min_rounds == 9
    assert plan("--mode", "training", "--threads", "1").preset == "quick, filtered"
    assert plan("--contender", "jax").contenders == ["fastrnn", "torch", "jax"]
    assert plan("--no-extras").memory_cases == []
    options = plan("--variants", "--cell", "lstm")
    assert options.contenders == ["fastrnn", "plain", "torch"]
    assert all(c.variant for c in options.cases)
    assert options.memory_cases == options.scaling_cases == []
    drawn = plan("--random")
    assert drawn.preset == "random"
    assert drawn.contenders == ["fastrnn", "torch"]
    assert drawn.threads[0] == 1
    assert len(drawn.cases) == 30 * 3 * 2  # shapes, cells, inference and training
    assert drawn.memory_cases == drawn.scaling_cases == []
    assert drawn.overhead is drawn.scan is False


def test_folder_names():
    name = lab.folder_name("full", "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz")
    assert name.endswith("-intel-xeon-platinum-8488c")
    assert lab.folder_name("quick", "AMD EPYC (Zen 4)").endswith("-amd-epyc-zen-4-quick")


# char_lm


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_char_lm_coincides(cell, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("char_lm", ROOT / "benchmarks" / "char_lm.py")
    char_lm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(char_lm)
    arguments = ["--hidden", "16", "--steps", "6", "--batch", "4", "--length", "12", "--write", "30"]
    assert char_lm.main(["--cell", cell, *arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "they coincide" in out
    assert "characters/s" in out
    found = json.loads((tmp_path / f"char_lm-{cell}-16.json").read_text())
    for name, racer in found["equal_time"].items():
        assert 2 < racer["bits"] < 8, name
        assert len(racer["losses"]) == len(racer["seconds"])
    assert [name.split(",")[0] for name in found["equal_time"]] == [cell.upper(), "SRU", "SRU++"]
    assert found["largest_distance"] < 1e-4
    assert len(found["losses"]["fastrnn"]) == 6
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / f"char_lm-{cell}-16.png").stat().st_size > 5000
