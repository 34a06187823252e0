"""The emulator itself: right kernels pass under every schedule, and each fault is reported as what it is."""

from __future__ import annotations

import re
import subprocess

import pytest
from emu.build import selftest
from helpers import HANGS_S

RIGHT = ("block sum", "warp sum", "copies", "ring", "ring of vectors", "count")
#: What is wrong -> what the report says.
WRONG = {
    "no barrier": "RACE: ",
    "barrier for some": "__syncthreads",
    "past shared memory": "past (the end of|its) dynamic shared memory",
    "past a buffer": "past the end of device buffer in",
    "a result not written": "wrong sum 0: -?nan",
    "a lane stays out": "exits while its warp waits for it|divergent warp",
    "a copy not waited for": "RACE: .*reads before the wait",
    "another lane's copy": "RACE: .*reads, without a __syncwarp",
    "a copy over what is read": "RACE: .*copies, without a __syncwarp",
    "too many bytes expected": "deadlock",
    "too few bytes expected": "RACE: ",
    "not armed": "deadlock",
    "not cooperative": "deadlock",
}


@pytest.fixture(scope="module")
def run():
    program = selftest()

    def run_case(name: str, seeds: int) -> str:
        done = subprocess.run([program, name, str(seeds)], capture_output=True, text=True, timeout=HANGS_S)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run_case


@pytest.mark.parametrize("name", RIGHT)
def test_right_under_every_schedule(run, name):
    """36 seeds: every combination of priorities, landing of asynchronous copies, and preemption."""
    assert run(name, 36) == "ok"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_is_reported(run, name):
    """In the first schedule or one of the first twelve, which land copies early and late."""
    report = run(name, 12)
    assert re.search(WRONG[name], report), report


def test_halves_are_rounded_to_nearest_even(run):
    """The emulator's __half, without a compiler's: every number, and what lies between two."""
    assert run("halves", 1) == "ok"
