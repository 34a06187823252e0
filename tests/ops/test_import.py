"""What an import gives where the binaries cannot be had: a message, once, and layers that work."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from selection import some, thorough

import fastrnn
from fastrnn._ops import elf

PACKAGE = Path(fastrnn.__file__).parent

#: Run in a process of its own with the package's folder, or archive, in front of everything: what the import
#: said, and that every kind of layer, by every way in, computes what torch.nn does.
PROGRAM = """
import json, sys, warnings
sys.path.insert(0, sys.argv[1])
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
{before}
    import fastrnn, fastrnn.models, fastrnn.compat.sru
    from fastrnn._ops import library
mine = [w for w in said if "fastrnn" in str(w.message)]
assert fastrnn.__file__.startswith(sys.argv[1]), fastrnn.__file__
x, cases = torch.randn(5, 3, 4), 0
for name in ("LSTM", "GRU", "RNN"):
    for options in ({{}}, {{"num_layers": 2, "bidirectional": True}}):
        torch.manual_seed(0)
        theirs = getattr(torch.nn, name)(4, 6, **options)
        torch.manual_seed(0)
        ours = getattr(fastrnn, name)(4, 6, **options)
        with fastrnn.patch():
            patched = theirs(x)[0]
        converted = fastrnn.convert(getattr(torch.nn, name)(4, 6, **options))
        converted.load_state_dict(theirs.state_dict())
        for y in (ours(x)[0], patched, converted(x)[0]):
            torch.testing.assert_close(y, theirs(x)[0])
        ours(x)[0].sum().backward()
        theirs(x)[0].sum().backward()
        for a, b in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(a.grad, b.grad)
        assert ours(x, lengths=torch.tensor([5, 0, 2]))[0].isfinite().all()
        cases += 1
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name + "Cell")(4, 6)
    torch.manual_seed(0)
    ours = getattr(fastrnn, name + "Cell")(4, 6)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    stream = fastrnn.__dict__[name](4, 6).eval().streamer()
    stream.step(x[0])
    cases += 1
for layer in (fastrnn.SRU(4, 6), fastrnn.SRUpp(4, 6, 3)):
    layer(x)[0].sum().backward()
    cases += 1
explained = str(fastrnn.explain(fastrnn.LSTM(4, 6), (5, 3)))
try:
    fastrnn.LSTM(4, 6, backend="fused")(x)
    refused = ""
except RuntimeError as error:
    refused = str(error)
print(json.dumps({{
    "said": [str(w.message) for w in mine], "kinds": [w.category.__name__ for w in mine], "cases": cases,
    "where": [w.filename for w in mine],
    "loaded": library.cpu_loaded, "why": library.cpu_why,
    "cuda": library.cuda_loaded, "cuda_why": library.cuda_why,
    "explained": explained, "refused": refused, "isa": library.cpu_isa(),
}}))
"""


def copy_of_package(folder: Path, binaries: bool = True) -> Path:
    """The package as it lies here, in a folder of its own."""
    left_out = () if binaries else ("*.so",)
    shutil.copytree(PACKAGE, folder / "fastrnn", ignore=shutil.ignore_patterns("__pycache__", *left_out))
    return folder / "fastrnn"


def imported(where: Path, before: str = "", **environment: str) -> dict:
    """What PROGRAM says of the package in a folder or an archive; ``before`` is run before the import."""
    program = PROGRAM.format(before="\n".join(f"    {line}" for line in before.splitlines()))
    done = subprocess.run(
        [sys.executable, "-c", program, str(where)],
        cwd=where.parent,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_without_kernels(found: dict, *words: str) -> None:
    """One warning, with the reason and where to look; the same reason wherever somebody asks."""
    assert not found["loaded"]
    assert found["kinds"] == ["RuntimeWarning"], found["said"]
    (said,) = found["said"]
    assert said.startswith("fastrnn's kernels are not loaded, torch's own layers run in their place: ")
    assert "python -m fastrnn info" in said
    assert found["where"] == ["<string>"]  # the line of the program that imports fastrnn
    for word in words:
        assert word in said
        assert word in found["why"]
        assert word in found["explained"]
        assert word in found["refused"]
    assert found["refused"].startswith("backend='fused': fastrnn's kernels are not loaded")
    assert found["cases"] == 11


def test_as_it_is(tmp_path):
    """The probe itself: with its binaries the package says nothing, and uses them."""
    copy_of_package(tmp_path)
    found = imported(tmp_path)
    assert found["loaded"]
    assert found["said"] == []
    assert found["refused"] == ""
    assert found["isa"] in found["explained"]


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


@pytest.mark.parametrize(
    "content", some([b"", b"\x7fELF not quite", b"<html>404</html>"], lambda content: content == b"")
)
def test_broken_library(tmp_path, content):
    """A download that broke off, a pointer of Git LFS, a page of a proxy's."""
    (copy_of_package(tmp_path) / "libfastrnn_cpu.so").write_bytes(content)
    check_without_kernels(imported(tmp_path), "libfastrnn_cpu.so could not be loaded")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' loaders look themselves")
@pytest.mark.parametrize("part", some([0.5, 0.999, "headers"], lambda part: part == 0.5))
@pytest.mark.parametrize("name", ["libfastrnn_cpu.so", "_C.*"])
def test_library_that_was_not_written_whole(tmp_path, name, part):
    """A full disk, a copy that broke off: the system's loader would take it, and the process end at what is
    not there, without a word."""
    (library,) = copy_of_package(tmp_path).glob(name)
    whole = library.read_bytes()
    library.write_bytes(whole[: 100 if part == "headers" else mapped(whole, part)])
    check_without_kernels(imported(tmp_path), library.name, "it was not written whole")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' loaders look themselves")
@pytest.mark.parametrize("name", ["libfastrnn_cpu.so", "_C.*"])
def test_library_whose_end_was_never_written(tmp_path, name):
    """Room taken and not filled, by a download in pieces or a machine that went down: the size is right,
    zeros follow, and the system's loader ends the process."""
    (library,) = copy_of_package(tmp_path).glob(name)
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) - 4096] + bytes(4096))
    check_without_kernels(imported(tmp_path), library.name, "it was not written whole")


def test_link_to_nowhere(tmp_path):
    """A library that was moved to another disk, a link into a folder that is not mounted."""
    package = copy_of_package(tmp_path)
    (package / "libfastrnn_cuda.so").unlink(missing_ok=True)
    (package / "libfastrnn_cuda.so").symlink_to(tmp_path / "gone.so")
    found = imported(tmp_path, "torch.version.cuda = '13.0'")
    assert found["loaded"]
    assert found["kinds"] == ["RuntimeWarning"]
    assert (
        found["cuda_why"]
        == f"{package / 'libfastrnn_cuda.so'} is a link to {tmp_path / 'gone.so'}, where no file is"
    )
    (package / "libfastrnn_cpu.so").unlink()
    (package / "libfastrnn_cpu.so").symlink_to("libfastrnn_cpu.so")
    check_without_kernels(imported(tmp_path), "is a link to libfastrnn_cpu.so, where no file is")


def test_another_pythons_module_that_was_not_written_whole(tmp_path):
    """It lies beside ours where several Pythons build in one folder, and is nothing to us."""
    (module,) = copy_of_package(tmp_path).glob("_C.*.so")
    whole = module.read_bytes()
    module.with_name("_C.cpython-39-other.so").write_bytes(whole[: len(whole) // 2])
    found = imported(tmp_path)
    assert found["loaded"]
    assert found["said"] == []


def mapped(whole: bytes, part: float) -> int:
    """A share of what is mapped of an ELF file: what follows is for linkers and debuggers."""
    table, (entry, count) = struct.unpack_from("<Q", whole, 32)[0], struct.unpack_from("<HH", whole, 54)
    rows = [struct.unpack_from("<IIQQQQ", whole, table + entry * n) for n in range(count)]
    return int(part * max(start + length for kind, _, start, _, _, length in rows if kind == 1))


def test_whole_files_and_others_are_for_the_loader(tmp_path):
    """Our own are whole, also with nothing after what is mapped; what is no ELF file is judged by no one."""
    for path in [*PACKAGE.glob("*.so"), *PACKAGE.glob("lib/*.so")]:
        assert elf.cut_off(path) == ""
    stripped, text = tmp_path / "stripped.so", tmp_path / "text.so"
    (module,) = PACKAGE.glob("_C.*.so")
    if module.read_bytes()[:4] == b"\x7fELF":
        stripped.write_bytes(module.read_bytes()[: mapped(module.read_bytes(), 1)])
        assert elf.cut_off(stripped) == ""
    assert elf.cut_off(tmp_path) == ""  # a folder of that name, a file that nobody may read
    for content in (b"", b"\x7fELF not quite", b"MZ" + bytes(100), b"\xcf\xfa\xed\xfe" + bytes(100)):
        text.write_bytes(content)
        assert elf.cut_off(text) == ""
    for cut in (0.3, 0.9, 0.99):  # zeros to the end, wherever they begin
        whole = (PACKAGE / "libfastrnn_cpu.so").read_bytes() if sys.platform == "linux" else b""
        text.write_bytes(whole[: int(cut * len(whole))] + bytes(len(whole) - int(cut * len(whole))))
        assert not whole or "it was not written whole" in elf.cut_off(text)
    for field in range(32, 62):  # wrong headers are no error of ours either
        text.write_bytes(b"\x7fELF\x02\x01" + bytes(field - 6) + b"\xff" * 2 + bytes(100))
        elf.cut_off(text)


@thorough
def test_broken_python_module(tmp_path):
    (module,) = copy_of_package(tmp_path).glob("_C.*")
    module.write_bytes(b"nothing")
    check_without_kernels(imported(tmp_path), "fastrnn._C could not be imported", "_C.")


def compiled(source: str, to: Path, *flags: str) -> None:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip("an installed package on a machine without a compiler")
    command = [compiler, "-x", "c++", "-shared", "-fPIC", "-", "-o", to, *flags]
    subprocess.run(command, input=source, text=True, check=True)


def test_symbol_that_this_torch_lacks(tmp_path):
    """A library for a newer libtorch: the dynamic linker names the symbol, and so does the message."""
    library = copy_of_package(tmp_path) / "libfastrnn_cpu.so"
    library.unlink()
    compiled('extern "C" int torch_of_tomorrow(); int x = torch_of_tomorrow();', library)
    import torch

    check_without_kernels(imported(tmp_path), f"torch {torch.__version__} does not have", "torch_of_tomorrow")


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


@pytest.mark.parametrize("cut", [False, True])
def test_cuda_library_that_cannot_load(tmp_path, cut):
    """The CPU kernels stay, and the warning speaks of GPUs alone."""
    package = copy_of_package(tmp_path)
    whole = (package / "libfastrnn_cpu.so").read_bytes()
    (package / "libfastrnn_cuda.so").write_bytes(whole[: len(whole) // 2] if cut else b"\x7fELF")
    found = imported(tmp_path, "torch.version.cuda = '13.0'")
    assert found["loaded"]
    assert not found["cuda"]
    assert found["kinds"] == ["RuntimeWarning"]
    assert found["said"][0].startswith(
        "fastrnn's CUDA kernels could not be loaded, torch's own layers run on GPUs"
    )
    assert "libfastrnn_cuda.so" in found["cuda_why"]
    assert found["where"] == ["<string>"]


def test_cuda_library_of_another_version(tmp_path):
    """It loads, and has nothing of what the package calls on a GPU: torch's layers run there, the CPU keeps
    its kernels."""
    library = copy_of_package(tmp_path) / "libfastrnn_cuda.so"
    library.unlink(missing_ok=True)
    compiled("int nothing = 0;", library)
    found = imported(tmp_path, "torch.version.cuda = '13.0'")
    assert found["loaded"]
    assert not found["cuda"]
    (said,) = found["said"]
    for text in (said, found["cuda_why"]):
        assert "libfastrnn_cuda.so is of another version: it has no rnn_forward, " in text


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
    template = (PACKAGE.parent / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    first = template.split("- type:")[1]
    assert "python -m fastrnn info" in first
    assert re.search(r"required: true", first)


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
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip("an installed package on a machine without a compiler")
    subprocess.run(
        [compiler, "-std=c++20", f"-I{csrc}", "-x", "c++", "-", csrc / "cpu/isa/choose.cpp", "-o", program],
        input=UNKNOWN_PROCESSOR,
        text=True,
        check=True,
    )
    environment = {**os.environ, "FASTRNN_CPU_ISA": asked}
    said = subprocess.check_output([program], text=True, env=environment)
    assert said == "baseline 1\n"
