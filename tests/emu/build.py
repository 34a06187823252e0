"""Compiles csrc/cuda for the emulator, by ninja into build/emu: what did not change is not compiled again."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from toolchain import cxx, is_clang

TORCH = Path(torch.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
EMU = ROOT / "tests" / "emu"
TWINS = EMU / "twins"  # headers that stand in for those of csrc of the same names
CUDA = ROOT / "csrc" / "cuda"
OUT = ROOT / "build" / "emu"

NAMESPACE = "fastrnn_emulated"


class Fault(NamedTuple):
    """An expression that occurs once in a file of csrc/cuda, or once behind a text there, and a wrong one."""

    file: str  # relative to csrc/cuda
    right: str
    wrong: str
    behind: str = ""  # the first occurrence after this text, which occurs once


FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fno-strict-aliasing", "-w"]
# Several of these libraries may be in one process: their state must not be shared.
FLAGS += ["-fvisibility=hidden"]
GCC_FLAGS = ["-fno-gnu-unique"]  # clang does not know it, and makes no such symbols
FLAGS += [
    f"-DFASTRNN_NAMESPACE={NAMESPACE}",
    "-DFASTRNN_WIDE_COLUMNS=24",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]

RULES = """\
rule cxx
  command = {cxx} $flags -MMD -MF $out.d -x c++ -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} {before} $in -o $out {after}
"""


def library(name: str = "plain", *, faults: Sequence[Fault] = (), race: bool = False) -> Path:
    """The ops over the emulator, as a library for torch.ops.load_library.

    With `race` the kernels run under the happens-before check. `faults` are planted all at once, each behind
    a switch that the op `configure` sets (number 1 is the first one).
    """
    own = [ROOT / "csrc" / "plan" / f"{plan}.cpp" for plan in ("cuda", "table", "geometry", "trust")]
    own += [ROOT / "csrc" / "ops" / "schema.cpp", EMU / "emu_ops.cpp", EMU / "emu_persistent.cpp"]
    sources = [*sorted(CUDA.rglob("*.cpp")), *sorted(CUDA.rglob("*.cu")), *own]
    folder = OUT / name
    copy = folder / "source" / "cuda"
    include = [f"-I{p}" for p in (TWINS, copy.parent, ROOT / "csrc", EMU, TORCH / "include")]
    edges, objects = [], []
    for source in sources:
        flags = emulator_flags() + ["-DEMU_RACE"] * race
        if race and source.suffix == ".cu":
            # For the calls it puts in; emu_race_hooks.inl defines them, libtsan is not linked.
            flags += ["-fsanitize=thread"]
        if faults and source.is_relative_to(CUDA):
            # Includes look in the copy first, so the whole of csrc/cuda goes along.
            source = copy / source.relative_to(CUDA)
        target = folder / "objects" / f"{'_'.join(source.parts[-3:])}.o"
        edges.append(f"build {target}: cxx {source}\n  flags = {' '.join(flags + include)}\n")
        objects.append(str(target))
    if faults:
        for fault in faults:
            if not (CUDA / fault.file).is_file():
                raise RuntimeError(f"a fault in csrc/cuda/{fault.file}, which is not there")
        for file in filter(Path.is_file, CUDA.rglob("*")):
            write(copy / file.relative_to(CUDA), plant(file, faults))
    for object_ in (folder / "objects").glob("*.o"):
        if str(object_) not in objects:  # its source has another name now
            object_.unlink()
    result = folder / "libfastrnn_emulated.so"
    edges.append(f"build {result}: link {' '.join(objects)}\n")
    compile_and_link(folder, edges, f"-shared -L{TORCH / 'lib'} -Wl,-z,defs", "-ltorch_cpu -ltorch")
    return result


def stages() -> Path:
    """library() with emu_stages.cu in place of the stepwise tier's kernels; not in one process with it."""
    plain, folder = library().parent, OUT / "stages"
    target, result = folder / "emu_stages.o", folder / "libfastrnn_emulated.so"
    include = " ".join(f"-I{p}" for p in (TWINS, ROOT / "csrc", EMU, EMU.parent / "cells", TORCH / "include"))
    replaced = "cuda_stepwise_kernels.cu.o"
    objects = [str(o) for o in sorted((plain / "objects").glob("*.o")) if o.name != replaced]
    edges = [
        f"build {target}: cxx {EMU / 'emu_stages.cu'}\n  flags = {' '.join(emulator_flags())} {include}\n",
        f"build {result}: link {target} {' '.join(objects)}\n",
    ]
    compile_and_link(folder, edges, f"-shared -L{TORCH / 'lib'} -Wl,-z,defs", "-ltorch_cpu -ltorch")
    return result


def host(faults: Sequence[Fault]) -> Path:
    """library() with faults in source files of the host's, of which those alone are compiled again."""
    plain, folder = library().parent, OUT / "host"
    include = " ".join(f"-I{p}" for p in (TWINS, ROOT / "csrc", EMU, TORCH / "include"))
    edges, objects = [], {f"{'_'.join((CUDA / f.file).parts[-3:])}.o": f.file for f in faults}
    for object_, file in objects.items():
        copy = folder / "source" / file
        write(copy, plant(CUDA / file, faults))
        edges.append(
            f"build {folder / object_}: cxx {copy}\n  flags = {' '.join(emulator_flags())} {include}\n"
        )
    kept = [str(o) for o in sorted((plain / "objects").glob("*.o")) if o.name not in objects]
    result = folder / "libfastrnn_emulated.so"
    edges.append(f"build {result}: link {' '.join([str(folder / o) for o in objects] + kept)}\n")
    compile_and_link(folder, edges, f"-shared -L{TORCH / 'lib'} -Wl,-z,defs", "-ltorch_cpu -ltorch")
    return result


def selftest() -> Path:
    """The program of selftest.cpp, under the race check."""
    folder = OUT / "selftest"
    target, result = folder / "selftest.o", folder / "selftest"
    flags = f"-std=c++20 -O1 -g1 -fPIE -w -DEMU_RACE -fsanitize=thread -I{EMU}"
    edges = [
        f"build {target}: cxx {EMU / 'selftest.cpp'}\n  flags = {flags}\n",
        f"build {result}: link {target}\n",
    ]
    compile_and_link(folder, edges, "-pie", "")
    return result


def emulator_flags() -> list[str]:
    return FLAGS if is_clang(cxx()) else FLAGS + GCC_FLAGS


def compile_and_link(
    folder: Path, edges: list[str], before: str, after: str, compiler: str | None = None
) -> None:
    rules = RULES.format(cxx=compiler or shlex.join(cxx()), before=before, after=after)
    ninja = shutil.which("ninja") or str(Path(sys.executable).with_name("ninja"))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:  # tests in other processes ask for the same library
        fcntl.flock(lock, fcntl.LOCK_EX)
        write(folder / "build.ninja", rules + "".join(edges))
        done = subprocess.run([ninja, "-C", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{folder} does not compile:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")


def plant(file: Path, faults: Sequence[Fault]) -> str:
    text = file.read_text()
    for number, fault in enumerate(faults, 1):
        if fault.file == str(file.relative_to(CUDA)):
            once = fault.behind or fault.right
            if text.count(once) != 1:
                raise RuntimeError(f"{text.count(once)} times in {file.name}: {once}")
            before, _, after = text.partition(fault.behind) if fault.behind else ("", "", text)
            if fault.right not in after:
                raise RuntimeError(f"not in {file.name} behind {fault.behind}: {fault.right}")
            switch = f"(emu::opt.fault == {number} ? ({fault.wrong}) : ({fault.right}))"
            text = before + fault.behind + after.replace(fault.right, switch, 1)
    return text


def write(path: Path, text: str) -> None:
    """Only where it differs: ninja goes by the time of the change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def find_cuda_tool(name: str) -> Path | None:
    """nvcc or what lies beside it: CUDA_HOME's, the pip wheel's beside torch, the PATH's, the system's; of
    some tools triton has copies, which come with every CUDA build of torch."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [Path(home)] if home else []
    if torch.version.cuda:
        folders.append(TORCH.parent / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}")
    on_path = shutil.which(name)
    folders += [Path(on_path).resolve().parents[1]] if on_path else []
    folders.append(Path("/usr/local/cuda"))
    folders.append(TORCH.parent / "triton" / "backends" / "nvidia")
    return next((f / "bin" / name for f in folders if (f / "bin" / name).exists()), None)


def digest(*parts: str) -> str:
    """Of everything that the kernels' sources hold, and of `parts`."""
    folders = [CUDA, ROOT / "csrc" / "cells", ROOT / "csrc" / "params", ROOT / "csrc" / "plan"]
    files = [path for folder in folders for path in folder.rglob("*")]
    sources = sorted(p for p in files if p.suffix in (".cu", ".cuh", ".h"))
    return hashlib.sha256("\0".join([*(p.read_text() for p in sources), *parts]).encode()).hexdigest()[:16]
