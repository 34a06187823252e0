"""What the compiler made of the tiles: accumulators stay in registers, and so does the right operand's row.

A tile whose inner loop goes to the stack computes the same numbers at half the speed, and nothing else would
show it: a compiler does that where a loop asks for one register too many. One that loads its operand once for
each row of the tile, as a compiler may, waits for the loads on a core that does one of 512 bits a cycle (on a
Zen 4 1.2 times as long). So the library itself is read.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from harness.disassembly import Instruction, functions, inner_loops, parse

import fastrnn

LIBRARY = Path(fastrnn.__file__).with_name("libfastrnn_cpu.so")

#: Registers by which a kernel's instruction set is known, and its tiles that matter: rows by vectors.
REGISTER = {"avx512": "%zmm", "avx2": "%ymm", "baseline": "%xmm"}
TILES = {
    ("avx512", "product"): [(6, 4), (5, 4), (4, 4), (3, 4), (2, 4), (8, 3), (7, 3), (6, 3), (1, 4)],
    ("avx512", "transposed"): [(6, 4), (5, 4)],
    ("avx512", "dot"): [(6, 4), (5, 4), (8, 3), (6, 3), (1, 4)],
    ("avx512", "dot_transposed"): [(6, 4), (5, 4)],
    ("avx512", "lanes"): [(8, 2), (8, 1)],  # rows of a weight by vectors
    ("avx2", "lanes"): [(4, 2)],
    ("avx2", "product"): [(6, 2), (5, 2), (4, 2), (4, 3), (3, 3), (1, 2)],
    ("avx2", "transposed"): [(4, 3), (4, 2)],
    ("avx2", "row"): [(4, 2), (4, 3)],  # panels of one row by vectors
    ("baseline", "product"): [(6, 2), (5, 2), (4, 2)],
    ("baseline", "transposed"): [(6, 2), (5, 2), (4, 2)],
}
#: Every tile there is (tile.inl's kAccumulators and kMaxRows), but the one that 16 registers do not hold.
EVERY_TILE = {
    isa: [(m, v) for v in (1, 2, 3, 4) for m in range(1, min(accumulators // v, 8) + 1)]
    for isa, accumulators in (("avx512", 24), ("avx2", 12))
}
EVERY_TILE["avx2"].remove((3, 4))
LOADS = re.compile(r"v?mov(?:[ua]p[sd]|dq\w+) [^%]*\(")
MULTIPLIES = re.compile(r"v?mulps\b|vfn?madd\w+ps\b|vdpbf16ps\b")


def main_loop(body: list[Instruction]) -> list[Instruction]:
    """The innermost loop that multiplies most; [] without any."""
    return max(inner_loops(body), key=lambda loop: sum(map(multiplies, loop)), default=[])


def multiplies(instruction: Instruction) -> bool:
    return MULTIPLIES.match(instruction.name) is not None


def vectors_read(loop: list[Instruction]) -> int:
    """Loads of whole vectors, by themselves or as a factor; a broadcast is none."""
    factors = [i for i in loop if multiplies(i) and "(" in i.operands and "{1to" not in i.operands]
    return len(factors) + sum(LOADS.match(str(i)) is not None for i in loop)


def stack_accesses(body: list[Instruction], loop: list[Instruction]) -> list[str]:
    framed = any(i.name == "mov" and i.operands.startswith("%rsp,%rbp") for i in body)
    stack = re.compile(r"\(%rsp|\(%rbp" if framed else r"\(%rsp")
    return [str(i) for i in loop if stack.search(i.operands) and not i.name.startswith("prefetch")]


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} (binutils) is not installed")
    return path


@cache
def symbols() -> dict[str, list[tuple[int, int]]]:
    """Address and size of the tiles' kernels by name: one for each instruction set."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"reads the instructions of x86-64, this is {platform.machine()}")
    command = [_tool("nm"), "-C", "-S", str(LIBRARY)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[tuple[int, int]]] = {}
    for line in text.splitlines():
        names = r"\w+_kernel<float, \d+(?:, \d+)?>|dot_\w+<\d+, \d+>"
        kernel = re.match(rf"([0-9a-f]+) ([0-9a-f]+) \w .*?({names})\(", line)
        if kernel:
            found.setdefault(kernel.group(3), []).append((int(kernel.group(1), 16), int(kernel.group(2), 16)))
    if "__asan_init" in text:
        pytest.skip("built with a sanitizer, which keeps everything on the stack")
    if not found:
        pytest.skip("the library is stripped of its local symbols")
    return found


@cache
def kernels(isa: str, kind: str, rows: int, vectors: int) -> tuple[list[Instruction], ...]:
    """A tile's kernel in the objects of an instruction set: by the widest registers it multiplies with."""
    chosen = []
    name = f"{kind}_kernel<float, {rows}, {vectors}>"
    if kind.startswith("dot"):  # of bfloat16
        name = f"{'dot_kernel' if kind == 'dot' else kind}<{rows}, {vectors}>"
    if kind == "lanes":
        name = f"lanes_kernel<float, {vectors}>"
    if kind == "row":
        name = f"row_kernel<float, {vectors}, 4>"
    for address, size in symbols().get(name, []):
        span = (f"--start-address={address}", f"--stop-address={address + size}")
        (body,) = functions(LIBRARY, _tool("objdump"), span).values()
        loop = " ".join(i.operands for i in main_loop(body) if multiplies(i))
        widest = next((k for k, register in REGISTER.items() if register in loop), None)
        if widest == isa:
            chosen.append(body)
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


@pytest.mark.parametrize(
    ("isa", "kind"),
    [(isa, kind) for isa, kind in TILES if isa in EVERY_TILE and kind not in ("row", "lanes")],
)
def test_inner_loops_load_an_operand_once(isa, kind):
    """Of every tile: of three rows and four vectors one made twelve loads a term, where four do."""
    found = {}
    for rows, vectors in EVERY_TILE[isa]:
        (body,) = kernels(isa, kind, rows, vectors)
        loop = main_loop(body)
        terms, left = divmod(sum(map(multiplies, loop)), rows * vectors)
        assert terms > 0
        assert left == 0
        found[rows, vectors] = vectors_read(loop) / terms
    # The loop is over some terms, and may load a vector or two for the next.
    more = {tile: n for tile, n in found.items() if not tile[1] <= n < tile[1] + 0.5}
    assert more == {}, "loads of the right operand a term, by rows and vectors"


def test_loads_are_counted():
    """The reading itself: what loads, what multiplies from memory, and neither stores nor broadcasts."""
    text = """
0000000000000010 <void f()>:
  10:\tvmovups 0x40(%rax),%zmm1
  14:\tvmovups (%rax),%zmm2
  18:\tvfmadd231ps 0x80(%rax),%zmm1,%zmm3
  1c:\tvfmadd231ps (%rdx){1to16},%zmm1,%zmm4
  20:\tvbroadcastss 0x4(%rdx),%zmm5
  24:\tvmovups %zmm3,0x40(%rcx)
  28:\tvmovaps %zmm3,%zmm6
  2c:\tmov    0x8(%rax),%rbx
  30:\tjne    10 <void f()>
"""
    (body,) = parse(text).values()
    assert vectors_read(main_loop(body)) == 3


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
    found = parse(text)
    assert list(found) == ["void f()", "void g()"]
    f, g = found.values()
    assert len(inner_loops(f)) == 1
    assert sum(map(multiplies, main_loop(f))) == 1
    assert stack_accesses(f, main_loop(f)) == ["vmovaps %ymm0,-0x28(%rsp)"]  # rbp is no frame there
    assert sum(map(multiplies, main_loop(g))) == 1
    assert stack_accesses(g, main_loop(g)) == ["movaps 0x8(%rbp),%xmm1"]
