"""What `make` promises before anything is installed: which torch, which gate, and how long it will take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def clean_environment() -> dict[str, str]:
    """Without what this very test run may have been started with, by make."""
    asked = (
        "CPU",
        "VENV",
        "FASTRNN_CUDA",
        "TORCH_CPU_INDEX",
        "PIP_EXTRA_INDEX_URL",
        "CUDA_HOME",
        "CUDA_PATH",
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
    )
    return {k: v for k, v in os.environ.items() if k not in asked}


def plan(*arguments: str, tools: Path | None = None, **environment: str) -> str:
    """What make says first, and what it would do if nothing were there yet. ``tools``: a folder in place of
    the PATH."""
    kept = clean_environment()
    if tools is not None:
        kept["PATH"] = str(tools)
    done = subprocess.run(
        [shutil.which("make"), "-n", "-B", *arguments],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tools(tmp_path):
    """The few commands that make itself runs: neither nvcc nor nvidia-smi among them."""
    for name in ("sh", "date", "subst"):
        if found := shutil.which(name):
            (tmp_path / name).symlink_to(found)
    return tmp_path


def is_cpu_build(said: str) -> bool:
    """One of the two: never both, never half."""
    small = "requirements/cpu.txt" in said
    assert small != ("requirements/build.txt" in said)
    assert small == ("CUDA compile gate is skipped" in said)
    assert small == (".venv-cpu/bin/python" in said)
    return small


@pytest.mark.parametrize("goal", ["test", "bench"])
def test_cpu_switch(goal):
    """Either can be had on any machine, whatever it holds, and each has an environment of its own."""
    assert is_cpu_build(plan(goal, "CPU=1", "FASTRNN_CUDA="))
    assert is_cpu_build(plan(goal, CPU="1"))
    assert not is_cpu_build(plan(goal, "CPU=0"))


def probe(recipe: str, *arguments: str, **environment: str) -> str:
    """What a recipe says that make runs as one of its own."""
    done = subprocess.run(
        [shutil.which("make"), "-f", "-", "probe", *arguments],
        cwd=ROOT,
        env={**clean_environment(), **environment},
        input=f"include Makefile\nprobe:\n\t@{recipe}\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_build_has_no_cuda_with_it():
    """What make runs inherits FASTRNN_CUDA=0, and with it setup.py and the tests' gates."""
    for cpu, wanted in (("1", "FASTRNN_CUDA is 0"), ("0", "FASTRNN_CUDA is")):
        assert probe("echo FASTRNN_CUDA is $$FASTRNN_CUDA", f"CPU={cpu}") == wanted


@pytest.mark.parametrize("exported", ["x86_64", "", "0 1", "10"])
@pytest.mark.parametrize("how", [(), ("-e",)], ids=["", "-e"])
def test_an_exported_cpu_is_somebody_elses(tools, exported, how):
    """openSUSE's /etc/profile exports CPU=x86_64: every target works as where it is not said, and what
    make runs finds the variable as it was. On the command line it is a mistake."""
    assert is_cpu_build(plan("test", "CUDA_FILES=", *how, tools=tools, CPU=exported))
    (tools / "nvcc").symlink_to(tools / "sh")
    assert not is_cpu_build(plan("test", "CUDA_FILES=", *how, tools=tools, CPU=exported))
    assert is_cpu_build(plan("test", "CPU=1", *how, tools=tools, CPU=exported))
    assert probe('echo "<$$CPU>"', *how, CPU=exported) == f"<{exported}>"


def test_default_without_gpu_and_nvcc(tools):
    """A machine that shows no sign of either gets the small environment."""
    assert is_cpu_build(plan("test", "CUDA_FILES=", tools=tools))
    assert not is_cpu_build(plan("test", f"CUDA_FILES=/nowhere {tools}/sh", tools=tools))


@pytest.mark.parametrize("sign", ["nvcc", "nvidia-smi"])
def test_default_with_a_sign_of_cuda(tools, sign):
    """A driver or a compiler on the PATH: the full one."""
    (tools / sign).write_text("#!/bin/sh\n")
    (tools / sign).chmod(0o755)
    assert not is_cpu_build(plan("test", "CUDA_FILES=", tools=tools))


def test_signs_of_nvidia_alone(tools):
    """WSL shows any vendor's GPU as /dev/dxg; NVIDIA's driver lays files of its own beside the others."""
    files = probe("echo $(CUDA_FILES)").split()
    assert "/dev/dxg" not in files
    assert {"/usr/lib/wsl/lib/libcuda.so.1", "/usr/lib/wsl/lib/nvidia-smi"} <= set(files)
    named = f"CUDA_FILES={' '.join(f for f in files if 'wsl' in f)}".replace("/usr/lib/wsl/lib", str(tools))
    (tools / "libd3d12.so").touch()
    assert is_cpu_build(plan("test", named, tools=tools))
    (tools / "libcuda.so.1").touch()
    assert not is_cpu_build(plan("test", named, tools=tools))


@pytest.mark.parametrize("environment", [{"FASTRNN_CUDA": "1"}, {"CUDA_HOME": "/opt/cuda"}])
def test_default_where_cuda_is_asked_for(tools, environment):
    assert not is_cpu_build(plan("test", "CUDA_FILES=", tools=tools, **environment))


@pytest.mark.parametrize("goal", ["wheel", "wheels", "test-wheels", "test-all"])
def test_what_is_handed_out_is_whole(tools, goal):
    """Nobody makes a wheel without CUDA kernels by not having asked."""
    assert "requirements/build.txt" in plan(goal, "CUDA_FILES=", tools=tools)


def test_the_small_torch_is_where_its_index_is_named():
    """No index is built in. Without one, a line says that the large build may come, before it does, and how
    the small one is had."""
    index = "file:///somewhere/cpu"
    note, install = "note: pip may find torch's large build", "pip install -q"
    plain = plan("test", "CPU=1")
    assert plain.index(note) < plain.index(install, plain.index(note))
    assert "TORCH_CPU_INDEX" in plain
    assert "index-url" not in plain
    for said in (
        plan("test", "CPU=1", f"TORCH_CPU_INDEX={index}"),
        plan("test", CPU="1", TORCH_CPU_INDEX=index),
    ):
        assert f"--extra-index-url {index} -r requirements/cpu.txt" in said
        assert note not in said
    assert note not in plan("test", "CPU=1", PIP_EXTRA_INDEX_URL=index)
    assert note not in plan("test", "CPU=0")
    assert f"TORCH_CPU_INDEX={index} " in plan("test-wheels", f"TORCH_CPU_INDEX={index}")


def test_ci_runs_everything():
    """.ci/run says so itself: nothing about its machine decides."""
    text = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^export CPU=0\b", text, re.MULTILINE)


@pytest.mark.parametrize("wrong", ["yes", "x86_64", "", "0 1"])
def test_wrong_switch(wrong):
    for how in ((), ("-e",)):
        command = ["make", "-n", *how, "test", f"CPU={wrong}"]
        environment = {**clean_environment(), "CPU": "x86_64"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode != 0
        assert f'CPU must be 0 or 1, got "{wrong}"' in done.stderr


#: A Python as Debian's without python3-venv: venv leaves a python without pip behind, the first time.
HALF = """#!/bin/sh
here=$(dirname "$0")
[ "$1 $2" = "-m venv" ] || exit 0
mkdir -p "$3/bin"
echo "called" >> "$here/calls"
if [ -e "$here/mended" ]; then echo "exit 0"; else echo "exit 1"; fi > "$3/bin/python"
chmod +x "$3/bin/python"
[ -e "$here/mended" ]
"""


def test_a_half_made_environment_is_made_again(tmp_path):
    """Where venv failed, the next call does not go on with what it left; what to install is said. What works
    is not made a second time."""
    python, venv = tmp_path / "half", tmp_path / "env"
    python.write_text(HALF)
    python.chmod(0o755)

    def make(target: Path) -> subprocess.CompletedProcess:
        named = (f"PYTHON={python}", f"VENV={venv}", f"CLIENTS={venv}")
        return subprocess.run(
            ["make", str(target), *named], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
        )

    for target in (venv / ".stamp-venv", venv / ".stamp-build", venv / ".stamp"):
        done = make(target)
        assert done.returncode != 0
        assert "apt install python3-venv" in done.stderr
        assert not list(venv.glob(".stamp*"))
        assert (venv / "bin" / "python").exists()
    (tmp_path / "mended").touch()
    assert make(venv / ".stamp-venv").returncode == 0
    calls = (tmp_path / "calls").read_text()
    assert len(calls.split()) == 4
    (venv / ".stamp-venv").unlink()  # as one has that an earlier version of the Makefile made
    assert make(venv / ".stamp-venv").returncode == 0
    assert (tmp_path / "calls").read_text() == calls


def test_a_missing_compiler_is_told_before_anything_is_installed(tmp_path):
    """And not after a download of gigabytes."""
    environment = {**clean_environment(), "CXX": "no-such-compiler"}
    command = ["make", str(tmp_path / "env" / ".stamp-build"), f"VENV={tmp_path / 'env'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no-such-compiler cannot be run" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("goal", ["test", "bench"])
@pytest.mark.parametrize("cpu", ["0", "1"])
def test_says_what_is_coming_and_how_long(goal, cpu):
    """Before anything runs: the steps with their minutes and gigabytes; then each step, and in the
    end what it took."""
    said = plan(goal, f"CPU={cpu}")
    first, *_ = said.partition("venv")
    assert first.startswith(f"make {goal}: ")
    for step in ("packages", "compilation", "the tests" if goal == "test" else "the benchmark"):
        assert re.search(rf"{step}\b.*\bminutes?\b", said), step
    assert re.search(r"packages into \.venv.*\d GB", said)
    assert said.count("==> %s  %s") >= 3
    assert f"==> {goal}: done in" in said.splitlines()[-1]


def test_how_large_it_will_be():
    """From what is known before pip is asked: no index of CPU builds named, no promise of one found; and the
    benchmark's peers count."""

    def size(*arguments: str) -> str:
        return re.search(r"packages into \S+: (.*)", plan("-s", "CPU=1", *arguments))[1]

    index = "TORCH_CPU_INDEX=file:///somewhere/cpu"
    assert re.fullmatch(
        r"1\.3 GB where pip finds .*TORCH_CPU_INDEX.*, else 5 GB; .* minutes .*", size("test")
    )
    assert re.match(r"with the peers 2 GB where pip finds .*, else 6 GB; ", size("bench"))
    assert re.match(r"1\.3 GB with torch's CPU build, \d minutes", size("test", index))
    assert re.match(r"2 GB with torch's CPU build and the peers, \d minutes", size("bench", index))
    place = "file:///somewhere"
    extra = plan("test", "CPU=1", PIP_EXTRA_INDEX_URL=place)
    assert "1.3 GB where PIP_EXTRA_INDEX_URL has torch's CPU build" in extra
    assert "else 5 GB" in extra
    assert "6 GB, 5 minutes" in plan("test", "CPU=0")
    assert "7 GB with the peers" in plan("bench", "CPU=0")


def test_both_environments_have_the_same_tools():
    """build.txt and cpu.txt differ in torch alone."""
    parts = {
        name: {
            line.split("#")[0].strip()
            for line in (ROOT / "requirements" / name).read_text().splitlines()
            if line and not line.startswith("#")
        }
        for name in ("build.txt", "cpu.txt")
    }
    differing = parts["build.txt"] ^ parts["cpu.txt"]
    assert len(differing) == 2
    assert all(re.fullmatch(r"torch==\d+\.\d+\.\d+", line) for line in differing)


#: Those that are promised; clients.txt says that it wants a newer one.
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
#: Found to need 3.11 in the version for newer Pythons, whether they are installed here or not.
NOT_FOR_310 = {"numpy", "hypothesis", "onnxruntime", "matplotlib", "jax", "pre-commit", "sphinx"}
NOT_FOR_310 |= {"myst-parser", "importlib_metadata"}


@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "requirements").glob("*.txt")))
def test_every_promised_python_can_install(file):
    """Each has one version of each package. Where the same version is installed here, what it says itself of
    the Pythons that it takes is asked too; so no index is."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements" / file).read_text().splitlines()]
    asked = [Requirement(line) for line in lines if line and not line.startswith("-r")]
    for python in PYTHONS[1:] if file == "clients.txt" else PYTHONS:
        mine = [r for r in asked if r.marker is None or r.marker.evaluate({"python_version": python})]
        assert sorted(r.name for r in mine) == sorted({r.name for r in asked}), python
        for requirement in mine:
            pinned = re.fullmatch(r"==([\w.]+)", str(requirement.specifier))
            assert pinned, requirement
            assert requirement.marker or python != "3.10" or requirement.name not in NOT_FOR_310, requirement
            try:
                found = metadata.metadata(requirement.name)
            except metadata.PackageNotFoundError:
                continue
            if found["Version"].partition("+")[0] == pinned[1]:
                assert f"{python}.99" in SpecifierSet(found["Requires-Python"] or ""), requirement
