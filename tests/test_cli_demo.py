"""``python -m fastrnn demo``, with a second of training."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from fastrnn import demos
from fastrnn.cli import console, main


@pytest.fixture
def plain(monkeypatch):
    """As where rich is not installed."""
    monkeypatch.setattr(console, "rich", None)


@pytest.mark.parametrize("arguments", [["demo"], ["demo", "--list"], ["demo", "seasonal", "--list"]])
def test_list(arguments, capsys, plain):
    """Protects the list: every name of demos.NAMES with its title, and nothing is trained."""
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for name in demos.NAMES:
        assert re.search(rf"^  {name} +{re.escape(demos.load(name).title)}$", out, re.M)


@pytest.mark.parametrize("name", demos.NAMES)
def test_every_name_is_a_demo(name):
    """Protects the table of names: each loads, with a line and targets that its class says."""
    kind = demos.load(name)
    assert issubclass(kind, demos.Demo)
    assert "\n" not in kind.title
    for targets in (kind.targets, kind.quick_targets):
        assert targets
        assert all(relation in (">=", "<=") for relation, _ in targets.values())


def test_trains_scores_samples_and_draws(tmp_path, capsys, plain):
    """Protects the whole command: training that lasts as long as asked, figures, sample, picture."""
    path = tmp_path / "new" / "picture.png"
    assert main(["demo", "seasonal", "--seconds", "1", "--seed", "3", "--out", str(path)]) == 0
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


def test_a_seed_repeats_a_run():
    """Protects --seed: the same seed gives the same losses, another one others."""
    losses = [demos.load("seasonal")(seed=seed).train(3) for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_rich_output_and_no_matplotlib(monkeypatch, capsys, tmp_path):
    """Protects the command where rich is there and matplotlib is not: all but the picture."""
    pytest.importorskip("rich")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = tmp_path / "picture.png"
    assert main(["demo", "seasonal", "--seconds", "0.1", "--out", str(path)]) == 0
    assert "no picture: matplotlib is not installed" in capsys.readouterr().out
    assert main(["demo", "seasonal", "--seconds", "1e-12", "--out", str(path)]) == 0
    assert "too short a time" in capsys.readouterr().out
    assert not path.exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "x"])
def test_wrong_seconds(seconds, capsys):
    """Protects the message for a time that is none."""
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "seasonal", "--seconds", seconds])
    assert stopped.value.code == 2
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
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "seasonal", option, value])
    assert text in capsys.readouterr().err


def test_a_picture_where_no_folder_can_be(tmp_path, capsys):
    """Protects the same minute: the folder is made before the training."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main(["demo", "seasonal", "--out", str(tmp_path / "file" / "picture.png")])
    assert f"--out: {tmp_path / 'file' / 'picture.png'} cannot be written" in capsys.readouterr().err


def test_wrong_name():
    """Protects the message for a demo that is not there: it lists those that are."""
    with pytest.raises(SystemExit, match=r"expected one of .*seasonal.*, got 'nonsense'"):
        main(["demo", "nonsense"])
