"""What was compiled: facts of the build, symbols of the object files, kernels that need nothing of x86."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastrnn._ops import library

ROOT = Path(__file__).parents[2]


def test_build_info():
    info = library.build_info()
    assert set(info) == {"version", "compiler", "torch", "cuda_archs", "cuda_compiler"}
    assert info["compiler"].startswith(("gcc", "clang"))


def test_kernels_export_their_table_alone():
    """No weak symbol: an inline function compiled with AVX-512 here could take the place of everybody's copy
    at link time, and then crash a machine without it."""
    folder = "build/temp*/libfastrnn_cpu/csrc/cpu/isa"
    objects = [path for path in sorted(ROOT.glob(f"{folder}/*.o")) if path.stem != "choose"]
    if not objects:
        pytest.skip("an installed package: the object files are elsewhere")
    for path in objects:
        lines = subprocess.check_output(["nm", "-C", path], text=True).splitlines()
        symbols = [line.split(maxsplit=2)[1:] if line[0] != " " else line.split(maxsplit=1) for line in lines]
        assert not [name for kind, name in symbols if kind in "WwVvui"], path
        exported = [name for kind, name in symbols if kind.isupper() and kind != "U"]
        table = path.stem.title().replace("_", "")
        allowed = {f"fastrnn::k{table}"}
        if not table.endswith(("Scan", "Quantized")):  # AVX-512 has two, with and without bfloat16
            allowed = {f"fastrnn::k{table}Kernels", f"fastrnn::k{table}Bf16Kernels"}
        assert set(exported) <= allowed, path  # none on another processor


def test_kernels_are_chosen_where_all_they_are_compiled_for_is_there():
    """Every feature of an instruction set's pragma is asked of the processor before its kernels may run: a
    virtual machine can hide any of them."""
    pragmas = 0
    sources = sorted((ROOT / "csrc" / "cpu" / "isa").glob("*.cpp"))
    assert sources
    for path in sources:
        text = path.read_text()
        if path.stem.endswith(("_scan", "_quantized")):
            continue
        asked = set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', text))
        for target in re.findall(r'#pragma GCC target\("([^"]+)"\)', text):
            needed = {feature for feature in target.split(",") if "=" not in feature}
            assert needed <= asked, path.name
            pragmas += 1
            # These make no choice of their own: they come with their instruction set.
            for other in ("scan", "quantized"):
                beside = path.with_name(f"{path.stem}_{other}.cpp").read_text()
                assert f'#pragma GCC target("{target}")' in beside, (path.name, other)
    assert pragmas == 2


def _compile(compiler: str, output: Path, *flags: str) -> str:
    """What the compiler has to say about the baseline kernels."""
    source = ROOT / "csrc" / "cpu" / "isa" / "baseline.cpp"
    command = [
        compiler,
        "-std=c++20",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{ROOT / 'csrc'}",
        *flags,
        source,
        "-o",
        output,
    ]
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_baseline_kernels_need_nothing_of_x86(tmp_path):
    """They compile for aarch64: with a cross compiler where there is one, else here in its name.

    In its name: without the macro of x86-64 and with that of aarch64, no x86 intrinsic can be meant.
    """
    cross = shutil.which("aarch64-linux-gnu-g++")
    if cross:
        assert _compile(cross, tmp_path / "kernels.o", "-c", "-O1") == ""
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip("an installed package on a machine without a compiler")
    if platform.machine() == "aarch64":
        assert _compile(compiler, tmp_path / "kernels.o", "-c", "-O0") == ""
        return
    (tmp_path / "gnu").mkdir()
    (tmp_path / "gnu" / "stubs-32.h").touch()  # which glibc asks for on what seems no x86-64
    flags = ("-S", "-O0", "-U__x86_64__", "-D__aarch64__", f"-I{tmp_path}")
    assert _compile(compiler, tmp_path / "kernels.s", *flags) == ""
