"""What an import gives where the binaries cannot be had: a message, once, and layers that work."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from broken_package import PACKAGE, check_without_kernels, compiled, copy_of_package, imported
from selection import thorough
from toolchain import cxx, is_installed

from fastrnn._ops import elf


def test_as_it_is(tmp_path):
    """The probe itself: with its binaries the package says nothing, and uses them."""
    copy_of_package(tmp_path)
    found = imported(tmp_path)
    assert found["loaded"]
    assert found["said"] == []
    assert found["refused"] == ""
    assert found["isa"] in found["explained"]


@pytest.mark.parametrize("told", ["abc", "0"])
def test_a_wrong_setting_stops_no_import(tmp_path, told):
    """FASTRNN_CPUS and FASTRNN_CPU_ISA are told and not followed: without an import nobody could
    ask `info`."""
    copy_of_package(tmp_path)
    found = imported(tmp_path, FASTRNN_CPUS=told, FASTRNN_CPU_ISA=told)
    assert found["loaded"]
    assert found["kinds"] == ["RuntimeWarning"] * 2
    assert found["where"] == ["<string>"] * 2
    cpus, isa = found["said"]
    assert cpus.startswith(f"FASTRNN_CPUS: expected a number of CPUs, at least 1, got '{told}'; using what")
    assert isa.startswith(f"FASTRNN_CPU_ISA='{told}' cannot run here")


def test_removed_library(tmp_path):
    (copy_of_package(tmp_path) / "libfastrnn_cpu.so").unlink()
    check_without_kernels(imported(tmp_path), "libfastrnn_cpu.so is not in", str(tmp_path))


def test_removed_python_module(tmp_path):
    for path in copy_of_package(tmp_path).glob("_C.*"):
        path.unlink()
    check_without_kernels(imported(tmp_path), "_C is not in", str(tmp_path))


def test_python_module_of_another_python(tmp_path):
    """A folder that another interpreter built into."""
    (module,) = copy_of_package(tmp_path).glob("_C.*")
    other = module.with_name("_C.cpython-39-x86_64-linux-gnu.so")
    module.rename(other)
    check_without_kernels(imported(tmp_path), "no fastrnn._C for cpython-3", other.name)


def test_python_module_of_another_version(tmp_path):
    """Left over from a build of other sources: it loads, and lacks functions."""
    package = copy_of_package(tmp_path)
    for path in package.glob("_C.*"):
        path.unlink()
    (package / "_C.py").write_text("def build_info():\n    return {}\n")
    check_without_kernels(imported(tmp_path), "it is of another version, and has no plan")


def test_symbol_that_this_torch_lacks(tmp_path):
    """A library for a newer libtorch: the dynamic linker names the symbol, and so does the message."""
    library = copy_of_package(tmp_path) / "libfastrnn_cpu.so"
    library.unlink()
    compiled('extern "C" int torch_of_tomorrow(); int x = torch_of_tomorrow();', library)
    import torch

    check_without_kernels(imported(tmp_path), f"torch {torch.__version__} does not have", "torch_of_tomorrow")


def test_a_damaged_table_of_symbols(tmp_path):
    """A symbol without a name is none that torch lacks: what the loader says is given, and torch is
    not blamed."""
    copy_of_package(tmp_path)
    said = "undefined symbol: , version GLIBCXX_3.4"
    before = f"def broken(path):\n    raise OSError(f'{{path}}: {said}')\ntorch.ops.load_library = broken"
    found = imported(tmp_path, before)
    check_without_kernels(found, f"libfastrnn_cpu.so could not be loaded: {said}")
    assert "does not have" not in found["why"]


@pytest.mark.skipif(sys.platform != "linux", reason="about ELF")
def test_library_for_another_processor(tmp_path):
    """Another machine's wheel, a folder that two kinds of machine share: glibc would say that there is no
    such file, which is there for everybody to see."""
    library = copy_of_package(tmp_path) / "libfastrnn_cpu.so"
    content = bytearray(library.read_bytes())
    content[18:20] = struct.pack("<H", 243)
    library.write_bytes(content)
    check_without_kernels(imported(tmp_path), "it is for riscv, and this Python for ")


def test_what_the_loader_says_is_explained(tmp_path):
    """The file's name once, and where a file system forbids it to run that this may be so; of what is no ELF
    file, or of this machine, the loader's own words."""
    own, text = Path(sys.executable), tmp_path / "text.so"
    text.write_text("nothing")
    for path in (own, text, tmp_path / "gone.so", tmp_path):
        assert elf.explained(path, f"{path}: no room") == "no room"
    said = elf.explained(own, f"{own}: failed to map segment from shared object")
    assert said == "failed to map segment from shared object; its file system may be mounted noexec"
    for number, name in ((62, "x86_64"), (183, "aarch64"), (9999, "machine 9999 of ELF")):
        for order, byte in (("<", b"\x01"), (">", b"\x02")):
            text.write_bytes(b"\x7fELF\x02" + byte + bytes(12) + struct.pack(f"{order}H", number))
            assert elf.machine(text) == name


def test_library_of_another_version(tmp_path):
    """It loads, and lacks operators that the package's Python asks for."""
    library = copy_of_package(tmp_path) / "libfastrnn_cpu.so"
    library.unlink()
    compiled("int nothing = 0;", library)
    check_without_kernels(imported(tmp_path), "is of another version: it has no rnn_forward")


def test_torch_that_is_too_old(tmp_path):
    """Nothing is loaded into a torch that the libraries were not built for; both versions are told."""
    copy_of_package(tmp_path)
    before = "torch.__version__ = type(torch.__version__)('2.9.1+cpu')"
    check_without_kernels(imported(tmp_path, before), "fastrnn needs torch >= 2.11, found 2.9.1+cpu")


@thorough
def test_torch_of_ones_own_build(tmp_path):
    """Versions of other forms than a release's are no reason to refuse."""
    copy_of_package(tmp_path)
    before = "torch.__version__ = type(torch.__version__)('2.14.0a0+git1234567')"
    assert imported(tmp_path, before)["loaded"]


def test_zipped_package(tmp_path):
    """From an archive Python imports modules and no libraries."""
    copy_of_package(tmp_path / "copy")
    archive = tmp_path / "fastrnn.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "copy").rglob("*"):
            file.write(path, path.relative_to(tmp_path / "copy"))
    check_without_kernels(imported(archive), "lies in an archive", "`pip install` unpacks it")


#: Nobody may write below the package, root included, whom no permission keeps from it.
GUARD = """
def guard(event, arguments):
    path = str(arguments[0]) if event in ("open", "os.mkdir", "os.rename", "os.remove") else ""
    writes = event != "open" or not isinstance(arguments[1], str) or set(arguments[1]) & set("wax+")
    if event == "open" and arguments[1] is None:
        writes = bool(arguments[2] & 3)
    if path.startswith(sys.argv[1]) and writes and "__pycache__" not in path:
        raise PermissionError(30, f"{event}: read-only", path)
sys.addaudithook(guard)
"""


def test_read_only_folder(tmp_path):
    """An administrator's installation, an image, a mount: import, layers and kernels write nothing there."""
    package = copy_of_package(tmp_path / "site")
    everything = [package, *package.rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in everything if path.is_file()}
    for path in everything:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        found = imported(tmp_path / "site", GUARD, PYTHONDONTWRITEBYTECODE="1")
    finally:
        for path in everything:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
    assert found["loaded"]
    assert found["said"] == []
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*") if path.is_file()} == before


@thorough
def test_cuda_library_beside_a_cpu_build_of_torch(tmp_path):
    """One wheel for both: nothing to say, and nobody opens the file."""
    (copy_of_package(tmp_path) / "libfastrnn_cuda.so").write_bytes(b"\x7fELF")
    found = imported(tmp_path, "torch.version.cuda = None")
    assert found["loaded"]
    assert not found["cuda"]
    assert found["said"] == []
    assert found["cuda_why"] == "torch was built without CUDA"


def command(where: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "fastrnn", *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(where)},
    )


def test_commands_without_kernels(tmp_path):
    """info tells all there is; the proofs have nothing to prove, and say why."""
    copy_of_package(tmp_path, binaries=False)
    done = command(tmp_path, "info", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["cpu"]["kernels_loaded"] is False
    assert (
        "_C is not in" in found["cpu"]["why_not"] or "libfastrnn_cpu.so is not in" in found["cpu"]["why_not"]
    )
    text = command(tmp_path, "info")
    assert text.returncode == 0, text.stderr
    assert "A bug report needs all of the above" in text.stdout
    for name in ("verify", "bench"):
        done = command(tmp_path, name)
        assert done.returncode == 1
        assert "fastrnn's kernels are not loaded: libfastrnn_cpu.so is not in" in done.stderr


def test_issue_template_asks_for_info():
    """A report comes with what `python -m fastrnn info` says, and cannot be sent without."""
    folder = PACKAGE.parent / ".github" / "ISSUE_TEMPLATE"
    first = (folder / "bug.yml").read_text().split("- type:")[1]
    assert "python -m fastrnn info" in first
    assert re.search(r"required: true", first)
    # An empty form beside it would be the way without.
    assert "blank_issues_enabled: false" in (folder / "config.yml").read_text().splitlines()


#: The tables of csrc/cpu/isa/choose.cpp, none of whose instruction sets is there.
UNKNOWN_PROCESSOR = """
#include "cpu/isa/choose.h"
#include <cstdio>
#include <cstdlib>
namespace fastrnn {
static bool never() { return false; }
static bool always() { return true; }
extern const KernelTable kBaselineKernels{.name = "baseline", .runs_here = always};
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels{.name = "avx2", .runs_here = never};
extern const KernelTable kAvx512Kernels{.name = "avx512", .runs_here = never};
extern const KernelTable kAvx512Bf16Kernels{.name = "avx512_bf16", .runs_here = never};
#elif defined(__aarch64__)
extern const KernelTable kNeonKernels{.name = "neon", .runs_here = never};
extern const KernelTable kNeonBf16Kernels{.name = "neon_bf16", .runs_here = never};
#endif
}
int main() {
  std::printf("%s %zu\\n", fastrnn::kernels_in_use().name, fastrnn::runnable_kernels().size());
}
"""


@pytest.mark.parametrize("asked", ["", "avx512", "amx_of_tomorrow"])
def test_unknown_processor_runs_the_baseline(tmp_path, asked):
    """The choice that the library makes when it loads, on a processor that has nothing it knows, whatever
    FASTRNN_CPU_ISA asks for."""
    csrc = PACKAGE.parent / "csrc"
    if not csrc.is_dir():
        pytest.skip("an installed package: the sources are elsewhere")
    program = tmp_path / "choose"
    compiler = cxx("c++")
    if not is_installed(compiler):
        pytest.skip("an installed package on a machine without a compiler")
    subprocess.run(
        [*compiler, "-std=c++20", f"-I{csrc}", "-x", "c++", "-", csrc / "cpu/isa/choose.cpp", "-o", program],
        input=UNKNOWN_PROCESSOR,
        text=True,
        check=True,
    )
    environment = {**os.environ, "FASTRNN_CPU_ISA": asked}
    said = subprocess.check_output([program], text=True, env=environment)
    assert said == "baseline 1\n"
