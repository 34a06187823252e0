"""Inner loops of compiled kernels, as objdump shows them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_FUNCTION = re.compile(r"^([0-9a-f]+) <(.+)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
_TARGET = re.compile(r"(?:^|[\s,])([0-9a-f]+) <")


class Instruction(NamedTuple):
    at: int
    name: str
    operands: str

    def __str__(self) -> str:
        return f"{self.name} {self.operands}"


def functions(
    path: Path, objdump: str = "objdump", options: Iterable[str] = ()
) -> dict[str, list[Instruction]]:
    """The instructions of an object file by the demangled name of their function."""
    command = [objdump, "-d", "-C", "--no-show-raw-insn", *options, str(path)]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse(text: str) -> dict[str, list[Instruction]]:
    """The same of what objdump wrote."""
    found: dict[str, list[Instruction]] = {}
    body: list[Instruction] = []
    for line in text.splitlines():
        if start := _FUNCTION.match(line):
            body = found.setdefault(start.group(2), [])
        elif instruction := _INSTRUCTION.match(line):
            body.append(Instruction(int(instruction.group(1), 16), *instruction.group(2, 3)))
    return found


def inner_loops(body: Iterable[Instruction]) -> list[list[Instruction]]:
    """From the target of each jump back to the jump, where no other such loop lies within."""
    body = list(body)
    place = {instruction.at: i for i, instruction in enumerate(body)}
    spans = []
    for i, instruction in enumerate(body):
        target = _TARGET.search(instruction.operands)
        if target and instruction.name not in ("bl", "call"):
            start = place.get(int(target.group(1), 16), i + 1)
            if start <= i:
                spans.append((start, i))
    inner = [s for s in spans if not any(s != o and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [body[start : end + 1] for start, end in inner]
