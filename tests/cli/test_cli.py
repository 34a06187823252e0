"""``python -m fastrnn``: the command line as such, what it writes to a terminal, and its ``bench``."""

import subprocess
import sys
from pathlib import Path

import pytest
from usage import check_usage

from fastrnn import __version__
from fastrnn.cli import console, main, parser

ROOT = Path(__file__).resolve().parents[2]


def test_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", "--version"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"fastrnn {__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "arguments are required"),
        ("nonsense", "invalid choice: 'nonsense'"),
        ("bench --shape 1,2", "a shape is T,B,H, such as 100,16,128; got '1,2'"),
        ("bench --shape 1,2,x", "a shape is T,B,H"),
        ("bench --shape 1,2,3,4", "a shape is T,B,H"),
        ("bench --shape 0,1,1", "a shape's sizes are positive; got '0,1,1'"),
        ("bench --threads 0", "must be an integer from 1 to"),
        ("bench --budget nan", "must be a positive number, got 'nan'"),
        ("bench --json README.md/speed.json", "README.md is no folder"),
        ("verify --device meta", "must be cpu or cuda, got 'meta'"),
        ("verify --json README.md/outcomes.json", "README.md is no folder"),
    ],
)
def test_wrong_arguments_end_with_usage(arguments, message, capsys, monkeypatch):
    """Whatever is wrong with an option is said before any work begins, with the option's name."""
    monkeypatch.chdir(ROOT)
    check_usage(main, arguments, message, capsys)


def test_a_folder_that_goes_away_is_one_clear_error(tmp_path, monkeypatch):
    """What only the file system can say ends the command in a line, without a traceback."""

    def failing(options):
        (tmp_path / "gone" / "file").write_text("")

    monkeypatch.setattr("fastrnn.cli.info.run", failing)
    with pytest.raises(SystemExit, match=r"^fastrnn info: .*No such file or directory.*gone"):
        main(["info"])


COMMANDS = next(tuple(a.choices) for a in parser()._actions if a.dest == "command")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert command in capsys.readouterr().out


def test_plain_table(capsys, plain):
    console.table(["", "n"], [["a", "**1**"], ["long name", "22"]], "title")
    assert capsys.readouterr().out.splitlines() == [
        "",
        "title",
        "            n",
        "---------  --",
        "a           1",
        "long name  22",
    ]


def test_plain_progress(capsys, plain):
    with console.progress(2) as advance:
        advance("first", 0)
        advance("", 1)
    assert "[  0/2] first" in capsys.readouterr().err


def test_bench_quick_is_one_shape_for_seconds(monkeypatch):
    """Where a shape or a budget is named, that is what is measured."""
    from fastrnn.proof import speed

    asked = []
    monkeypatch.setattr(speed, "prove", lambda cases, budget, advance: asked.append((cases, budget)) or [])
    for arguments in ([], ["--shape", "2,1,3", "--budget", "0.5"]):
        assert main(["bench", "--quick", *arguments]) == 0
    (cases, budget), (named, short) = asked
    assert {(c.T, c.B, c.H) for c in cases} == {speed.QUICK_SHAPE}
    assert {c.cell for c in cases} == set(speed.CELLS)
    assert budget <= 5
    assert {(c.T, c.B, c.H) for c in named} == {(2, 1, 3)}
    assert short == 0.5
