"""Compiles the runtime and the programs of this folder into build/stream, by ninja, without setup.py: for
sanitizers, for other compilers, for aarch64. And runs programs on the library that the package ships."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from emu.build import ROOT, compile_and_link
from harness.build import isa_flags
from toolchain import cc, cxx, is_clang

import fastrnn

CSRC = ROOT / "csrc"
OUT = ROOT / "build" / "stream"
PROGRAMS = Path(__file__).parent / "programs"
INCLUDE = fastrnn.get_include()
#: As setup.py compiles it.
FLAGS = [
    "-std=c++20",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-fPIC",
]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", f"-I{CSRC}", f"-I{INCLUDE}"]
FLAGS += [f'-DFASTRNN_VERSION=\\"{fastrnn.__version__}\\"']
GCC_FLAGS = ["-Wno-maybe-uninitialized"]

ASAN = [
    "-O1",
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
]
TSAN = ["-O1", "-g1", "-fsanitize=thread"]


def program(
    name: str,
    variant: str,
    flags: Sequence[str] = ("-O3",),
    compiler: str | None = None,
    machine: str = platform.machine(),
) -> Path:
    """A program of this folder with the runtime's sources in it, compiled with these flags."""
    compiler = compiler or shlex.join(cxx())
    clang = is_clang(shlex.split(compiler))
    folder = OUT / variant
    isas = [
        "baseline",
        *(["neon"] if machine == "aarch64" else ["avx2", "avx512"] if machine == "x86_64" else []),
    ]
    sources = [*sorted((CSRC / "stream").glob("*.cpp")), CSRC / "stream" / "isa" / "choose.cpp"]
    sources += [CSRC / "cpu" / "isa" / "processor.cpp"]
    sources += [CSRC / "stream" / "isa" / f"{isa}.cpp" for isa in isas]
    edges, objects = [], []
    for source in sources:
        own = [*FLAGS, *([] if clang else GCC_FLAGS), *flags]
        own += isa_flags(source.stem, machine) if source.parent.name == "isa" else []
        objects.append(str(folder / "objects" / f"{source.parent.name}_{source.name}.o"))
        edges.append(f"build {objects[-1]}: cxx {source}\n  flags = {' '.join(own)}\n")
    (source,) = PROGRAMS.glob(f"{name}.*")
    target, result = folder / f"{name}.o", folder / name
    # As C++: the rule of the package's tests says so. C has a test of its own.
    edges.append(f"build {target}: cxx {source}\n  flags = -std=c++20 -w -I{INCLUDE} {' '.join(flags)}\n")
    edges.append(f"build {result}: link {target} {' '.join(objects)}\n")
    compile_and_link(folder / f"ninja-{name}", edges, " ".join(["-pthread", *flags]), "", compiler)
    return result


def shipped(name: str, folder: Path, kind: str = "shared") -> Path:
    """A program of this folder on the library that the package ships, by the compiler of its language."""
    (source,) = PROGRAMS.glob(f"{name}.*")
    result, library = folder / f"{name}-{kind}", Path(fastrnn.get_library(kind))
    plain_c = source.suffix == ".c"
    compiler = [*cc(), "-std=c99", "-pedantic"] if plain_c else cxx()
    if not plain_c:
        compiler += ["-std=c++17"]  # what a user has; the header asks for no more
    link = [str(library), f"-Wl,-rpath,{library.parent}", *(["-lstdc++", "-lm"] if kind == "static" else [])]
    command = [
        *compiler,
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{INCLUDE}",
        source,
        "-o",
        result,
        *link,
        "-pthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return result


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess:
    """A program's end; what it says is text."""
    words = list(map(str, command))
    return subprocess.run(words, capture_output=True, text=True, timeout=600, env=os.environ | environment)
