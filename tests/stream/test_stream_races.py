"""Eight streams on one model under ThreadSanitizer: `make tsan`."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from selection import thorough
from stream import build
from torch import nn

import fastrnn

pytestmark = thorough


def command(program) -> list[str]:
    """Without random addresses where the system lets a program ask for that: on some kernels they lie where
    older sanitizers keep their own memory."""
    plain = ["setarch", "-R"]
    works = shutil.which("setarch") and subprocess.run([*plain, "true"], capture_output=True).returncode == 0
    return [*(plain if works else []), str(program)]


def test_no_race(tmp_path):
    """The model is read alone, each stream has one thread, and the model goes away while they are at work."""
    chain = [nn.Linear(1, 4), nn.LSTM(4, 16), nn.GRU(16, 40), fastrnn.SRU(40, 8), nn.Tanh(), nn.Linear(8, 1)]
    fastrnn.runtime.save(chain, tmp_path / "m")
    try:
        program = build.program("many", "tsan", build.TSAN)
    except RuntimeError as wrong:
        if "libtsan" in str(wrong):
            pytest.skip("no ThreadSanitizer in the compiler")
        raise
    done = build.run([*command(program), tmp_path / "m"], TSAN_OPTIONS="exitcode=66")
    assert (done.returncode, done.stdout, done.stderr[:3000]) == (0, "0 of 8 streams differ\n", "")
