"""SASS gate: what the kernels' machine code may do, and a table of what it does. Needs no GPU.

A change of the table is a decision: `python tests/machine_code.py --write` makes it anew, to be read and
committed.
"""

from __future__ import annotations

import os
import re
import subprocess

import machine_code
import pytest
import torch
from emu.build import find_cuda_tool
from machine_code import Facts, Instruction, disassembled, facts, instructions

from fastrnn._ops import library

LIBRARY = machine_code.ROOT / "fastrnn" / "libfastrnn_cuda.so"
#: Times the committed number of instructions a step, with another compiler than the table's.
BUDGET = 1.15
#: What the table's compiler may add or take: nvcc 13.0 makes one of two codes of the same file, with 1673 and
#: with 1674 instructions a step of one kernel, as its addresses fall. What is done is the same in both.
NOISE = 0.01

needs_library = pytest.mark.skipif(
    torch.version.cuda is None or os.environ.get("FASTRNN_CUDA") == "0" or find_cuda_tool("nvcc") is None,
    reason="built without CUDA kernels: torch without CUDA, FASTRNN_CUDA=0, or no nvcc",
)


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Facts]]:
    """By architecture and kernel."""
    tool = find_cuda_tool("cuobjdump")
    for name in ("cuobjdump", "nvdisasm"):  # where the library is built nothing excuses from the gate
        assert find_cuda_tool(name), f"{name} is not installed: requirements/cuda.txt names its package"
    listed = subprocess.check_output([tool, "--list-elf", LIBRARY], text=True)
    archs = sorted(set(re.findall(r"\bsm_\w+", listed)))
    assert archs
    return {a: {k: facts(code) for k, code in disassembled(LIBRARY, a).items()} for a in archs}


def persistent(found: dict[str, Facts], exchange: str) -> dict[str, Facts]:
    kept = {k: f for k, f in found.items() if k.startswith("persistent_") and f", {exchange}," in k}
    assert len(kept) in (18, 24)  # 2 passes, 3 cells, 3 or 4 precisions
    return kept


@needs_library
def test_no_local_and_no_generic_access(compiled):
    """An array in local memory is far slower than registers, a generic access asks where it goes."""
    for arch, found in compiled.items():
        for kernel, f in found.items():
            assert f.local == 0, f"{arch}: {kernel}"
            # The word by which a CTA tells its cluster that it has given up; backward has two waits.
            allowed = 2 if f.step > 0 and "Cluster" in kernel else 0
            assert f.generic <= allowed, f"{arch}: {kernel}"


@needs_library
def test_exchanges(compiled):
    """Of a step: the one fence of a publication, the looks at the barrier, the CTA's barriers, the pushes."""
    for arch, found in compiled.items():
        # pushes, tries, fences, releases, barriers
        for kernel, f in persistent(found, "OneCta").items():
            assert f[-5:] == (0, 0, 0, 0, 1), f"{arch}: {kernel}: {f}"
        for kernel, f in persistent(found, "Grid").items():
            assert f[-5:] == (0, 0, 1, 1, 2), f"{arch}: {kernel}: {f}"
        for kernel, f in persistent(found, "Cluster").items():
            if arch == "sm_80":  # has no clusters: the kernels are empty
                assert f.step == 0, f"{arch}: {kernel}"
                continue
            # One look where the phase is over by then, one of a loop where it is not.
            assert (f.tries, f.fences, f.releases, f.barriers) == (2, 0, 0, 1), f"{arch}: {kernel}"
            assert f.pushes >= 1, f"{arch}: {kernel}"


@needs_library
def test_whole_tiles_are_fewer_instructions(compiled):
    """One CTA's kernels that ask nothing at an access: 40% less code a step, of kFloat32, which splits every
    weight at every step, 15%; and no fewer reads of shared memory on their way."""
    for arch, found in compiled.items():
        whole = persistent(found, "OneCtaWhole")
        assert len(whole) == 24
        for kernel, f in whole.items():
            general = found[kernel.replace("OneCtaWhole", "OneCta")]
            most = 0.85 if "float>" in kernel else 0.6
            assert f.step <= most * general.step, f"{arch}: {kernel}"
            assert f.products == general.products, f"{arch}: {kernel}"
            assert f.shared >= general.shared, f"{arch}: {kernel}"
            assert f[-5:] == general[-5:], f"{arch}: {kernel}"


@needs_library
def test_products(compiled):
    """Multiplied by tensor cores, with the weights' loads in flight together, by whole warps."""
    for arch, found in compiled.items():
        for kernel, f in found.items():
            if not kernel.startswith("persistent_") or f.step == 0:
                continue
            assert f.products >= 4, f"{arch}: {kernel}"
            assert f.in_flight >= 16, f"{arch}: {kernel}"
            if ", Grid," in kernel:  # two warps' parts of all gates' sums, four warps' of one sum
                assert f.shared >= 4, f"{arch}: {kernel}"
                # Copies of a whole piece of the operand, two tiles of half types at once.
                assert f.exchanged >= 4, f"{arch}: {kernel}"
            # In a cluster a warp's number says which products it makes, and in which order: one way for all
            # its lanes, which the code does not show.
            assert f.divergent == 0 or "Cluster" in kernel, f"{arch}: {kernel}"


def changed(rows: dict[str, Facts], found: dict[str, Facts]) -> dict[str, tuple[Facts, Facts]]:
    """The kernels that differ: in their numbers of instructions by more than `NOISE`, or in anything else."""

    def differs(a: Facts, b: Facts) -> bool:
        counts = ((a.instructions, b.instructions), (a.step, b.step))
        rest = [f._replace(instructions=0, step=0) for f in (a, b)]
        return rest[0] != rest[1] or any(abs(m - n) > NOISE * m for m, n in counts)

    return {k: (rows[k], f) for k, f in found.items() if differs(rows[k], f)}


def test_what_is_a_change():
    """One instruction of a thousand is none, one access to local memory is, and so are two in a hundred."""
    row = Facts(instructions=7544, local=0, generic=0, in_flight=138, step=1673, products=108)
    for same in (row, row._replace(step=1674), row._replace(instructions=7536)):
        assert not changed({"kernel": row}, {"kernel": same})
    for other in (row._replace(local=1), row._replace(in_flight=137), row._replace(step=1707)):
        assert changed({"kernel": row}, {"kernel": other}) == {"kernel": (row, other)}


@needs_library
def test_the_table(compiled, capsys):
    """The same as the committed one by the same compiler, within a budget by another one."""
    heading, rows = machine_code.committed()
    arch = next((a for a in machine_code.TABLED if a in compiled), None)  # where there are clusters
    if arch is None:
        pytest.skip(f"the table is of {' or '.join(machine_code.TABLED)}, the library of {list(compiled)}")
    found, now = machine_code.with_a_step(compiled[arch]), f"{arch}, {library.build_info()['cuda_compiler']}"
    with capsys.disabled():
        print(f"\n{machine_code.table(found, now)}")
    assert set(found) == set(rows), "kernels came or went: python tests/machine_code.py --write"
    if now == heading:
        other = changed(rows, found)
        assert not other, f"python tests/machine_code.py --write, and read what changed: {other}"
    for kernel, f in found.items():
        assert f.step <= BUDGET * rows[kernel].step, f"{arch}: {kernel}"


def code(*lines: str) -> list[Instruction]:
    """As nvdisasm writes it, 16 bytes each."""
    return instructions("\n".join(f"        /*{16 * n:04x}*/       {line} ;" for n, line in enumerate(lines)))


def test_the_reader_sees_what_it_should():
    """The gate's own eyes: a step, what is in it, and what is apart in it."""
    step = [
        "BAR.SYNC.DEFER_BLOCKING 0x0",
        "BSSY B0, 0x70",
        "@P0 BRA 0x70",
        "HMMA.16816.F32.BF16 R4, R8, R12, RZ",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3+URZ], R2",
        "STAS.64 [R4.64], R2",
        "MEMBAR.ALL.GPU",
        "@!P1 RED.E.ADD.STRONG.GPU [R2.64], R5",
        "LDG.E.64.STRONG.GPU R12, desc[UR4][R2.64]",
        "LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64]",
        "LDGSTS.E.BYPASS.128 [R5+0x200], desc[UR4][R2.64+0x200]",
        "DEPBAR.LE SB0, 0x0",
        "LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64]",
        "@!PT LDS RZ, [RZ]",
        "LDS.128 R16, [R20]",
        "LDS.64 R24, [R20+0x100]",
        "IADD3 R25, R17, 0x1, RZ",
        "LDS R26, [R20+0x200]",
    ]
    loads = ["LDG.E R4, [R2.64]", "LDG.E.64 R6, [R2.64+0x8]", "@P1 LDG.E R9, [R2.64+0x10]"]
    use = ["IADD3 R5, R7, 0x1, RZ", "LDL R3, [R1]", "ST.E.STRONG.SYS [R2.64], R3", "MEMBAR.SC.SYS"]
    prologue = [*loads, *use]
    first = 16 * len(prologue)
    step = [re.sub(r"0x70", hex(first + 0x70), line) for line in step]
    end = ["HMMA.16816.F32.BF16 R4, R8, R12, R4", "STG.E [R2.64], R4", f"@P2 BRA {hex(first)}", "EXIT"]
    f = facts(code(*prologue, *step, *end))
    assert f == Facts(
        instructions=29, local=1, generic=1, in_flight=3, step=21, products=2, divergent=1, exchanged=2,
        shared=2, pushes=1, tries=1, fences=1, releases=1, barriers=1,
    )  # fmt: skip
    # What lies behind the kernel's end is no part of a loop of it.
    behind = [*end, "HMMA.16816.F32.BF16 R4, R8, R12, R4", f"BRA {hex(first)}"]
    assert facts(code(*prologue, *step, *behind)).step == 21
    assert facts(code("LDG.E R4, [R2.64]", "LDG.E R5, [R4.64]", "EXIT")).in_flight == 1
    # A pair at once, past its two values one by one; and of the products those that are there, past nothing.
    ways = [
        "@P0 BRA 0x40",
        "STG.E.U16 [R2.64], R4",
        "STG.E.U16 [R2.64+0x2], R5",
        "BRA 0x50",
        "STG.E [R2.64], R4",
    ]
    ways += ["@!P1 BRA 0x70", "HMMA.16816.F32.BF16 R4, R8, R12, R4", "BAR.SYNC 0x0", "@P2 BRA 0x0"]
    assert machine_code.issued(code(*ways), floats=False) == 6
    pairs = [line.replace("STG.E [", "STG.E.64 [").replace(".U16", "") for line in ways]
    assert machine_code.issued(code(*pairs), floats=True) == 6
    assert facts(code("EXIT")) == Facts(1, 0, 0, 0)
