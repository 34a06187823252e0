"""Compile gate: every kernel to machine code for the oldest, the Hopper and the newest architecture.

Fails where a kernel spills registers or keeps a stack, or asks for more shared memory than a block can have,
and prints what each kernel uses. Needs nvcc, not a GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from emu.build import CUDA, OUT, ROOT, digest, find_nvcc

from fastrnn import _ops

NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc here")

SOURCES = sorted(CUDA.rglob("*.cu"))
FLAGS = ["-O3", "-std=c++20", f"-I{ROOT / 'csrc'}", "-Xptxas=-v"]  # as setup.py compiles them
PRECISIONS = ("float", "tf32", "bfloat16", "half")  # persistent.h's Precision
STATIC_SHARED_LIMIT = 48 << 10  # bytes a block, on every architecture


class Kernel(NamedTuple):
    name: str
    registers: int
    stack: int
    spills: int
    shared: int


def architectures() -> list[str]:
    listed = subprocess.check_output([NVCC, "--list-gpu-arch"], text=True)
    newest = max(int(n) for n in re.findall(r"compute_(\d+)", listed))
    return ["sm_80", "sm_90a", f"sm_{newest}"]


def ptxas(source, architecture: str) -> str:
    """ptxas' report; kept in build/ for as long as sources and compiler stay the same."""
    version = subprocess.check_output([NVCC, "--version"], text=True)
    stem = OUT.parent / "cubin" / f"{source.stem}-{architecture}-{digest(version, *FLAGS)}"
    log = stem.with_suffix(".log")
    if not log.exists():
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [NVCC, *FLAGS, "-cubin", f"-arch={architecture}", source, "-o", stem.with_suffix(".cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        log.write_text(done.stderr)
    return log.read_text()


def demangled(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    return done.stdout.splitlines()


def kernels(report: str) -> list[Kernel]:
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers(.*?)\n"
    )
    found = re.findall(pattern, report, re.DOTALL)
    assert len(found) == report.count("Compiling entry function")
    out = []
    names = demangled([f[0] for f in found])
    for name, (_, stack, stores, loads, registers, rest) in zip(names, found, strict=True):
        shared = re.search(r"(\d+) bytes smem", rest)
        # The persistent kernels have a Precision for the layer's type, and the exchange behind it.
        name = re.sub(
            r"\(fastrnn::cuda::Precision\)(\d), (fastrnn::cuda::\w+)",
            lambda m: f"{m[2]}, {PRECISIONS[int(m[1])]}",
            name,
        )
        short = re.sub(r"fastrnn::(cuda::)?|\(anonymous namespace\)::|void |\(.*|__nv_", "", name)
        spills = int(stores) + int(loads)
        out.append(Kernel(short, int(registers), int(stack), spills, int(shared[1]) if shared else 0))
    return out


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], list[Kernel]]:
    what = [(s, arch) for s in SOURCES for arch in architectures()]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        reports = list(threads.map(lambda w: ptxas(*w), what))
    return {(s.name, arch): kernels(r) for (s, arch), r in zip(what, reports, strict=True)}


@needs_nvcc
def test_every_kernel_compiles_without_spills(compiled):
    assert compiled
    # persistent.cu chooses among the kernels of its neighbours, and has none.
    assert {source for (source, _), found in compiled.items() if not found} == {"persistent.cu"}
    for (source, arch), found in compiled.items():
        for k in found:
            assert k.spills == 0, f"{source} {arch}: {k}"
            assert k.stack == 0, f"{source} {arch}: {k}"
            assert k.shared <= STATIC_SHARED_LIMIT, f"{source} {arch}: {k}"


@needs_nvcc
def test_resource_table(compiled, capsys):
    """Registers of every kernel, a line a kernel and cell, a column a type: one number an architecture."""
    types = ["float", "tf32", "double", "bfloat16", "half", ""]  # the last: kernels of no type
    table = defaultdict(lambda: defaultdict(list))
    for found in compiled.values():
        for k in found:
            kernel, _, arguments = k.name.partition("<")
            arguments = arguments.rstrip(">").split(", ")
            dtype = next((a for a in arguments if a.removeprefix("__") in types), arguments[-1])
            cell = [a for a in arguments if a != dtype]
            table[" ".join([kernel, *cell])][dtype].append(str(k.registers))
    assert all(len(v) == len(architectures()) for row in table.values() for v in row.values())
    with capsys.disabled():
        print(f"\nregisters a thread, {' / '.join(architectures())}")
        print(f"{'':42s}" + "".join(f"{t:>16s}" for t in types))
        for name, row in sorted(table.items()):
            cells = (" / ".join(row.get(t, row.get(f"__{t}", ["-"]))) for t in types)
            print(f"{name:42s}" + "".join(f"{c:>16s}" for c in cells))


def test_kernel_files_include_no_torch():
    """Kernels know pointers and sizes: their files compile in seconds, and without torch."""
    contracts = [CUDA / "stepwise.h", CUDA / "scan.h", *CUDA.glob("persistent/*.h")]
    for path in (*CUDA.rglob("*.cu"), *CUDA.rglob("*.cuh"), *contracts):
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path.name


@needs_nvcc
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
@pytest.mark.skipif(
    os.environ.get("FASTRNN_CUDA") == "0", reason="built without CUDA kernels: FASTRNN_CUDA=0"
)
def test_library_loads_without_a_gpu():
    """The CUDA library was built, is loaded, and knows no Python: one file for every interpreter."""
    assert _ops.cuda_loaded
    layers = ("rnn_forward", "rnn_backward", "rnn_masked_forward", "rnn_masked_backward")
    for op in (*layers, "sru_forward", "sru_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastrnn::{op}", "CUDA")
    library = Path(_ops.__file__).with_name("libfastrnn_cuda.so")
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    assert not re.findall(r"\b_?Py\w+", symbols)
    needed = subprocess.check_output(["readelf", "-d", library], text=True)
    assert not re.findall(r"lib(?:torch_)?python\S*|libcudart\S*", needed)
