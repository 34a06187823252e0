"""Compile gate: what every kernel of the CUDA library uses, on each architecture that it was built for.

Fails where a kernel spills registers or keeps a stack (a spill is a place on it), or asks for more shared
memory than a block can have, and prints what each uses. Reads the machine code that was built; needs no GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from emu.build import CUDA, find_cuda_tool

from fastrnn._ops import library

PRECISIONS = ("float", "tf32", "bfloat16", "half")  # persistent/params.h's Precision
STATIC_SHARED_LIMIT = 48 << 10  # bytes a block, on every architecture
LIBRARY = Path(library.__file__).parents[1] / "libfastrnn_cuda.so"

needs_library = pytest.mark.skipif(
    torch.version.cuda is None or os.environ.get("FASTRNN_CUDA") == "0" or find_cuda_tool("nvcc") is None,
    reason="built without CUDA kernels: torch without CUDA, FASTRNN_CUDA=0, or no nvcc",
)


class Kernel(NamedTuple):
    name: str
    registers: int
    stack: int
    shared: int


def demangled(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    return done.stdout.splitlines()


def kernels(report: str) -> list[Kernel]:
    """What cuobjdump says of the kernels of one architecture."""
    pattern = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    found = re.findall(pattern, report)
    assert len(found) == report.count(" Function ")
    out = []
    names = demangled([f[0] for f in found])
    for name, (_, registers, stack, shared, local) in zip(names, found, strict=True):
        # The persistent kernels have a Precision for the layer's type, and the exchange behind it.
        name = re.sub(
            r"\(fastrnn::cuda::Precision\)(\d), (fastrnn::cuda::\w+)",
            lambda m: f"{m[2]}, {PRECISIONS[int(m[1])]}",
            name,
        )
        short = re.sub(r"fastrnn::(cuda::)?|\(anonymous namespace\)::|void |\(.*|__nv_", "", name)
        out.append(Kernel(short, int(registers), int(stack) + int(local), int(shared)))
    return out


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[Kernel]]:
    """The library's kernels by architecture."""
    tool = find_cuda_tool("cuobjdump")
    assert tool, "cuobjdump is not installed: requirements/cuda.txt names its package"
    report = subprocess.check_output([tool, "--dump-resource-usage", LIBRARY], text=True)
    out = defaultdict(list)
    for part in re.split(r"^arch = ", report, flags=re.MULTILINE)[1:]:  # a file of one architecture
        if found := kernels(part):  # PTX has none
            out[part.split()[0]] += found
    return out


@needs_library
def test_every_architecture_is_there(compiled):
    """What the build says it was made for is what is judged here; where all are wanted, it is all."""
    said = library.build_info()["cuda_archs"].split(";")
    assert set(compiled) == {
        "sm_" + arch.removesuffix("+PTX").replace(".", "") for arch in said if not arch.endswith("-virtual")
    }
    if os.environ.get("FASTRNN_CUDA_ARCHS") == "all":  # as `make test-all` has it
        assert {"sm_80", "sm_90a"} < set(compiled)
        assert len(compiled) >= 4


@needs_library
def test_every_kernel_compiles_without_spills(compiled):
    """Protects the speed of every kernel on every architecture, and that none was left out of the library."""
    sources = "".join(f.read_text() for f in CUDA.rglob("*.cu*"))
    written = set(re.findall(r"__global__[^;{]*?(\w+_kernel)\(", sources))
    assert len(written) >= 15
    for arch, found in compiled.items():
        assert {k.name.partition("<")[0] for k in found} == written, arch
        for k in found:
            assert k.stack == 0, f"{arch}: {k}"
            assert k.shared <= STATIC_SHARED_LIMIT, f"{arch}: {k}"


@needs_library
def test_resource_table(compiled, capsys):
    """Registers of every kernel, a line a kernel and cell, a column a type: one number an architecture."""
    types = ["float", "tf32", "double", "bfloat16", "half", ""]  # the last: kernels of no type
    table = defaultdict(lambda: defaultdict(list))
    for found in compiled.values():
        for k in found:
            kernel, _, arguments = k.name.partition("<")
            arguments = arguments.rstrip(">").split(", ")
            dtype = next((a for a in arguments if a.removeprefix("__") in types), "")
            cell = [a for a in arguments if a and a != dtype]
            table[" ".join([kernel, *cell])][dtype].append(str(k.registers))
    assert all(len(v) == len(compiled) for row in table.values() for v in row.values())
    with capsys.disabled():
        print(f"\nregisters a thread, {' / '.join(compiled)}")
        print(f"{'':42s}" + "".join(f"{t:>18s}" for t in types))
        for name, row in sorted(table.items()):
            cells = (" / ".join(row.get(t, row.get(f"__{t}", ["-"]))) for t in types)
            print(f"{name:42s}" + "".join(f"{c:>18s}" for c in cells))


def test_kernel_files_include_no_torch():
    """Kernels know pointers and sizes: their files compile in seconds, and without torch."""
    contracts = [
        CUDA / "stepwise" / "kernels.h",
        CUDA / "scan" / "kernels.h",
        CUDA / "persistent" / "params.h",
    ]
    for path in (*CUDA.rglob("*.cu"), *CUDA.rglob("*.cuh"), *contracts):
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path.name


@needs_library
def test_library_loads_without_a_gpu():
    """The CUDA library was built, is loaded, and knows no Python: one file for every interpreter."""
    assert library.cuda_loaded
    layers, traced = ("rnn_forward", "rnn_backward"), ("rnn_layer", "rnn_backward_unlisted")
    for op in (*layers, *traced, "sru_forward", "sru_backward", "sru_scan"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastrnn::{op}", "CUDA")
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", LIBRARY], text=True)
    assert not re.findall(r"\b_?Py\w+", symbols)
    needed = subprocess.check_output(["readelf", "-d", LIBRARY], text=True)
    assert not re.findall(r"lib(?:torch_)?python\S*|libcudart\S*", needed)
