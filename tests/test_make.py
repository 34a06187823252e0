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


def test_the_build_has_no_cuda_with_it():
    """What make runs inherits FASTRNN_CUDA=0, and with it setup.py and the tests' gates."""
    make = shutil.which("make")
    probe = "include Makefile\nprobe:\n\t@echo FASTRNN_CUDA is $$FASTRNN_CUDA\n"
    for cpu, wanted in (("1", "FASTRNN_CUDA is 0"), ("0", "FASTRNN_CUDA is")):
        done = subprocess.run(
            [make, "-f", "-", "probe", f"CPU={cpu}"],
            cwd=ROOT,
            env=clean_environment(),
            input=probe,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == wanted, done.stderr


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


def test_wrong_switch():
    done = subprocess.run(["make", "-n", "test", "CPU=yes"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert 'CPU must be 0 or 1, got "yes"' in done.stderr


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
