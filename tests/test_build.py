"""What setup.py compiles the CUDA kernels for."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness.build import AARCH64, compilers, isa_flags, target_machine
from selection import thorough

ROOT = Path(__file__).resolve().parents[1]
NVCC = "#!/bin/sh\nfor n in 75 80 86 87 88 89 90 100 103 110 120 121; do echo compute_$n; done\n"
#: setup.py as a module that builds nothing; then its answers, by what is asked for and which GPUs there are.
SCRIPT = """
import importlib.util, json, os, sys, setuptools, torch
setuptools.setup = lambda **arguments: None
spec = importlib.util.spec_from_file_location("setup_", "setup.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
answers = []
for asked, gpus in json.loads(sys.argv[2]):
    os.environ["FASTRNN_CUDA_ARCHS"] = asked
    torch.cuda.is_available = lambda: bool(gpus)
    torch.cuda.device_count = lambda: len(gpus)
    torch.cuda.get_device_capability = lambda i: tuple(gpus[i])
    module.cuda_archs.cache_clear()
    try:
        archs = module.cuda_archs(sys.argv[1])
        answers.append([archs, [flag for arch in archs for flag in module.gencode(arch)]])
    except SystemExit as stopped:
        answers.append([str(stopped), []])
print(json.dumps(answers))
"""
CASES = {
    "no GPU": ("", []),
    "all": ("all", [[8, 6]]),
    "one GPU": ("", [[8, 6]]),
    "several": ("", [[12, 0], [8, 6], [8, 6]]),
    "too old": ("", [[7, 5]]),
    "an old one too": ("", [[7, 5], [9, 0]]),
    "newer than the compiler": ("", [[13, 0], [8, 6]]),
    "by name": (" 8.0;9.0a+PTX", []),
    "with a separator at the end": ("8.0;;9.0a+PTX;", []),
    "wrong": ("hopper", []),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple]:
    """The architectures and nvcc's flags of each case."""
    home = tmp_path_factory.mktemp("cuda")
    (home / "bin").mkdir()
    (home / "bin" / "nvcc").write_text(NVCC)
    (home / "bin" / "nvcc").chmod(0o755)
    command = [sys.executable, "-c", SCRIPT, str(home), json.dumps(list(CASES.values()))]
    environment = {**os.environ, "FASTRNN_CUDA": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_architectures(answers):
    """The GPUs that are here; one architecture and PTX where there is none that counts; what is asked for."""
    found = {name: archs for name, (archs, _) in answers.items()}
    one = ["8.0-virtual", "9.0+PTX"]
    assert found["no GPU"] == found["too old"] == found["newer than the compiler"] == one
    assert found["all"] == ["8.0", "9.0a", "10.0+PTX", "12.0+PTX"]
    assert found["one GPU"] == ["8.6+PTX"]
    assert found["several"] == ["8.6", "12.0+PTX"]
    assert found["an old one too"] == ["9.0+PTX"]
    assert found["by name"] == found["with a separator at the end"] == ["8.0", "9.0a+PTX"]
    assert "FASTRNN_CUDA_ARCHS" in found["wrong"]
    assert "'hopper'" in found["wrong"]


def loaded(flags: list[str], gpu: int) -> int | None:
    """For which architecture the code was compiled that a GPU runs: machine code of its own generation before
    PTX, of either the newest that is not newer than it. What ends in "a" is for one GPU alone."""
    kinds = {"sm": [], "compute": []}
    for kind, number, own in re.findall(r"code=(sm|compute)_(\d+)(a?)", " ".join(flags)):
        n = int(number)
        if n == gpu or (n < gpu and not own and (kind == "compute" or n // 10 == gpu // 10)):
            kinds[kind].append(n)
    return max(kinds["sm"] or kinds["compute"], default=None)


@pytest.mark.parametrize("build", ["no GPU", "all"])
def test_every_gpu_has_every_kernel(answers, build):
    """From 8.0 on all run it, also those that come later; from 9.0 on with the code that has clusters."""
    for gpu in (80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130):
        version = loaded(answers[build][1], gpu)
        assert version is not None, gpu
        assert version >= 90 or gpu < 90, gpu
    assert loaded(answers[build][1], 75) is None


def cpu_sources() -> list[Path]:
    """All of csrc that the CPU's library and the Python module are made of, but python.cpp."""
    folders = ("cpu/ops", "cpu/isa", "cpu/quantized/isa", "ops", "plan")
    return [path for folder in folders for path in sorted((ROOT / "csrc" / folder).glob("*.cpp"))]


@thorough
@pytest.mark.parametrize("compiler", compilers())
def test_every_compiler_here_takes_every_source(compiler):
    """g++ and clang++ in all versions that are installed, of which Debian has several: without a warning."""
    include = Path(torch.__file__).parent / "include"
    common = ["-std=c++20", "-fsyntax-only", "-O1", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    common += ["-Wno-unused-parameter", f"-I{ROOT / 'csrc'}", "-isystem", str(include)]
    common += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
    machine = target_machine(compiler)
    assert cpu_sources()
    for path in cpu_sources():
        own = isa_flags(path.stem, machine) if path.parent.name == "isa" else []
        done = subprocess.run([*shlex.split(compiler), *common, *own, path], capture_output=True, text=True)
        assert done.returncode == 0, f"{compiler}, {path.name}: {done.stderr[:2000]}"


#: What kernels have of the vector registers, inlined into a lambda as there.
INLINED = """
#include "cpu/simd/math.h"
namespace fastrnn {
template <class T>
void every_function(void* row, int64_t n, Dtype dtype) {
  using M = VectorMath<T>;
  using S = Simd<T>;
  auto one = [&](int64_t i, int lanes) {
    const typename S::V x = load_as<T>(row, i, lanes, dtype);
    const typename S::V y = M::tanh(M::sigmoid(x)) + M::exp(-M::relu(x)) * M::log_sigmoid(x);
    store_as<T>(row, i, M::positive_mask(x, y), lanes, dtype);
    stream_as<T>(row, i, y, dtype);
  };
  int64_t i = 0;
  for (; i + S::W <= n; i += S::W) one(i, S::W);
  if (i < n) one(i, static_cast<int>(n - i));
}
template void every_function<float>(void*, int64_t, Dtype);
template void every_function<double>(void*, int64_t, Dtype);
}  // namespace fastrnn
"""
VECTORS = {
    "baseline": ["-DFASTRNN_VECTOR_BYTES=16"],
    "avx2": ["-DFASTRNN_VECTOR_BYTES=32", "-DFASTRNN_AVX2"],
    "avx512": ["-DFASTRNN_VECTOR_BYTES=64", "-DFASTRNN_AVX512"],
}


@pytest.mark.parametrize("isa", VECTORS)
@pytest.mark.parametrize("compiler", compilers())
def test_the_optimiser_has_nothing_to_warn_of(compiler, isa, tmp_path):
    """Some warnings come of inlining, which no check of the syntax does. Of its own header's registers g++ 12
    warned 46 times, in a thousand lines, in one file of kernels."""
    machine = target_machine(compiler)
    if machine != "x86_64" and isa != "baseline":
        pytest.skip(f"{compiler} compiles for {machine}")
    flags = ["-std=c++20", "-O3", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", *VECTORS[isa]]
    flags += ["-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]  # as setup.py; not clang's
    (tmp_path / "inlined.cpp").write_text(INLINED)
    command = [*shlex.split(compiler), *flags, *isa_flags(isa, machine), "-S", "-o", tmp_path / "inlined.s"]
    done = subprocess.run([*command, tmp_path / "inlined.cpp"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]


#: setup.py's answers for another system than this one: what it compiles, and with which flags.
TARGET = """
import importlib.util, json, os, setuptools
setuptools.setup = lambda **arguments: None
spec = importlib.util.spec_from_file_location("setup_", "setup.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
library = module.cpu_library()
print(json.dumps([{s: module.flags_of(s) for s in library.sources}, library.extra_link_args]))
"""


@pytest.mark.parametrize("platform", ["linux-x86_64", "linux-aarch64", "macosx-11.0-arm64", "win-amd64"])
def test_flags_of_a_system(platform):
    """Each file of kernels has the flags of its instruction set, whichever compiler: nothing else has any;
    and what only Linux's linker knows stays there."""
    environment = {**os.environ, "FASTRNN_CUDA": "0", "_PYTHON_HOST_PLATFORM": platform}
    said = subprocess.check_output([sys.executable, "-c", TARGET], cwd=ROOT, env=environment, text=True)
    flags, link = json.loads(said.splitlines()[-1])
    found = {Path(source).stem: set(own) for source, own in flags.items() if own}
    if platform.endswith(("x86_64", "amd64")):
        with_scans = {f"{name}{scan}" for name in ("avx2", "avx512", "avx512_bf16") for scan in ("", "_scan")}
        assert set(found) == {*with_scans, "amx"}
        assert found["avx2"] == found["avx2_scan"] == {"-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"}
        assert found["avx2"] < found["avx512"] == found["avx512_scan"]
        assert found["avx512_bf16"] == found["avx512_bf16_scan"]
        assert found["avx512_bf16"] - found["avx512"] == {"-mavx512bf16"}
        assert found["amx"] - found["avx512_bf16"] == {"-mamx-tile", "-mamx-bf16"}
    else:
        assert not found
        assert {"neon", "neon_scan", "baseline", "baseline_scan"} <= {Path(s).stem for s in flags}
    assert bool(link) == platform.startswith("linux")


#: The Python module's folders of headers, in their order.
HEADERS = TARGET.partition("library =")[0] + "print(json.dumps(module.python_module().include_dirs))\n"


@pytest.mark.parametrize("include", ["", "/of/another/python"])
def test_the_headers_of_another_python(include):
    """One environment makes the module for every CPython, whose Python.h comes before any of this one's."""
    environment = {**os.environ, "FASTRNN_CUDA": "0", "FASTRNN_PYTHON_INCLUDE": include}
    said = subprocess.check_output([sys.executable, "-c", HEADERS], cwd=ROOT, env=environment, text=True)
    folders = json.loads(said.splitlines()[-1])
    assert folders[0] == str(ROOT / "csrc")
    assert (include in folders[1:2]) == bool(include)
    assert "" not in folders


def script(folder: Path, text: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


OLD_GCC = "echo '#define __GNUC__ 8'; echo '#define __GNUC_MINOR__ 3'"
OLD_CLANG = "echo '#define __GNUC__ 4'; echo '#define __clang__ 1'"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (OLD_GCC, "is g++ 8"),
        ("echo 'error: no license' >&2; exit 3", "does not compile: error: no license"),
        ("exit 3", "does not compile: exit status 3"),
        (OLD_CLANG, ""),
    ],
)
def test_a_compiler_that_will_not_do_is_told_first(does, said, tmp_path):
    """In one line with what is wanted, by setup.py and by what make asks before it downloads gigabytes.
    torch's own check comes later, and advises the compiler that is already there."""
    environment = {**os.environ, "FASTRNN_CUDA": "0", "CXX": script(tmp_path, does)}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "tools/needs.py"], **options)
    assert done.returncode == bool(said)
    assert said in done.stderr
    if said:
        assert "g++ 11 or newer" in done.stderr
        built = ["setup.py", "-q", "build", "--build-base", str(tmp_path / "build")]
        asked = subprocess.run([sys.executable, *built], **options)
        assert asked.returncode == 1
        assert asked.stderr.endswith(done.stderr)


def test_a_quote_in_cxx_that_does_not_close_is_told():
    """By its name, not by a traceback of the module that splits the words."""
    options = {"cwd": ROOT, "env": {**os.environ, "CXX": "'g++"}, "capture_output": True, "text": True}
    for asked in (["tools/needs.py"], ["setup.py", "-q", "build"]):
        done = subprocess.run([sys.executable, *asked], **options)
        assert done.returncode == 1
        assert done.stderr.endswith("it needs\n  CXX: No closing quotation\n")
        assert "Traceback" not in done.stderr
    # What compiles nothing does not ask.
    subprocess.run([sys.executable, "setup.py", "-q", "--version"], check=True, **options)


def test_no_compiler_and_no_headers():
    """Each by its name, with the packages that have them."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import needs
    finally:
        sys.path.pop(0)
    assert needs.missing(os.environ, needs.headers()) == []
    assert needs.missing(os.environ, []) == []
    (compiler, headers) = needs.missing({"CXX": "no-such-compiler -m64"}, ["/first", "/of/this/python"])
    assert "no-such-compiler cannot be run: No such file" in compiler
    assert "no Python.h in /of/this/python" in headers
    assert "python3-dev" in headers


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"FASTRNN_CUDA": "yes"}, "FASTRNN_CUDA: expected 0 or 1, got 'yes'"),
        ({"FASTRNN_CUDA": "false"}, "FASTRNN_CUDA: expected 0 or 1, got 'false'"),
    ],
)
def test_a_setting_that_says_nothing_is_an_error(setting, said):
    """FASTRNN_CUDA=false once built the CUDA kernels."""
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **setting}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(said)


#: The kernels of 64-bit Arm.
ARMS = sorted((ROOT / "csrc").rglob("isa/neon*.cpp"))


@thorough
@pytest.mark.skipif(shutil.which(f"{AARCH64}g++") is None, reason="no cross compiler for aarch64")
@pytest.mark.parametrize("path", ARMS, ids=[path.relative_to(ROOT).as_posix() for path in ARMS])
def test_the_assembler_knows_what_is_written_for_it(path, tmp_path):
    """Arm's newer instructions stand in the kernels by name. The compiler passes them on as they are, so that
    its assembler alone says whether it takes them, for the oldest processor that the file is for."""
    command = [f"{AARCH64}g++", "-std=c++20", "-O1", "-fPIC", f"-I{ROOT / 'csrc'}", "-c", path]
    done = subprocess.run([*command, "-o", tmp_path / "made.o"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
