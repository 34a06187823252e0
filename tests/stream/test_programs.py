"""Programs in C and C++ on the library that the package ships: they compile, stream, and what the header says
of real time is so."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from harness.build import compilers
from helpers import randn
from selection import thorough
from stream import build
from stream.runtime import Model, chain_of
from toolchain import aarch64_cxx, cc, is_installed
from torch import nn

import fastrnn


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, list[nn.Module]]:
    """A model with layers of every kind, and its layers."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(2, 6),
        nn.Tanh(),
        fastrnn.LSTM(6, 20, num_layers=2),
        fastrnn.LSTM(20, 40, proj_size=9),
        fastrnn.GRU(9, 33),
        nn.LeakyReLU(),
        fastrnn.SRU(33, 12),
        fastrnn.RNN(12, 8),
        nn.Linear(8, 2),
    ]
    path = tmp_path_factory.mktemp("saved") / "model.fastrnn"
    fastrnn.runtime.save(layers, path)
    return path, layers


def raw(path: Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32).view(-1, 2)


@pytest.fixture(scope="module")
def page() -> str:
    return (build.ROOT / "docs" / "runtime.md").read_text()


def block(page: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture(scope="module")
def written(page, tmp_path_factory) -> Path:
    """A folder with the program of docs/runtime.md, and the model that the page saves for it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "program.c").write_text(block(page, "c"))
    fastrnn.runtime.save(nn.Sequential(fastrnn.LSTM(1, 20), nn.Linear(20, 1)), folder / "amplifier.fastrnn")
    return folder


def test_the_pages_program(page, written):
    """docs/runtime.md's program, compiled as the page says, runs, and without the model says what it
    lacks."""
    (command,) = re.findall(r"`(cc program\.c [^`]+)`", page)
    places = f"INCLUDE={shlex.quote(fastrnn.get_include())}; LIBRARY={shlex.quote(fastrnn.get_library())}; "
    command = f"{places}{shlex.join(cc())} -Wall -Wextra -Werror {command.removeprefix('cc ')}"
    done = subprocess.run(["sh", "-c", command], cwd=written, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    program, here = written / "a.out", {"capture_output": True, "text": True}
    done = subprocess.run([program], cwd=written, **here)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = subprocess.run([program], cwd=written.parent, **here)
    assert done.returncode == 1
    assert "amplifier.fastrnn" in done.stderr


@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
def test_the_pages_cmake(page, written):
    """The page's lines are all that a project needs of fastrnn."""
    lines = [
        "cmake_minimum_required(VERSION 3.16)",
        "project(program C)",
        "add_executable(program program.c)",
    ]
    found, linked = block(page, "cmake").splitlines()
    (written / "CMakeLists.txt").write_text("\n".join([*lines[:2], found, lines[2], linked, ""]))
    made = written / "build"
    for step in (["-S", written, "-B", made, f"-Dfastrnn_DIR={fastrnn.get_cmake_dir()}"], ["--build", made]):
        done = build.run(["cmake", *step])
        assert done.returncode == 0, done.stdout + done.stderr
    assert subprocess.run([made / "program"], cwd=written).returncode == 0


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_plain_c(kind, saved, tmp_path):
    """C99, both libraries: the same bits as from Python, in calls of any size and in place."""
    path, layers = saved
    x = randn(333, 2)
    (tmp_path / "x").write_bytes(x.numpy().tobytes())
    expected = Model(path)(x)
    torch.testing.assert_close(expected, chain_of(layers, x), atol=1e-6, rtol=1e-5)
    program = build.shipped("plain", tmp_path, kind)
    for piece, *place in (("1",), ("64",), ("1000",), ("50", "in place")):
        done = build.run([program, path, tmp_path / "x", tmp_path / "y", piece, *place])
        assert done.returncode == 0, done.stdout
        version, form, isa, inputs, outputs = done.stdout.split()
        assert (version, form, inputs, outputs) == (fastrnn.__version__, "1", "2", "2")
        assert isa == Model(path).isa
        assert torch.equal(raw(tmp_path / "y"), expected)


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), fastrnn.LSTM(2, 2), nn.Linear(5, 5)], ids=str)
def test_one_layer_in_place(layer, tmp_path):
    """y may be x, even where a single layer writes outputs while inputs are still to be read."""
    fastrnn.runtime.save(layer, tmp_path / "m")
    model, x = Model(tmp_path / "m"), randn(50, 2 if model_inputs(layer) == 2 else 5)
    expected = model(x)
    (tmp_path / "x").write_bytes(x.numpy().tobytes())
    program = build.shipped("plain", tmp_path)
    done = build.run([program, tmp_path / "m", tmp_path / "x", tmp_path / "y", "50", "in place"])
    assert done.returncode == 0
    assert torch.equal(
        torch.frombuffer(bytearray((tmp_path / "y").read_bytes()), dtype=torch.float32), expected.flatten()
    )


def model_inputs(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.input_size


def test_a_reason_in_c(tmp_path):
    (tmp_path / "m").write_bytes(b"no model at all")
    done = build.run([build.shipped("plain", tmp_path), tmp_path / "m", "x", "y", "1"])
    assert (done.returncode, "no safetensors file" in done.stdout) == (2, True)


def test_nothing_is_asked_of_the_system(saved, tmp_path):
    """During process and reset: no malloc or free, no lock, no system call, from the first call on."""
    done = build.run([build.shipped("quiet", tmp_path), saved[0]])
    assert done.stdout == "0 allocations, 0 locks\nno system call\n"


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("allocate", "2 allocations, 0 locks\nno system call\n"),
        ("lock", "0 allocations, 1 locks\nno system call\n"),
        ("call", "0 allocations, 0 locks\na system call\n"),
    ],
)
def test_what_is_asked_is_seen(planted, said, saved, tmp_path):
    """The counters themselves."""
    assert build.run([build.shipped("quiet", tmp_path), saved[0], planted]).stdout == said


def test_eight_streams(saved, tmp_path):
    done = build.run([build.shipped("many", tmp_path), saved[0]])
    assert (done.returncode, done.stdout) == (0, "0 of 8 streams differ\n")


def test_the_library_needs_nobody():
    """No torch, no Python, no OpenMP, no threads; and it shows fastrnn.h's functions alone."""
    library = fastrnn.get_library()
    if not (shutil.which("readelf") and shutil.which("nm")):
        pytest.skip("binutils are not installed")
    read = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = {
        line.split("[")[1].split("]")[0].split(".so")[0] for line in read.splitlines() if "(NEEDED)" in line
    }
    assert needed <= {
        "libstdc++",
        "libgcc_s",
        "libc",
        "libm",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
        "libasan",
        "libubsan",
    }
    shown = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in shown.splitlines()}
    header = (Path(fastrnn.get_include()) / "fastrnn.h").read_text()
    assert names == {name for name in names if name.startswith("fastrnn_") and f"{name}(" in header}
    assert len(names) == header.count("\nFASTRNN_API ")


CMAKE = """
cmake_minimum_required(VERSION 3.16)
project(streams C CXX)
find_package(fastrnn 0.1 REQUIRED)
add_executable(shared {programs}/plain.c)
target_link_libraries(shared PRIVATE fastrnn::stream)
add_executable(static {programs}/plain.c)
target_link_libraries(static PRIVATE fastrnn::stream_static)
"""


@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
def test_cmake(saved, tmp_path):
    """find_package, and a program with either library; a version that is not there is not found."""
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(programs=build.PROGRAMS))
    (tmp_path / "x").write_bytes(randn(10, 2).numpy().tobytes())
    configure = [
        "cmake",
        "-S",
        tmp_path,
        "-B",
        tmp_path / "build",
        f"-Dfastrnn_DIR={fastrnn.get_cmake_dir()}",
    ]
    done = build.run(configure)
    assert done.returncode == 0, done.stderr
    done = build.run(["cmake", "--build", tmp_path / "build"])
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("shared", "static"):
        done = build.run([tmp_path / "build" / name, saved[0], tmp_path / "x", tmp_path / "y", "3"])
        assert done.returncode == 0, done.stderr
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(programs=build.PROGRAMS).replace("0.1", "7.0"))
    assert 'requested version "7.0"' in build.run(configure).stderr


@thorough
def test_clang(saved, isa):
    """Every clang++ that is installed: without a warning, and right. What it contracts to multiply-adds may
    differ in the last bits from what g++ does."""
    found = [compiler for compiler in compilers() if "clang" in compiler]
    if not found:
        pytest.skip("clang++ is not installed")
    for compiler in found:
        program = build.program("plain", re.sub(r"[^\w+.-]", "_", compiler), compiler=compiler)
        assert check(program, [str(program)], saved[0], FASTRNN_CPU_ISA=isa) == isa.removesuffix("_bf16")


def check(program: Path, command: list[str], path: Path, **environment: str) -> str:
    """The program's outputs against those of this machine's library, and to the last bit the same however
    the steps are cut; which instruction set it says."""
    x, folder = randn(100, 2), program.parent
    (folder / "x").write_bytes(x.numpy().tobytes())
    outputs = []
    for steps in ("100", "33", "1"):
        done = build.run([*command, path, folder / "x", folder / "y", steps], **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(raw(folder / "y"))
        assert torch.equal(outputs[0], outputs[-1]), steps
    torch.testing.assert_close(outputs[0], Model(path)(x), atol=1e-6, rtol=1e-5)
    return done.stdout.split()[2]


@thorough
@pytest.mark.skipif(
    not (is_installed(aarch64_cxx()) and shutil.which("qemu-aarch64")),
    reason="not installed: g++-aarch64-linux-gnu, qemu-user",
)
def test_aarch64(saved):
    """Cross-compiled, on an emulated processor, with NEON and without."""
    path, _ = saved
    program = build.program("plain", "aarch64", compiler=shlex.join(aarch64_cxx()), machine="aarch64")
    command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", str(program)]
    assert check(program, command, path) == "neon"
    assert check(program, command, path, FASTRNN_CPU_ISA="baseline") == "baseline"
