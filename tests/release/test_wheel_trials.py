"""How wheels are tried: each with its own Python, in an environment of its own, and what is saved of it."""

from __future__ import annotations

import json
import platform
import shlex
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from release_tools import NAMES, ROOT, command, tool

packing, wheels, trial = map(tool, ("packing", "wheels", "test_wheels"))


def test_a_wheel_is_tried_with_its_own_python():
    """And not with whichever runs the trial, which would refuse it."""
    mine = f"cp{sys.version_info.major}{sys.version_info.minor}"
    asked = {python: f"python3.{python.removeprefix('cp3')}" for python in ("cp310", "cp313", "cp314")}
    for python, name in (asked | {mine: sys.executable}).items():
        wheel = Path(f"fastrnn-1.2.0-{python}-{python}-manylinux_2_28_x86_64.whl")
        assert trial.python_for(wheel) == name


def test_a_trial_without_the_python_says_so(tmp_path):
    """One outcome that failed, and the others go on."""
    wheel = tmp_path / "cpu" / NAMES[0]
    outcomes = trial.try_all([wheel, wheel], trial.NEWEST, "python3.99")
    assert len(outcomes) == 2
    for found in outcomes:
        assert (found["ok"], found["failed"]) == (False, "environment")
        assert found["environment"] == "python3.99 is not installed"


def test_an_environment_is_made_by_the_file_that_runs(tmp_path, monkeypatch):
    """Not by a version manager's script of that name, which calls a shell that the bare PATH has not."""
    commands = []
    monkeypatch.setattr(trial.Place, "step", lambda self, what, *words: commands.append(words))
    shim = command(tmp_path, "shim", "cpython", "3.12", "/headers", ".so", False, "/versions/3.12/bin/python")
    trial.with_torch(tmp_path / "bare", "2.11.0", shim)
    assert commands[0][0] == "/versions/3.12/bin/python"


#: A package that answers as fastrnn's command line does, and whose layers are torch's own.
PRETENDER = """
import json, os, sys
assert sys.argv[1:] in (["info", "--json"], ["verify", "--quick"]), sys.argv
known = {"versions": {"python": "3.12.1", "torch": "2.14.1"}, "machine": {"isa": "neon"}}
known |= {"cpu": {"kernels_loaded": True}, "cuda": {"kernels_loaded": False, "why_not": "no GPU's"}}
known["threads"] = {"kernels": 2}
print(json.dumps(known) if sys.argv[1] == "info" else "first\\n9 paths checked in 1 s")
sys.exit(os.environ.get("PRETENDED") == sys.argv[1])
"""


@pytest.mark.parametrize("fails", ["", "verify"])
def test_a_wheel_for_another_machine_is_run_by_a_command(fails, tmp_path, monkeypatch):
    """An emulator's Python, in whose place this one is asked here: what is found is the wheel's package, what
    fails is told, and no time is taken."""
    wheel = tmp_path / "aarch64" / NAMES[1]
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("fastrnn/__init__.py", "from torch.nn import GRU, LSTM, RNN")
        file.writestr("fastrnn/__main__.py", PRETENDER)
    monkeypatch.setenv("PRETENDED", fails)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the user's own paths come after the wheel
    (found,) = trial.try_all([wheel], "its own", "", f"env {shlex.quote(sys.executable)}")
    expected = {"kind": "aarch64", "run_by": "env", "python": "3.12.1", "torch": "2.14.1", "isa": "neon"}
    expected |= {"cuda": "no GPU's", "threads": 2}
    assert expected.items() <= found.items()
    assert "bench --quick" not in found
    if fails:
        assert (found["ok"], found["failed"]) == (False, "verify --quick")
        assert "exit status 1" in found["verify --quick"]
    else:
        assert (found["ok"], found["verify --quick"]) == (True, "9 paths checked in 1 s")
        assert found["training"] == "a training step: as torch.nn's"


def test_what_is_saved_of_a_trial(tmp_path, monkeypatch):
    """A second run adds to what stands there, replaces what it tried again, and forgets earlier versions."""
    monkeypatch.setattr(trial, "RESULT", tmp_path / "wheels.json")

    def save(name: str, ok: bool) -> dict:
        wheel = tmp_path / "cpu" / name
        wheel.parent.mkdir(exist_ok=True)
        wheel.write_text(name)
        trial.save([wheel], [{"kind": "cpu", "wheel": name, "ok": ok}, {"kind": "cuda", "wheel": name}])
        found = json.loads(trial.RESULT.read_text())["wheels"]
        return {key: [outcome["ok"] for outcome in one["outcomes"]] for key, one in found.items()}

    assert save("fastrnn-1.1.0-x.whl", True) == {"cpu/fastrnn-1.1.0-x.whl": [True]}
    assert save("fastrnn-1.2.0-x.whl", False) == {"cpu/fastrnn-1.2.0-x.whl": [False]}
    save("fastrnn-1.2.0-x.whl", True)
    both = {"cpu/fastrnn-1.2.0-x.whl": [True], "cpu/fastrnn-1.2.0-y.whl": [True]}
    assert save("fastrnn-1.2.0-y.whl", True) == both

    old, new = (tmp_path / "cpu" / f"fastrnn-1.{minor}.0-x.whl" for minor in (1, 2))
    for wheels_of_two in ([old, new], [new, old]):  # whichever is the first
        with pytest.raises(ValueError, match=r"of one version, got 1\.1\.0, 1\.2\.0"):
            trial.save(wheels_of_two, [])
    assert set(json.loads(trial.RESULT.read_text())["wheels"]) == set(both)


def archive(path: Path) -> Path:
    """A wheel with nothing in it."""
    path.parent.mkdir(exist_ok=True)
    zipfile.ZipFile(path, "w").close()
    return path


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """The trial's command line in a repository of version 1.2.0: what it would try, with which torch and
    which Python, and whether times are shown."""
    monkeypatch.setattr(trial, "ROOT", tmp_path)
    monkeypatch.setattr(trial, "RESULT", tmp_path / "wheels.json")
    monkeypatch.setattr(trial, "version", lambda: "1.2.0")
    calls = []

    def try_all(wheels, torch, python, run_by="", shown=True):
        calls.extend((wheel.name, torch, python, shown) for wheel in wheels)
        return [
            {
                "kind": trial.kind_of(w),
                "wheel": w.name,
                "asked_torch": torch,
                "ok": True,
                "verify --quick": "",
            }
            for w in wheels
        ]

    monkeypatch.setattr(trial, "try_all", try_all)

    def run(*words):
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["test_wheels.py", *map(str, words)])
        assert trial.main() == 0
        return list(calls)

    return run


MINE = f"cp{sys.version_info.major}{sys.version_info.minor}"

OURS = f"fastrnn-1.2.0-{MINE}-{MINE}-manylinux_2_28_{platform.machine().lower()}.whl"


def test_a_wheel_of_another_version_is_left_alone(tried, tmp_path, capsys):
    """What an earlier version left in dist/ is named and not tried, and gets into no result."""
    (tmp_path / "dist").mkdir()
    archive(tmp_path / "dist" / "cpu" / OURS)
    archive(tmp_path / "dist" / "cpu" / OURS.replace("1.2.0", "1.1.0"))
    assert {name for name, *_ in tried("--save")} == {OURS}
    said = capsys.readouterr().out
    assert f"left out: cpu/{OURS.replace('1.2.0', '1.1.0')}, which is not of version 1.2.0" in said
    assert list(json.loads(trial.RESULT.read_text())["wheels"]) == [f"cpu/{OURS}"]
    old = tmp_path / "dist" / "cpu" / OURS.replace("1.2.0", "1.1.0")
    assert tried(old)  # by its name
    with pytest.raises(SystemExit):
        tried(old, "--save")
    assert "wheels.json is about the wheels of version 1.2.0" in capsys.readouterr().err
    (tmp_path / "dist" / "cpu" / OURS).unlink()
    with pytest.raises(SystemExit, match="no wheel of version"):
        tried()


def test_an_option_takes_one_value(tried, tmp_path, capsys):
    """So what follows it is a wheel, wherever it stands; and every option can be given again."""
    wheel = archive(tmp_path / "cpu" / OURS)
    me = sys.executable
    assert tried("--torch", "2.14.1", wheel) == [(OURS, "2.14.1", me, True)]
    assert tried(wheel, "--torch", "2.11.0", "--torch", "2.14.1", "--python", me, "--no-times") == [
        (OURS, "2.11.0", me, False),
        (OURS, "2.14.1", me, False),
    ]
    assert [torch for _, torch, *_ in tried("--python", me, wheel)] == [trial.OLDEST, trial.NEWEST]
    for words, said in (
        ((wheel, "--torch", "2.11.0", "2.14.1"), "got 2.14.1: an option takes one value"),
        (("--torch", wheel), "--torch: expected a version"),
        ((wheel, "--python", "python3.99"), "python3.99 is not installed"),
    ):
        with pytest.raises(SystemExit):
            tried(*words)
        assert said in capsys.readouterr().err
    parser = packing.arguments("", "KIND", wheels.KINDS)
    parser.add_argument("--python", action="append")
    for words in (
        ["--python", "a", "cpu", "--python", "b", "cuda"],
        ["cpu", "cuda", "--python=a", "--python=b"],
    ):
        found = packing.chosen(parser, words)
        assert (found.kinds, found.python) == (["cpu", "cuda"], ["a", "b"])


def test_what_is_no_wheel_is_refused_before_any_work(tried, tmp_path, capsys, monkeypatch):
    """Not after torch was installed for it."""
    other = OURS.replace(platform.machine().lower(), "sparc")
    monkeypatch.chdir(tmp_path)
    for name in (other, OURS.replace(MINE, "cp399")):
        archive(tmp_path / name)
    (tmp_path / OURS).write_text("no archive")
    for name, said in (
        ("x.whl", "expected a wheel such as"),
        (OURS.replace("1.2.0", "1.2.1"), f"there is no {OURS.replace('1.2.0', '1.2.1')}"),
        (OURS, "is no wheel inside"),
        (other, "is not for"),
    ):
        with pytest.raises(SystemExit):
            tried(name)
        assert said in capsys.readouterr().err, name
    with pytest.raises(SystemExit):
        tried(OURS.replace(MINE, "cp399"), "--python", sys.executable)
    assert "cannot install" in capsys.readouterr().err


def test_a_wheel_is_tried_wherever_it_lies(tmp_path, monkeypatch):
    """By its bare name, or in the root folder: the kind is its folder's name, and its trial has a folder
    of its own."""
    assert trial.kind_of(Path("/", OURS)) == "/"
    (tmp_path / "cpu").mkdir()
    monkeypatch.chdir(tmp_path / "cpu")
    assert trial.kind_of(Path(OURS)) == "cpu"
    archive(tmp_path / "cpu" / OURS)
    folders = []

    def use(place, *_, **__):
        folders.append(place.folder.parent.exists())

    monkeypatch.setattr(trial, "use", use)
    (found,) = trial.try_all([Path(OURS)], "its own", "", sys.executable)
    assert (found["ok"], found["kind"], folders) == (True, "cpu", [True])


@pytest.mark.parametrize("shown", [True, False])
def test_times_of_a_busy_machine_are_left_out(shown):
    """By the tool, in the words that stand in the committed result; the timing runs all the same."""
    done, steps = {}, []

    class Place:
        folder = None

        def step(self, what, *command):
            steps.append(what)
            if what == "bench --quick":
                case = {"case": {"cell": "lstm", "training": False}, "ratio": 1.234}
                Path(command[-1]).write_text(json.dumps({"outcomes": [case]}))
            facts = {
                "versions": {"python": "", "torch": ""},
                "machine": {"isa": ""},
                "threads": {"kernels": 1},
            }
            loaded = {"kernels_loaded": True}
            return json.dumps(facts | {"cpu": loaded, "cuda": loaded})

    with tempfile.TemporaryDirectory() as folder:
        place = Place()
        place.folder = Path(folder)
        trial.use(place, ["python"], done, shown=shown)
    assert "bench --quick" in steps
    assert done["bench --quick"] == ({"lstm inference": 1.23} if shown else trial.BUSY)


def test_the_committed_trial_passed():
    """Whoever reads that the wheels were tried: every one, and one with the oldest torch and a newer."""
    found = json.loads((ROOT / "benchmarks" / "results" / "wheels.json").read_text())["wheels"]
    assert found
    torches = []
    for name, one in found.items():
        assert one["outcomes"], name
        assert all(outcome["ok"] for outcome in one["outcomes"]), name
        timed = [outcome["bench --quick"] for outcome in one["outcomes"] if "run_by" not in outcome]
        assert all(isinstance(times, dict) or times == trial.BUSY for times in timed), (
            name
        )  # as it writes them
        torches.append({outcome["torch"].partition("+")[0] for outcome in one["outcomes"]})
    assert any(trial.OLDEST in tried and len(tried) > 1 for tried in torches)
