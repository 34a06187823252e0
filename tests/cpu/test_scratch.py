"""The scratch memory that is kept between calls (csrc/cpu/ops/scratch.h): how much, of what, and how it goes
back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import build
from helpers import at_once, randn

import fastrnn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scratch memory is kept on Linux alone")
MIB = 1 << 20


def test_what_is_kept():
    """A large request does not throw a small one's memory away, 64 MB and four pieces are the most, and no
    two threads have the same piece."""
    done = subprocess.run([build.program("spares")], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr


def layer_and_input():
    """Two megabytes of packed weights and more."""
    return fastrnn.LSTM(256, 256), randn(5, 4, 256)


def test_release_scratch():
    """What a call kept goes back, once; the next call is as before."""
    module, x = layer_and_input()
    with torch.no_grad():
        before = module(x)[0]
        released = fastrnn.release_scratch()
        assert 2 * MIB <= released <= 64 * MIB
        assert fastrnn.release_scratch() == 0
        assert torch.equal(module(x)[0], before)
    assert fastrnn.release_scratch() > 0


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return pytest.skip("no VmRSS in /proc/self/status")


def test_the_process_is_smaller_afterwards():
    """Kept memory is the process's, released memory the system's."""
    module, x = fastrnn.LSTM(1024, 1024), randn(4, 8, 1024)
    fastrnn.release_scratch()
    with torch.no_grad():
        module(x)
        kept = resident()
        released = fastrnn.release_scratch()
    assert released >= 16 * MIB  # the recurrent weights
    assert kept - resident() > released / 2


def test_a_large_call_is_kept():
    """LSTM H=1024 at 50,32 needs 36 MB, which were mapped and cleared at every call (3 ms of it)."""
    module, x = fastrnn.LSTM(1024, 1024), randn(50, 32, 1024)
    fastrnn.release_scratch()
    with torch.no_grad():
        module(x)
    assert 32 * MIB < fastrnn.release_scratch() <= 64 * MIB


def test_release_while_others_call(threads):
    """Calls that are running keep what they have: every answer has the bits of a call alone."""
    threads(1)
    module, x = layer_and_input()
    with torch.no_grad():
        alone = module(x)[0]

    def call(i):
        torch.set_num_threads(1)
        if i == 0:
            fastrnn.release_scratch()
        with torch.no_grad():
            assert torch.equal(module(x)[0], alone)

    at_once(4, call, times=50)
