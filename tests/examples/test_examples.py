"""``python examples/NAME.py``, with a second of training."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import _demo
import _run
import pytest

from fastrnn.cli import console

ROOT = Path(__file__).resolve().parents[2]


def main(name: str, *arguments: str) -> int:
    """An example's command line; its exit status."""
    with pytest.raises(SystemExit) as ended:
        _run.main(_demo.load(name), arguments)
    return ended.value.code


@pytest.fixture
def plain(monkeypatch):
    """As where rich is not installed."""
    monkeypatch.setattr(console, "rich", None)


def program(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess:
    """Run examples/ARGUMENTS as a reader does, from somewhere else, with nothing else on the path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": path}
    command = [sys.executable, str(folder / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)


def test_list():
    """Protects the list: every example with its title, and nothing is trained."""
    done = program(ROOT / "examples", "")
    assert done.returncode == 0, done.stderr
    for name in _demo.NAMES:
        assert f"{name}.py" in done.stdout
        assert _demo.load(name).title[:40] in done.stdout


def test_runs_from_a_clone():
    """Protects ``python examples/NAME.py`` in a clone that is built and not installed."""
    done = program(ROOT / "examples", "sorting.py", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python examples/sorting.py")


def test_runs_with_an_installed_fastrnn(tmp_path):
    """Protects the same where the folder was taken out of the repository, and in a clone that is not built:
    the installed package comes first."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    broken = tmp_path / "fastrnn"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('not built')")
    done = program(tmp_path / "examples", "mogrifier.py", "--help", path=str(ROOT))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", _demo.NAMES)
def test_every_name_is_a_demo(name):
    """Protects the table of names: each loads, with a line and targets that its class says."""
    kind = _demo.load(name)
    assert issubclass(kind, _demo.Demo)
    assert "\n" not in kind.title
    for targets in (kind.targets, kind.quick_targets):
        assert targets
        assert all(relation in (">=", "<=") for relation, _ in targets.values())


def test_trains_scores_samples_and_draws(tmp_path, capsys, plain):
    """Protects the whole command: training that lasts as long as asked, figures, sample, picture."""
    path = tmp_path / "new" / "picture.png"
    assert main("seasonal", "--seconds", "1", "--seed", "3", "--out", str(path)) == 0
    out = capsys.readouterr().out
    steps, first, last = re.search(r"(\d+) steps, loss ([\d.]+) at first, ([\d.]+) at last", out).groups()
    assert int(steps) > 3
    assert float(last) < float(first)
    assert re.search(r"^over_naive +[\d.]+ +<= 0.65$", out, re.M)
    assert "median" in out
    if path.exists():
        assert path.stat().st_size > 5000
        assert str(path) in out
    else:
        assert "matplotlib is not installed" in out


def test_variants_race(tmp_path, capsys, plain):
    """Protects the comparison at equal time: the same seconds for each, a curve of each in both files."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "race.png"
    assert main("variants", "--seconds", "3", "--out", str(path)) == 0
    assert path.stat().st_size > 5000
    document = json.loads(path.with_suffix(".json").read_text())
    assert len(document["models"]) == 3
    for figures in document["models"].values():
        assert figures["steps"] >= 1
        assert figures["seconds"] >= 0.9  # and as much more as a step takes that has begun
        assert figures["curve"][-1][0] == pytest.approx(figures["seconds"], abs=0.02)
        assert 1 < figures["bits"] < 8
    assert "bits_slstm" in capsys.readouterr().out


def test_a_seed_repeats_a_run():
    """Protects --seed: the same seed gives the same losses, another one others."""
    losses = [_demo.load("seasonal")(seed=seed).train(3) for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_rich_output_and_no_matplotlib(monkeypatch, capsys, tmp_path):
    """Protects the command where rich is there and matplotlib is not: all but the picture."""
    pytest.importorskip("rich")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = tmp_path / "picture.png"
    assert main("seasonal", "--seconds", "0.1", "--out", str(path)) == 0
    assert "no picture: matplotlib is not installed" in capsys.readouterr().out
    assert main("seasonal", "--seconds", "1e-12", "--out", str(path)) == 0
    assert "too short a time" in capsys.readouterr().out
    assert not path.exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "x"])
def test_wrong_seconds(seconds, capsys):
    """Protects the message for a time that is none."""
    assert main("seasonal", "--seconds", seconds) == 2
    assert "positive number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--seed", "x", "64-bit integer, got 'x'"),
        ("--seed", str(2**70), "64-bit integer"),
        ("--out", "picture.banana", "ends in .png, .pdf, .svg, got 'picture.banana'"),
        ("--out", "picture", "ends in .png"),
        ("--out", "folder.png", "got 'folder.png'"),
    ],
)
def test_wrong_options(option, value, text, tmp_path, monkeypatch, capsys):
    """Protects a minute of training from a picture that cannot be drawn, or is drawn into another file."""
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    assert main("seasonal", option, value) == 2
    assert text in capsys.readouterr().err


def test_a_picture_where_no_folder_can_be(tmp_path, capsys):
    """Protects the same minute: the folder is made before the training."""
    (tmp_path / "file").write_text("")
    assert main("seasonal", "--out", str(tmp_path / "file" / "picture.png")) == 2
    assert f"--out: {tmp_path / 'file' / 'picture.png'} cannot be written" in capsys.readouterr().err


def test_wrong_name():
    """Protects the message for an example that is not there: it lists those that are."""
    with pytest.raises(ValueError, match=r"expected one of .*seasonal.*, got 'nonsense'"):
        _demo.load("nonsense")
