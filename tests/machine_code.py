"""What the machine code of the CUDA library does, read with cuobjdump and nvdisasm; no GPU needed.

    python tests/machine_code.py [LIBRARY] [--write] [--issued]

prints a line for each kernel that has a time loop; with --write it becomes the committed table,
tests/cuda/machine_code.txt, which tests/cuda/test_machine_code.py compares with the library that was built.
With --issued it also says how many instructions a warp issues a step, on one way through the step's code.

The step of a persistent kernel is the smallest loop of its code that multiplies, meets a barrier and stores.
Counts are of instructions as they stand in the code, not of how often they run; what only a failure runs
counts too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "cuda" / "machine_code.txt"
PRECISIONS = ("float", "tf32", "bfloat16", "half")  # plan/device.h's Precision
#: The architectures whose code the table may be of: with clusters, and what is built by default comes first.
TABLED = ("sm_90", "sm_90a")


class Instruction(NamedTuple):
    address: int
    guard: str  # "@P0", "@!UP1", or nothing
    op: str  # with its modifiers: "LDG.E.64"
    operands: str

    def is_a(self, *names: str) -> bool:
        """By the name before the first modifier."""
        return self.op.partition(".")[0] in names

    @property
    def target(self) -> int | None:
        found = re.search(r"0x([0-9a-f]+)\)?$", self.operands)
        return int(found[1], 16) if found else None


class Facts(NamedTuple):
    """Of a kernel; from `step` on of its step, 0 where it has none."""

    instructions: int
    local: int  # loads and stores of local memory
    generic: int  # loads, stores and atomics whose space is found out at run time
    in_flight: int  # loads of global memory on their way at once before the step
    step: int = 0
    products: int = 0  # matrix instructions
    divergent: int = 0  # of them, those that a warp may come to with a part of its lanes
    exchanged: int = 0  # reads of what other CTAs wrote that are on their way at once, from the L2 cache
    shared: int = 0  # loads of shared memory on their way at once
    pushes: int = 0  # asynchronous stores into other CTAs
    tries: int = 0  # looks at an mbarrier
    fences: int = 0  # but those of a failure, which the host sees too
    releases: int = 0  # arrivals at a flag
    barriers: int = 0


def demangled(names: Sequence[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def short_names(names: Sequence[str]) -> list[str]:
    """Of mangled kernels: "persistent_forward_kernel<Lstm, Cluster, bfloat16>"."""
    out = []
    for name in demangled(names):
        # The persistent kernels have a Precision for the layer's type, and the exchange behind it.
        name = re.sub(
            r"\(fastrnn::cuda::Precision\)(\d), (fastrnn::cuda::\w+)",
            lambda m: f"{m[2]}, {PRECISIONS[int(m[1])]}",
            name,
        )
        out.append(re.sub(r"fastrnn::(cuda::)?|\(anonymous namespace\)::|void |\(.*|__nv_", "", name))
    return out


def tool(name: str) -> Path | None:
    """cuobjdump or nvdisasm, wherever CUDA's tools may be."""
    sys.path.insert(0, str(ROOT / "tests"))
    from emu.build import find_cuda_tool

    return find_cuda_tool(name)


def disassembled(library: Path, arch: str) -> dict[str, list[Instruction]]:
    """The kernels of one architecture, by short name."""
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if not cuobjdump or not nvdisasm:
        raise FileNotFoundError("cuobjdump and nvdisasm: requirements/cuda.txt names their packages")
    path = os.pathsep.join([str(nvdisasm.parent), os.environ.get("PATH", "")])
    command = [cuobjdump, "--dump-sass", "--gpu-architecture", arch, library]
    text = subprocess.check_output(command, text=True, env=os.environ | {"PATH": path})
    parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(short_names(parts[::2]), map(instructions, parts[1::2]), strict=True))


def instructions(text: str) -> list[Instruction]:
    pattern = r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+)?\s*([A-Z][\w.]*)\s*(.*?)\s*;"
    found = re.finditer(pattern, text, re.MULTILINE)
    return [Instruction(int(m[1], 16), m[2] or "", m[3], m[4]) for m in found]


def loops(code: Sequence[Instruction]) -> Iterator[list[Instruction]]:
    """From the target of every branch back to the branch, but for what is put behind the kernel's end."""
    end = next((i.address for i in reversed(code) if i.op == "EXIT" and not i.guard), 0)
    for i in code:
        back = i.op.startswith("BRA") and "DIV" not in i.op and i.target is not None and i.target < i.address
        if back and not i.target <= end <= i.address:
            yield [j for j in code if i.target <= j.address <= i.address]


def step_of(code: Sequence[Instruction]) -> list[Instruction]:
    def steps(loop: Sequence[Instruction]) -> bool:
        return all(any(i.is_a(name) for i in loop) for name in ("HMMA", "BAR", "STG"))

    return min(filter(steps, loops(code)), key=len, default=[])


def spans(code: Iterable[Instruction]) -> list[tuple[int, int]]:
    """Where lanes of a warp may be apart: from a BSSY to where they meet again."""
    return [(i.address, i.target) for i in code if i.is_a("BSSY") and i.target is not None]


def registers(operands: str, wide: int) -> set[int]:
    """The numbers of the general registers named, each the first of `wide`."""
    return {int(n) + k for n in re.findall(r"\bR(\d+)\b", operands) for k in range(wide)}


def loads_in_flight(code: Iterable[Instruction], *names: str, with_op: str = "") -> int:
    """The most loads that are issued before an instruction needs the result of one.

    Of those with one of the names, and `with_op` in theirs.
    """
    most, waiting = 0, []
    for i in code:
        if i.is_a(*names) and with_op in i.op:
            to, _, source = i.operands.partition(",")
            if any(registers(source, 1) & r for r in waiting):
                waiting = []
            waiting.append(registers(to, {"64": 2, "128": 4}.get(i.op.rpartition(".")[2], 1)))
            most = max(most, len(waiting))
            continue
        reads_all = i.is_a("STG", "STS", "ISETP", "FSETP")
        operands = i.operands if reads_all else i.operands.partition(",")[2]
        if any(registers(operands, 1) & r for r in waiting):
            waiting = []
    return most


def copies_in_flight(code: Iterable[Instruction]) -> int:
    """The most copies into shared memory that are asked for before a wait for them."""
    most = waiting = 0
    for i in code:
        waiting = 0 if i.is_a("DEPBAR") else waiting + i.is_a("LDGSTS")
        most = max(most, waiting)
    return most


def facts(code: Sequence[Instruction]) -> Facts:
    def count(part: Iterable[Instruction], *names: str) -> int:
        return sum(i.is_a(*names) for i in part)

    step = step_of(code)
    before = [i for i in code if not step or i.address < step[0].address]
    whole = (len(code), count(code, "LDL", "STL"), count(code, "LD", "ST", "ATOM"))
    whole += (loads_in_flight(before, "LDG"),)
    if not step:
        return Facts(*whole)
    first, last = step[0].address, step[-1].address
    apart = [(a, b) for a, b in spans(step) if first <= a and b <= last]
    products = [i for i in step if i.is_a("HMMA")]
    return Facts(
        *whole,
        step=len(step),
        products=len(products),
        divergent=sum(any(a < i.address < b for a, b in apart) for i in products),
        exchanged=max(loads_in_flight(step, "LDG", with_op="STRONG.GPU"), copies_in_flight(step)),
        shared=loads_in_flight((i for i in step if i.guard != "@!PT"), "LDS"),
        pushes=count(step, "STAS"),
        tries=sum("TRYWAIT" in i.op for i in step),
        fences=sum(i.is_a("MEMBAR") and ".GPU" in i.op for i in step),
        releases=sum(i.is_a("RED", "REDG") and ".ADD" in i.op for i in step),
        barriers=count(step, "BAR"),
    )


def issued(step: Sequence[Instruction], floats: bool) -> int:
    """The instructions of a step on one way through it, where the code has several.

    Of the ways that lead forward the shortest of those on which most is done: products, barriers, stores and
    loads, none of them of a single value (in kernels of ``floats``: of 4 bytes) where a pair could be.
    """
    at = {i.address: n for n, i in enumerate(step)}
    ways = [(0, 0)] * len(step)  # from an instruction to the end: what is done, and minus the instructions
    for n, i in reversed(list(enumerate(step))):
        alone = not i.op.endswith(".64") if floats else re.search(r"\.[US](8|16)\b", i.op)
        value = (-10 if alone else 1) if i.is_a("LDG", "STG") else i.is_a("HMMA", "BAR", "STS")
        branch = i.is_a("BRA")
        to = [at[i.target]] if branch and at.get(i.target, 0) > n else []
        if not branch or i.guard or re.match(r"!?U?P\d", i.operands):
            to += [n + 1] if n + 1 < len(step) else []
        done, count = max((ways[k] for k in to), default=(0, 0))
        ways[n] = (done + value, count - 1)
    return -ways[0][1]


def compiler() -> str:
    """nvcc's version, as the build recorded it."""
    sys.path.insert(0, str(ROOT))
    from fastrnn._ops import library as built

    return built.build_info()["cuda_compiler"]


def table(kernels: dict[str, Facts], heading: str) -> str:
    width = max(map(len, kernels)) + 1
    lines = [f"# {heading}", " ".join(["kernel".ljust(width), *(f"{name:>12s}" for name in Facts._fields)])]
    for name, row in sorted(kernels.items()):
        lines.append(" ".join([name.ljust(width), *(f"{value:12d}" for value in row)]))
    return "\n".join(lines) + "\n"


def with_a_step(kernels: dict[str, Facts]) -> dict[str, Facts]:
    """Those of the table: the persistent ones."""
    return {name: row for name, row in kernels.items() if row.step}


def committed() -> tuple[str, dict[str, Facts]]:
    """The table's heading, and its rows."""
    heading, _, *rows = TABLE.read_text().splitlines()
    out = {}
    for row in rows:
        name, values = row[: row.index(">") + 1] if ">" in row else row.split()[0], row.rpartition(">")[2]
        out[name] = Facts(*map(int, values.split()[-len(Facts._fields) :]))
    return heading.removeprefix("# "), out


def main() -> None:
    named = [a for a in sys.argv[1:] if not a.startswith("--")]
    library = Path(named[0]) if named else ROOT / "fastrnn" / "libfastrnn_cuda.so"
    listed = subprocess.run([tool("cuobjdump"), "--list-elf", library], capture_output=True, text=True).stdout
    arch = next(a for a in TABLED if re.search(rf"\b{a}\b", listed))
    codes = disassembled(library, arch)
    found = {name: facts(code) for name, code in codes.items()}
    text = table(with_a_step(found), f"{arch}, {compiler()}")
    print(text, end="")
    if "--issued" in sys.argv:
        for name, code in sorted(codes.items()):
            if step := step_of(code):
                print(f"{name} {issued(step, 'float>' in name or 'tf32>' in name)}")
    if "--write" in sys.argv:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
