"""Compiles the kernels' harness by ninja into build/harness: for this machine, under ThreadSanitizer, for
aarch64."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emu.build import ROOT, compile_and_link, write
from toolchain import aarch64_cxx, cxx, is_installed

CSRC = ROOT / "csrc"
HERE = Path(__file__).parent
OUT = ROOT / "build" / "harness"
#: As setup.py compiles the kernels.
FLAGS = ["-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
FLAGS += ["-pthread", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-maybe-uninitialized"]
AARCH64 = "aarch64-linux-gnu-"


class Fault(NamedTuple):
    """A text that occurs once in a file of csrc, and a wrong one."""

    file: str
    right: str
    wrong: str


def harness(
    name: str,
    flags: Sequence[str],
    compiler: str | None = None,
    faults: Sequence[Fault] = (),
    isas: str = "*",
) -> Path:
    """The program, compiled with `flags` into build/harness/name; with `faults`, from a copy of csrc."""
    folder = OUT / name
    csrc = sources_with(faults, folder)
    folders = [(CSRC / "cpu" / "isa").glob(f"{pattern}.cpp") for pattern in isas.split()]
    tables = {"choose.cpp", "processor.cpp", *(path.name for paths in folders for path in paths)}
    sources = [csrc / "cpu" / "isa" / name for name in sorted(tables)]
    sources += [csrc / "plan" / "cpu.cpp", csrc / "plan" / "scan.cpp", HERE / "harness.cpp"]
    edges, objects = [], []
    for source in sources:
        target = folder / "objects" / f"{'_'.join(source.parts[-2:])}.o"
        own = isa_flags(source.stem, target_machine(compiler)) if source.parent.name == "isa" else []
        edges.append(
            f"build {target}: cxx {source}\n  flags = {' '.join([*FLAGS, *flags, *own, f'-I{csrc}'])}\n"
        )
        objects.append(str(target))
    result = folder / "harness"
    edges.append(f"build {result}: link {' '.join(objects)}\n")
    compile_and_link(folder, edges, " ".join(["-pthread", *flags]), "", compiler)
    return result


def compilers() -> list[str]:
    """Commands: the compiler that CXX names or g++, then every other g++ and clang++ of this machine."""
    asked = shlex.join(cxx())
    named = {p.name for f in os.get_exec_path() if Path(f).is_dir() for p in Path(f).glob("*++*")}
    names = [asked, *sorted(n for n in named if re.fullmatch(r"(g|clang)\+\+(-\d+)?", n))]
    found = {}
    for name in filter(lambda command: is_installed(shlex.split(command)), names):
        said = subprocess.run([*shlex.split(name), "--version"], capture_output=True, text=True).stdout
        if said:
            found.setdefault(re.sub(r"^\S+ ", "", said.partition("\n")[0]), name)
    return list(found.values()) or [asked]


def target_machine(compiler: str | None = None) -> str:
    """What a compiler compiles for, x86_64 or aarch64."""
    command = shlex.split(compiler) if compiler else cxx()
    return subprocess.check_output([*command, "-dumpmachine"], text=True).partition("-")[0]


def isa_flags(stem: str, machine: str) -> list[str]:
    """What csrc/cpu/isa/stem.cpp is compiled with beside FLAGS, as setup.py does."""
    rows = [line.split() for line in (CSRC / "cpu" / "isa" / "flags.txt").read_text().splitlines()]
    name = stem.removesuffix("_scan")
    return next((flags for of, isa, *flags in rows if (of, isa) == (machine, name)), [])


def sources_with(faults: Sequence[Fault], folder: Path) -> Path:
    """csrc, or a copy of it in a folder with faults."""
    if not faults:
        return CSRC
    for file in filter(Path.is_file, CSRC.rglob("*")):
        if "cuda" not in file.relative_to(CSRC).parts:
            write(folder / "csrc" / file.relative_to(CSRC), plant(file, faults))
    return folder / "csrc"


def plant(file: Path, faults: Sequence[Fault]) -> str:
    text = file.read_text()
    for fault in faults:
        if fault.file == file.relative_to(CSRC).as_posix():
            if text.count(fault.right) != 1:
                raise RuntimeError(f"{text.count(fault.right)} times in csrc/{fault.file}: {fault.right}")
            text = text.replace(fault.right, fault.wrong)
    return text


TSAN = ["-O1", "-g1", "-fsanitize=thread"]
#: For builds that need one instruction set alone.
BASELINE_ALONE = Fault("cpu/isa/choose.cpp", "#if defined(__x86_64__)", "#if 0")


def thread_sanitizer() -> Path:
    return harness("tsan", TSAN)


def thread_sanitizer_with(*faults: Fault) -> Path:
    """The baseline kernels with all of the faults."""
    return harness("tsan_planted", TSAN, faults=[BASELINE_ALONE, *faults], isas="baseline*")


#: Of the instruction sets that the kernels for AMX build on.
WITHOUT_AVX2 = Fault("cpu/isa/choose.cpp", "&kAvx512Kernels, &kAvx2Kernels}", "&kAvx512Kernels}")


def tiles() -> Path:
    """With the kernels for AMX, whose instructions the program emulates (tiles.h)."""
    flags = ["-O1", "-g0", "-DEMULATED_TILES"]
    return harness("tiles", flags, faults=[WITHOUT_AVX2], isas="amx* avx512* baseline*")


def program(name: str, flags: Sequence[str] = ("-O1",), faults: Sequence[Fault] = ()) -> Path:
    """Another program of this folder, of one file; with `faults`, of a copy of csrc."""
    folder = OUT / "-".join(
        [name, *(f.strip("-").replace("=", "_") for f in flags), *["planted"][: len(faults)]]
    )
    target, result = folder / f"{name}.o", folder / name
    csrc = sources_with(faults, folder)
    edges = [
        f"build {target}: cxx {HERE / name}.cpp\n  flags = {' '.join([*FLAGS, *flags, f'-I{csrc}'])}\n",
        f"build {result}: link {target}\n",
    ]
    compile_and_link(folder, edges, " ".join(["-pthread", *flags]), "")
    return result


def objects(name: str) -> list[Path]:
    """What harness(name, ...) compiled of csrc/cpu/isa."""
    return sorted((OUT / name / "objects").glob("isa_*.o"))


def aarch64() -> Path:
    """With the flags of a build of the package: a test reads the objects."""
    return harness("aarch64", ["-O3", "-g0"], shlex.join(aarch64_cxx()))


def missing_for_aarch64() -> str:
    """What is to be installed before aarch64() can be made and run here, or ''."""
    wanted = {
        aarch64_cxx()[0]: "g++-aarch64-linux-gnu",
        f"{AARCH64}objdump": "binutils-aarch64-linux-gnu",
        "qemu-aarch64": "qemu-user",
    }
    absent = [package for program, package in wanted.items() if not shutil.which(program)]
    return f"not installed: {', '.join(absent)}" if absent else ""


def run_on_aarch64(program: Path, *options: str) -> list[str]:
    """The command that runs a program for aarch64 here; without options, on all that qemu knows."""
    return ["qemu-aarch64", *(options or ("-cpu", "max")), "-L", "/usr/aarch64-linux-gnu", str(program)]
