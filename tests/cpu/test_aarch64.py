"""The kernels on Arm, by a cross compiler and an emulated processor: `make test-aarch64`.

Speed cannot be measured so. What decides it can be read: the instructions of the tiles' inner loops.
"""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import layer_cases
import pytest
import sru_cases
import stage_cases
import torch
from harness import build, disassembly
from harness.kernels import Kernels
from layer_cases import Case
from selection import thorough
from toolchain import aarch64_cxx

pytestmark = [
    thorough,
    pytest.mark.skipif(bool(build.missing_for_aarch64()), reason=build.missing_for_aarch64()),
]
ISAS = ("neon_bf16", "neon", "baseline")


@pytest.fixture(scope="module")
def program():
    return build.aarch64()


@pytest.fixture(scope="module")
def kernels(program):
    with Kernels(build.run_on_aarch64(program)) as running:
        yield running


def drawn(count: int = 60) -> list[Case]:
    """Layers at random: every cell, dtype, kind of rows and way of saving takes its turn."""
    draw = random.Random(15)
    cases = []
    for n in range(count):
        cell, dtype = layer_cases.CELLS[n % 4], layer_cases.DTYPES[n // 4 % 4]
        T, B = draw.choice((1, 2, 3, 7, 20)), draw.choice((1, 2, 5, 6, 13, 30))
        I, H = draw.randint(1, 40), draw.randint(1, 90)  # noqa: E741  the letters of the shapes everywhere
        if cell == "rnn_relu" and dtype in (torch.bfloat16, torch.float16):
            I, H = min(I, 5), min(max(H, 5), 7)  # noqa: E741  see tests/sanitize.py
        elif dtype in (torch.bfloat16, torch.float16):
            H = max(H, 8)
        options = {"D": draw.choice((1, 2)), "save": draw.choice(("gates", "recompute"))}
        if cell == "lstm" and n % 3 == 0:
            options["P"] = draw.randint(1, H)
        rows = n % 5
        if rows == 1:
            options["sizes"] = tuple(sorted((draw.randint(1, B) for _ in range(T)), reverse=True))
        if rows in (2, 4):
            options["lengths"] = tuple(draw.randint(0, T) for _ in range(4))
        if rows in (3, 4):
            options["reset"] = "some"
        cases.append(Case(cell, T, B, I, H, dtype=dtype, bias=bool(n % 7), **options))
    return cases


@pytest.mark.parametrize("isa", ISAS)
def test_layers(kernels, isa):
    """Outputs and every gradient of every cell against values computed here, on one worker and on several."""
    kernels.isa = isa
    plans = [(1,), (3, 1, 3), (4, 2, 2, 2), (4,)]
    for i, case in enumerate([*drawn(), *layer_cases.grid()[::4], *layer_cases.masked_grid()[::4]]):
        layer_cases.check(kernels.plan(*plans[i % 4]), case)


@pytest.mark.parametrize("isa", ISAS)
def test_variants(kernels, isa):
    """The cells' variants, in the compute type of either width."""
    kernels.isa = isa
    plans = [(1,), (3, 1, 3), (4, 2, 2, 2), (4,)]
    for i, case in enumerate(stage_cases.cases()):
        single = {"dtype": torch.float32, "tolerance": 2e-5} if i % 3 == 0 else {}
        stage_cases.check(kernels.plan(*plans[i % 4]), case, **single)


@pytest.mark.parametrize("isa", ISAS)
def test_scan(kernels, isa):
    """The SRU's recurrence, both passes."""
    kernels.isa = isa
    for i, case in enumerate(sru_cases.grid()[::2]):
        sru_cases.check(kernels.plan(1 + i % 3), case)


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["-cpu", "max"], [*ISAS]), (["-cpu", "cortex-a72"], ["neon", "baseline"])],
    ids=["max", "cortex-a72"],
)
def test_the_processor_says_what_runs(program, options, expected):
    """Chosen when the program starts; and what a plain processor is given runs there."""
    with Kernels(build.run_on_aarch64(program, *options)) as running:
        assert running.isas == expected
        for isa in expected:
            running.isa = isa
            layer_cases.check(running, Case("lstm", dtype=torch.bfloat16, H=9))
            layer_cases.check(running, Case("gru", dtype=torch.float16, H=9))


def test_tiles_of_bfloat16(tmp_path):
    """Every tile of BFMMLA and every way of packing for it, bit for bit what BFDOT says of one sum at a time,
    whatever lies beside the operands."""
    source, program = Path(build.__file__).with_name("bf16_tiles.cpp"), tmp_path / "tiles"
    flags = [*build.FLAGS, "-O2", "-Wno-unused-function", f"-I{build.CSRC}"]
    subprocess.run([*aarch64_cxx(), *flags, source, "-o", program], check=True)
    done = subprocess.run(build.run_on_aarch64(program), capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr


APPLE = """
#include <cstring>
#include <cstddef>
#include <cstdio>
static int answer, error;
static const char* asked = "";
int sysctlbyname(const char* name, void* value, size_t* size, void*, size_t) {
  asked = name;
  if (!error && *size == sizeof(int)) std::memcpy(value, &answer, sizeof answer);
  return error;
}
#include "cpu/isa/arm.h"
int main() {
  answer = 1, error = 0;
  if (!fastrnn::has_bf16_dot() || std::strcmp(asked, "hw.optional.arm.FEAT_BF16")) return 1;
  answer = 0;
  if (fastrnn::has_bf16_dot()) return 2;
  answer = 1, error = -1;  // a name that an older system does not know
  return fastrnn::has_bf16_dot() ? 3 : 0;
}
"""


def test_macos_is_asked_in_its_own_way(tmp_path):
    """By sysctlbyname; what it does not know is not there."""
    (tmp_path / "sys").mkdir()
    (tmp_path / "sys" / "sysctl.h").write_text("")
    (tmp_path / "apple.cpp").write_text(APPLE)
    compiler = [f"{build.AARCH64}g++", "-D__APPLE__", "-U__linux__", "-std=c++20", "-static"]
    where = [f"-I{tmp_path}", f"-I{build.CSRC}", tmp_path / "apple.cpp", "-o", tmp_path / "apple"]
    subprocess.run([*compiler, *where], check=True)
    assert subprocess.run(["qemu-aarch64", tmp_path / "apple"]).returncode == 0


# ---- the instructions ---------------------------------------------------------------------------


def tiles(program) -> dict[tuple, list[disassembly.Instruction]]:
    """The loop that does the most multiply-adds of each kernel of a tile: (kernel, type, rows, vectors)."""
    assert program
    (path,) = (p for p in build.objects("aarch64") if p.name == "isa_neon.cpp.o")
    found = {}
    kernel = re.compile(r"(neon_product|neon_transposed)<(\w+), (\d), (\d)|(dot_\w+)<(\d), (\d)>\(")
    for name, body in disassembly.functions(path, f"{build.AARCH64}objdump").items():
        if match := kernel.search(name):
            plain, dtype, rows, vectors, dot, *dot_shape = match.groups()
            key = (dot, "bfloat16", *dot_shape) if dot else (plain, dtype, rows, vectors)
            loops = disassembly.inner_loops(body)
            found[(*key[:2], *map(int, key[2:]))] = max(loops, key=lambda loop: len(multiply_adds(loop)))
    return found


def multiply_adds(loop):
    return [i for i in loop if i.name in ("fmla", "bfmmla")]


def of_a_step(kernel: str, rows: int, vectors: int) -> tuple[int, int]:
    """Multiply-adds and loads of a step of a tile: a term by element, or four terms two rows by two."""
    if kernel.startswith("dot"):
        pairs = (rows + 1) // 2
        return pairs * 2 * vectors, pairs + 2 * vectors
    return rows * vectors, rows + vectors


def test_inner_loops(program):
    """Multiply-adds by element, of bfloat16 two rows by two columns; nothing on the stack, no copies, and no
    more loads than the tile has rows and vectors: the pipes for arithmetic are the limit, on two of them
    (Cortex-A76, Neoverse N1) and on four."""
    found = tiles(program)
    for dtype in ("float", "double"):
        assert ("neon_product", dtype, 6, 4) in found  # LSTM
        assert ("neon_product", dtype, 8, 3) in found  # GRU
        assert ("neon_product", dtype, 8, 2) in found
    assert ("neon_transposed", "float", 4, 4) in found
    for rows, vectors in ((6, 4), (8, 3), (8, 2)):
        assert ("dot_kernel", "bfloat16", rows, vectors) in found
    assert ("dot_transposed", "bfloat16", 4, 4) in found
    for (kernel, dtype, rows, vectors), loop in found.items():
        what = f"{kernel}<{dtype}, {rows}, {vectors}>"
        sums = multiply_adds(loop)
        assert sums, what
        expected, most_loads = of_a_step(kernel, rows, vectors)
        assert len(sums) % expected == 0, what
        assert all(i.name == "bfmmla" or re.search(r"v\d+\.(s|d)\[\d\]$", i.operands) for i in sums), what
        assert not [i for i in loop if re.search(r"\b(sp|x29)\b", i.operands)], f"{what}: the stack"
        assert not [i for i in loop if i.name in ("dup", "mov") and "v" in i.operands], f"{what}: copies"
        loads = sum(2 if i.name == "ldp" else 1 for i in loop if i.name.startswith("ld"))
        assert loads <= len(sums) // expected * most_loads, f"{what}: {loads} loads"


@pytest.mark.parametrize(
    ("pipes", "width", "load_pipes"),
    [(2, 4, 2), (4, 8, 3)],
    ids=["Neoverse N1, Cortex-A76", "Neoverse V1, V2, Apple"],
)
def test_the_limit_is_arithmetic(program, pipes, width, load_pipes):
    """A core that begins `width` instructions a cycle, `pipes` multiply-adds and `load_pipes` loads or
    prefetches among them, is kept busy by the multiply-adds of the full tiles, with a fifth to spare."""
    found = tiles(program)
    for shape in ((6, 4), (8, 3), (8, 2)):
        loop = found[("neon_product", "float", *shape)]
        cycles = len(multiply_adds(loop)) / pipes
        assert len(loop) / width <= 0.8 * cycles
        assert sum(i.name.startswith(("ld", "prf")) for i in loop) / load_pipes <= 0.8 * cycles


@pytest.mark.parametrize(
    ("pipes", "width", "load_pipes"), [(2, 5, 3), (4, 8, 3)], ids=["Neoverse N2", "Neoverse V1, V2"]
)
def test_the_limit_is_arithmetic_in_bfloat16(program, pipes, width, load_pipes):
    """The same of BFMMLA, of which these cores begin as many as of other multiply-adds: half the instructions
    for the same loads leave less to spare."""
    found = tiles(program)
    for shape in ((6, 4), (8, 3)):
        loop = found[("dot_kernel", "bfloat16", *shape)]
        cycles = len(multiply_adds(loop)) / pipes
        assert len(loop) / width <= 0.85 * cycles
        assert sum(i.name.startswith(("ld", "prf")) for i in loop) / load_pipes <= 0.85 * cycles
