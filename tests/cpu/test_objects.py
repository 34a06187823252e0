"""What the compiler made of the tiles: their accumulators stay in registers.

A tile whose inner loop goes to the stack computes the same numbers at half the speed, and nothing else would
show it: a compiler does that where a loop asks for one register too many. So the library itself is read.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

import fastrnn

LIBRARY = Path(fastrnn.__file__).with_name("libfastrnn_cpu.so")

#: Registers by which a kernel's instruction set is known, and its tiles that matter: rows by vectors.
REGISTER = {"avx512": "%zmm", "avx2": "%ymm", "baseline": "%xmm"}
TILES = {
    ("avx512", "product"): [(6, 4), (5, 4), (4, 4), (8, 3), (7, 3), (6, 3), (1, 4)],
    ("avx512", "transposed"): [(6, 4), (5, 4)],
    ("avx2", "product"): [(6, 2), (5, 2), (4, 2), (4, 3), (3, 3), (1, 2)],
    ("avx2", "transposed"): [(4, 3), (4, 2)],
    ("baseline", "product"): [(6, 2), (5, 2), (4, 2)],
}
MULTIPLIES = re.compile(r"v?mulps\b|vfn?madd\w+ps\b|vdpbf16ps\b")

Code = list[tuple[int, str]]  # address, instruction


def functions(text: str) -> list[tuple[str, Code]]:
    """Names and instructions of a disassembly by objdump."""
    found: list[tuple[str, Code]] = []
    for line in text.splitlines():
        if name := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            found.append((name.group(1), []))
        elif found and (instruction := re.match(r"^\s+([0-9a-f]+):\s+(\S.*)$", line)):
            found[-1][1].append((int(instruction.group(1), 16), instruction.group(2)))
    return found


def innermost_loops(code: Code) -> list[list[str]]:
    """Instructions of the loops, jumps backwards, that hold no other loop."""
    place = {address: i for i, (address, _) in enumerate(code)}
    spans = []
    for i, (_, instruction) in enumerate(code):
        jump = re.match(r"j\w+\s+([0-9a-f]+)\b", instruction)
        if jump and place.get(int(jump.group(1), 16), i + 1) <= i:
            spans.append((place[int(jump.group(1), 16)], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[instruction for _, instruction in code[begin : end + 1]] for begin, end in inner]


def main_loop(code: Code) -> list[str]:
    """The innermost loop that multiplies most; [] without any."""
    return max(innermost_loops(code), key=lambda loop: sum(map(multiplies, loop)), default=[])


def multiplies(instruction: str) -> bool:
    return MULTIPLIES.match(instruction) is not None


def stack_accesses(code: Code, loop: list[str]) -> list[str]:
    framed = any(re.match(r"mov\s+%rsp,%rbp", instruction) for _, instruction in code)
    stack = re.compile(r"\(%rsp|\(%rbp" if framed else r"\(%rsp")
    return [i for i in loop if stack.search(i) and not i.startswith("prefetch")]


def _read(tool: str, *arguments: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} (binutils) is not installed")
    return subprocess.run([path, *arguments, str(LIBRARY)], capture_output=True, text=True, check=True).stdout


@cache
def symbols() -> dict[str, list[tuple[int, int]]]:
    """Address and size of the tiles' kernels by name: one for each instruction set."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"reads the instructions of x86-64, this is {platform.machine()}")
    text = _read("nm", "-C", "-S")
    found: dict[str, list[tuple[int, int]]] = {}
    for line in text.splitlines():
        kernel = re.match(r"([0-9a-f]+) ([0-9a-f]+) \w .*?(\w+_kernel<float, \d+, \d+>)\(", line)
        if kernel:
            found.setdefault(kernel.group(3), []).append((int(kernel.group(1), 16), int(kernel.group(2), 16)))
    if "__asan_init" in text:
        pytest.skip("built with a sanitizer, which keeps everything on the stack")
    if not found:
        pytest.skip("the library is stripped of its local symbols")
    return found


@cache
def kernels(isa: str, kind: str, rows: int, vectors: int) -> tuple[Code, ...]:
    """A tile's kernel in the objects of an instruction set: by the widest registers it multiplies with."""
    chosen = []
    for address, size in symbols().get(f"{kind}_kernel<float, {rows}, {vectors}>", []):
        span = (f"--start-address={address}", f"--stop-address={address + size}")
        ((_, code),) = functions(_read("objdump", "-d", "-w", "--no-show-raw-insn", *span))
        loop = " ".join(i for i in main_loop(code) if multiplies(i))
        widest = next((k for k, register in REGISTER.items() if register in loop), None)
        if widest == isa:
            chosen.append(code)
    return tuple(chosen)


@pytest.mark.parametrize(
    ("isa", "kind", "rows", "vectors"),
    [(isa, kind, *tile) for (isa, kind), tiles in TILES.items() for tile in tiles],
)
def test_inner_loops_stay_off_the_stack(isa, kind, rows, vectors):
    found = kernels(isa, kind, rows, vectors)
    assert len(found) == 1, f"{len(found)} {kind} kernels {rows}x{vectors} for {isa}"
    loop = main_loop(found[0])
    assert sum(map(multiplies, loop)) >= rows * vectors
    assert stack_accesses(found[0], loop) == []


def test_a_spill_is_seen():
    """The reading itself, on a loop of each kind."""
    text = """
0000000000000010 <void f()>:
  10:\tvxorps %ymm0,%ymm0,%ymm0
  14:\tvfmadd231ps %ymm1,%ymm2,%ymm0
  18:\tvmovaps %ymm0,-0x28(%rsp)
  1c:\tmovaps 0x8(%rbp),%xmm1
  20:\tjne    14 <void f()+0x4>
  24:\tadd    $0x1,%rax
  28:\tjne    10 <void f()>
0000000000000030 <void g()>:
  30:\tmov    %rsp,%rbp
  34:\tmulps  %xmm1,%xmm2
  38:\tprefetcht0 0x0(%rsp)
  3c:\tmovaps 0x8(%rbp),%xmm1
  40:\tjne    34 <void g()+0x4>
"""
    (f_name, f), (g_name, g) = functions(text)
    assert (f_name, g_name) == ("void f()", "void g()")
    assert len(innermost_loops(f)) == 1
    assert sum(map(multiplies, main_loop(f))) == 1
    assert stack_accesses(f, main_loop(f)) == ["vmovaps %ymm0,-0x28(%rsp)"]  # rbp is no frame there
    assert sum(map(multiplies, main_loop(g))) == 1
    assert stack_accesses(g, main_loop(g)) == ["movaps 0x8(%rbp),%xmm1"]
