"""Libraries not written whole, of another version or not there: one message each, and layers that work."""

from __future__ import annotations

import struct
import sys

import pytest
import torch
from broken_package import PACKAGE, check_without_kernels, compiled, copy_of_package, imported
from selection import some, thorough

from fastrnn._ops import elf, library


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
    (binary,) = copy_of_package(tmp_path).glob(name)
    whole = binary.read_bytes()
    binary.write_bytes(whole[: 100 if part == "headers" else mapped(whole, part)])
    check_without_kernels(imported(tmp_path), binary.name, "it was not written whole")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' loaders look themselves")
@pytest.mark.parametrize("name", ["libfastrnn_cpu.so", "_C.*"])
def test_library_whose_end_was_never_written(tmp_path, name):
    """Room taken and not filled, by a download in pieces or a machine that went down: the size is right,
    zeros follow, and the system's loader ends the process."""
    (binary,) = copy_of_package(tmp_path).glob(name)
    whole = binary.read_bytes()
    binary.write_bytes(whole[: len(whole) - 4096] + bytes(4096))
    check_without_kernels(imported(tmp_path), binary.name, "it was not written whole")


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
    binary = copy_of_package(tmp_path) / "libfastrnn_cuda.so"
    binary.unlink(missing_ok=True)
    compiled("int nothing = 0;", binary)
    found = imported(tmp_path, "torch.version.cuda = '13.0'")
    assert found["loaded"]
    assert not found["cuda"]
    (said,) = found["said"]
    for text in (said, found["cuda_why"]):
        assert "libfastrnn_cuda.so is of another version: it has no rnn_forward, " in text


@pytest.mark.skipif(not library.cuda_loaded, reason="no CUDA library to compare with: " + library.cuda_why)
def test_what_a_cuda_library_must_have_is_what_ours_has():
    """An operator that is added there is asked of others' libraries too."""
    for key, names in library._ON_CUDA.items():
        found = torch._C._dispatch_get_registrations_for_dispatch_key(key)
        own = {name.removeprefix("fastrnn::") for name in found if name.startswith("fastrnn::")}
        own = {name for name in own if not name.endswith(".script")}  # the same, written in TorchScript
        assert {*names} == {name for name in own if key == "CUDA" or name.startswith("cuda_")}
