"""The exchanges of the persistent kernels as models: every interleaving of a few CTAs, by spin.

    python tests/protocols/check.py [MODEL...]

grid.pml, cluster.pml and scattered.pml are the protocols of csrc/cuda/persistent; each says what it takes
for granted. A model has to be free of errors as it stands, and wrong with each of the mistakes that are
planted in it: those that tests/emu/planted has for the kernels' own source, and more.

What no model covers: more CTAs, warps and publications than the few here; addresses within a tile, and how
many bytes a push has; whether instructions do what the models say of them and the compiler keeps their order.
In a cluster all is in the order of the program, and a push comes after the loads that its value depends on,
which PTX does not promise. Time is not modelled: where a signal may get lost, a wait times out when nothing
else can happen (LOSE), or any wait whenever it likes (HASTY).

Needs spin (Debian's package of this name) and a C compiler.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
MEMORY = 6 << 30  # bytes a check may take


class Check(NamedTuple):
    model: str
    defines: tuple[str, ...] = ()  # "N=3", ...
    fault: str = ""  # a mistake of the model, by its name there

    def __str__(self) -> str:
        return " ".join([self.model, *self.defines, *([self.fault] if self.fault else ["as it is"])])


def of(model: str, *defines: str, faults: str = "") -> list[Check]:
    return [Check(model, defines, fault) for fault in faults.split()] or [Check(model, defines)]


#: Without an error.
RIGHT = [
    *of("grid"),
    *of("grid", "LOSE=1"),
    # No mistake: once one gave up the flag says so, and nobody takes what is published after.
    Check("grid", ("LOSE=1",), "GOES_ON"),
    *of("grid", "FINISHING=2"),
    *of("grid", "HASTY=1", "T=3"),
    *of("cluster"),
    *of("cluster", "SPLIT=1"),
    *of("cluster", "SPLIT=1", "LOSE=1"),
    *of("cluster", "LOSE=1", "T=2"),
    *of("cluster", "SPLIT=1", "HASTY=1", "T=2"),
    *of("scattered"),
    *of("scattered", "BEHIND=1"),
    *of("scattered", "LOSE=1"),
    *of("scattered", "BEHIND=1", "LOSE=1"),
    *of("scattered", "HASTY=1", "T=3"),
]
#: With one.
WRONG = [
    *of("grid", faults="ONE_BUFFER ARRIVAL_EARLY NO_ACQUIRE NO_RELEASE NO_SUMS_BARRIER NO_WAIT_BARRIER"),
    *of("cluster", faults="ONE_BUFFER STORES_OWN FEWER_BYTES MORE_BYTES WRONG_PARITY NO_BEGIN ARMED_AFTER"),
    *of("cluster", faults="OTHER_BARRIER ONE_WAITS ONE_SILENT"),
    *of("cluster", "SPLIT=1", faults="ONE_BUFFER STORES_OWN FEWER_BYTES MORE_BYTES WRONG_PARITY ONE_WAITS"),
    *of("cluster", "SPLIT=1", faults="READS_LATE"),
    *of("cluster", "SPLIT=1", "HASTY=1", faults="PUSHES_ON ARMS_ON NO_TIME"),
    *of("scattered", faults="ONE_SLOT_BUFFER ONE_OPERAND_BUFFER FEWER_BYTES MORE_BYTES"),
    # Where the warp that adds up is not the one that works for its own CTA.
    *of("scattered", "BEHIND=1", faults="STORES_OWN"),
    *of("scattered", faults="NO_BARRIER AFTER_NEXT OTHER_BARRIER NO_WAIT"),
    *of("scattered", "HASTY=1", faults="PUSHES_ON NO_TIME"),
]


def missing() -> str:
    """Why the models cannot be checked here, or nothing."""
    absent = [name for name in ("spin", compiler()[0]) if not shutil.which(name)]
    return f"{' and '.join(absent)} not installed" if absent else ""


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or "gcc")


class Result(NamedTuple):
    error: str  # what the checker found, or nothing
    states: int


def run(check: Check) -> Result:
    """Raises RuntimeError where the checker did not get through."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    defines = [f"-D{d}" for d in check.defines] + ([f"-DFAULT={check.fault}"] if check.fault else [])
    with tempfile.TemporaryDirectory() as folder:
        commands = [
            ["spin", "-a", *defines, str(HERE / f"{check.model}.pml")],
            [*compiler(), "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=4096", "pan.c", "-o", "pan"],
            ["./pan", "-m200000"],
        ]
        for command in commands:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, preexec_fn=limit)
            if done.returncode:
                raise RuntimeError(f"{check}: {command[0]}: {(done.stdout + done.stderr)[-2000:]}")
    found = re.search(r"errors: (\d+)", done.stdout)
    states = re.search(r"^\s*(\S+) states, stored", done.stdout, re.MULTILINE)
    if not found or not states or re.search(r"out of memory|max search depth too small", done.stdout):
        raise RuntimeError(f"{check}: {done.stdout[-2000:]}")
    why = re.search(r"^pan:\d+: (.*)$", done.stdout, re.MULTILINE)
    return Result(why[1] if why and int(found[1]) else "", int(float(states[1])))


def main() -> int:
    if why := missing():
        print(f"the models are not checked: {why}")
        return 0
    failed = 0
    for checks, wrong in ((RIGHT, False), (WRONG, True)):
        for check in checks:
            if sys.argv[1:] and check.model not in sys.argv[1:]:
                continue
            begin = time.monotonic()
            result = run(check)
            good = bool(result.error) == wrong
            failed += not good
            said = f"found: {result.error}" if result.error else "no error"
            seconds = time.monotonic() - begin
            took = f"{result.states:10d} states {seconds:6.1f} s"
            print(f"{'ok  ' if good else 'FAIL'} {check!s:45s} {took}  {said}", flush=True)
    print(f"{len(RIGHT) + len(WRONG) if not sys.argv[1:] else 'the named'} checks, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
