"""What was compiled: facts of the build, symbols of the object files, kernels that need nothing of x86."""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from harness.build import compilers, isa_flags
from selection import some
from toolchain import cxx, is_installed

from fastrnn._ops import library

ROOT = Path(__file__).parents[2]


def test_build_info():
    info = library.build_info()
    assert set(info) == {"version", "compiler", "torch", "cuda_archs", "cuda_compiler"}
    assert info["compiler"].startswith(("gcc", "clang"))


#: What has flags of its own on x86-64, below csrc.
FLAGGED = [f"cpu/isa/{name}{scan}" for name in ("avx2", "avx512", "avx512_bf16") for scan in ("", "_scan")]
FLAGGED += ["cpu/isa/amx"]
FLAGGED += ["stream/isa/avx2", "stream/isa/avx512"]


def weak_and_exported(path: Path) -> tuple[list[str], set[str]]:
    """Symbols of an object that the linker would share with other objects, and those that it has for them.

    Constants it may share: which object they come from is nothing to a processor. g++ puts none there, clang
    those of `inline constexpr` tables that code asks for by number.
    """
    lines = subprocess.check_output(["nm", "-C", "--format=sysv", path], text=True).splitlines()
    symbols = [[field.strip() for field in line.rsplit("|", 6)] for line in lines if line.count("|") >= 6]
    constant = (".rodata", ".data.rel.ro")
    unwinds = "DW.ref.__gxx_personality"  # a pointer, in objects that were not optimised: data
    weak = [
        name
        for name, _, kind, *_, section in symbols
        if kind in [*"WwVvui"] and not name.startswith(unwinds) and not section.startswith(constant)
    ]
    return weak, {name for name, _, kind, *_ in symbols if kind.isupper() and kind not in "UVW"}


def name_of(path: Path) -> str:
    """cpu/isa/avx2 of a source or an object of it."""
    return "/".join(path.with_suffix("").parts[-3:])


def tables_of(name: str) -> set[str]:
    """The names of what csrc/NAME.cpp is for."""
    house, _, stem = name.split("/")
    table = stem.title().replace("_", "")
    if house == "stream":
        return {f"fastrnn::k{table}Stream"}
    if table.endswith("Scan"):
        return {f"fastrnn::k{table}"}
    kinds = ("", "Bf16") if table == "Neon" else ("",)
    return {f"fastrnn::k{table}{kind}Kernels" for kind in kinds}


def kernel_files() -> list[Path]:
    if not (ROOT / "csrc").is_dir():
        pytest.skip("an installed package: the sources are elsewhere")
    return [p for p in sorted((ROOT / "csrc").glob("*/isa/*.cpp")) if p.stem not in ("choose", "processor")]


def test_kernels_export_their_table_alone():
    """No weak symbol: an inline function compiled with AVX-512 here could take the place of everybody's copy
    at link time, and then crash a machine without it."""
    names = set(map(name_of, kernel_files()))
    objects = [p for p in ROOT.glob("build/temp*/libfastrnn_*/**/isa/*.o") if name_of(p) in names]
    if not objects:
        pytest.skip("an installed package: the object files are elsewhere")
    for path in objects:
        weak, exported = weak_and_exported(path)
        assert not weak, path
        assert exported <= tables_of(name_of(path)), path  # none on another processor


def flags_of(path: Path) -> list[str]:
    names = {"AMD64": "x86_64", "arm64": "aarch64"}
    return isa_flags(path.stem, names.get(platform.machine(), platform.machine()))


@pytest.mark.parametrize("compiler", some(compilers(), lambda name: name == compilers()[0]))
@pytest.mark.parametrize("name", some(FLAGGED, lambda name: name == "cpu/isa/avx2_scan"))
def test_nothing_escapes_whatever_the_compiler_inlines(name, compiler, tmp_path):
    """The same of objects in which nothing is inlined that need not be: what keeps shared functions out of
    them is how they are declared, not how hard a compiler tries."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"instruction sets of x86-64, this is {platform.machine()}")
    if not is_installed(shlex.split(compiler)):
        pytest.skip("a machine without a compiler")
    (path,) = (p for p in kernel_files() if name_of(p) == name)
    made = tmp_path / "kernels.o"
    flags = ["-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", f"-I{ROOT / 'csrc'}", *flags_of(path)]
    subprocess.run([*shlex.split(compiler), *flags, "-c", path, "-o", made], check=True)
    weak, exported = weak_and_exported(made)
    assert not weak
    assert exported == tables_of(name)


def test_no_instruction_set_by_pragma():
    """clang knows no `#pragma GCC target`: what a file is compiled for stands in flags.txt, and a build that
    overlooks it stops."""
    pragma = re.compile(r"^\s*#\s*pragma\s+(GCC|clang)\s+(target|attribute)", re.MULTILINE)
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    assert not [p for p in sources if pragma.search(p.read_text())]
    flagged = [path for path in kernel_files() if flags_of(path)]
    for path in flagged:
        assert "#error" in path.read_text(), path.name
    assert platform.machine() not in ("x86_64", "AMD64") or sorted(map(name_of, flagged)) == sorted(FLAGGED)


def test_kernels_are_chosen_where_all_they_are_compiled_for_is_there():
    """Every feature of an instruction set's flags is asked of the processor before its kernels may run, and
    in a file that needs none of them: a virtual machine can hide any."""
    text = (ROOT / "csrc" / "cpu" / "isa" / "processor.cpp").read_text()
    bodies = dict(re.findall(r"bool (?:has|may_use)_(\w+)\(\) \{(.*?)\}", text, re.DOTALL))

    def asked(name: str) -> set[str]:
        body = bodies[name]
        return set(re.findall(r'supports\("([\w-]+)"\)', body)).union(
            *map(asked, re.findall(r"has_(\w+)\(\)", body))
        )

    # By cpuid, bit by bit: not all compilers have names for these.
    by_bits = {
        "f16c": ("__get_cpuid(1,", "1u << 29"),
        "amx": ("__get_cpuid_count(7, 0,", "1u << 24 | 1u << 22"),
    }
    for name, words in by_bits.items():
        assert all(word in bodies[name] for word in words), name
    bodies["f16c"] = 'supports("f16c")'
    bodies["amx"] += 'supports("amx-tile") supports("amx-bf16")'
    assert set(bodies) == {"avx2", "avx512", "avx512_bf16", "amx", "f16c"}
    for name in set(bodies) - {"f16c"}:
        needed = {flag.removeprefix("-m") for flag in isa_flags(name, "x86_64") if "=" not in flag}
        assert needed == asked(name), name
    assert not isa_flags("processor", "x86_64")
    assert not [p.name for p in kernel_files() if "cpu_supports" in p.read_text()]


def _compile(compiler: list[str], output: Path, *flags: str) -> str:
    """What the compiler has to say about the baseline kernels."""
    source = ROOT / "csrc" / "cpu" / "isa" / "baseline.cpp"
    command = [
        *compiler,
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
    """They compile for aarch64: by a cross compiler where there is one, and here in its name, which alone is
    what machines without one can check, and failed there for as long as those with one did not try it.

    In its name: without the macro of x86-64 and with that of aarch64, no x86 intrinsic can be meant.
    """
    cross = shutil.which("aarch64-linux-gnu-g++")
    if cross:
        assert _compile([cross], tmp_path / "kernels.o", "-c", "-O1") == ""
    compiler = cxx()
    if not is_installed(compiler):
        pytest.skip("an installed package on a machine without a compiler")
    if platform.machine() == "aarch64":
        assert _compile(compiler, tmp_path / "kernels.o", "-c", "-O0") == ""
        return
    # What glibc takes for another processor of x86 has words of 32 bits there, and asks for their stubs.
    (tmp_path / "gnu").mkdir()
    (tmp_path / "gnu" / "stubs-32.h").touch()
    (tmp_path / "bits").mkdir()
    (tmp_path / "bits" / "wordsize.h").write_text("#define __WORDSIZE 64\n")
    flags = ("-fsyntax-only", "-U__x86_64__", "-D__aarch64__", f"-I{tmp_path}")
    assert _compile(compiler, tmp_path / "kernels.s", *flags) == ""
