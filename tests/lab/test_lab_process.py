"""A process under watch, which the supervisor, the CPU's worker and the GPU check share."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastrnn
from benchmarks.lab import process
from benchmarks.lab.process import Silent, Watched

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waits for stays as a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_lines_come_as_they_are_written():
    """It hears what it is told, its lines come in order, errors among them, and then its status."""
    code = "import sys; print(sys.stdin.read().upper()); print('no', file=sys.stderr); sys.exit(3)"
    with Watched(python(code), dict(os.environ), said="hello") as watched:
        lines = []
        while (line := watched.line(math.inf)) is not None:
            lines.append(line)
        assert watched.wait() == 3
    assert sorted(lines) == ["HELLO\n", "no\n"]


def test_silence_is_told_and_ended():
    """Whoever says nothing is not waited for longer than asked, and is dead when the watch is over."""
    start = time.monotonic()
    with Watched(["sleep", "60"], dict(os.environ)) as watched:
        with pytest.raises(Silent):
            watched.line(0.1)
        assert watched.code is None
    assert watched.code == -9
    assert time.monotonic() - start < 20


def test_more_than_a_pipe_holds_for_whoever_never_reads():
    """What it is told may be long, and it may hang before it reads: that must not hang the watch."""
    with Watched(["sleep", "60"], dict(os.environ), said="x" * (1 << 20)) as watched, pytest.raises(Silent):
        watched.line(0.1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_it_has_started_ends_with_it():
    """Compilers and other children do not go on when their parent is ended."""
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    with Watched(python(code), dict(os.environ)) as watched:
        child = int(watched.line(60.0))
        assert not gone(child)
    deadline = time.monotonic() + 10
    while not gone(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(child)


@pytest.mark.parametrize(("asked", "code"), [("sys.exit(7)", 7), ("None", -9)])
def test_it_may_end_by_itself_when_asked(asked, code):
    """A grace to write what it has, and what it then says is heard; whoever does not use it is killed."""
    program = f"""
import signal, sys, time
def end(*_):
    print("asked", flush=True)
    {asked}
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
    with Watched(python(program), dict(os.environ)) as watched:
        assert watched.line(60.0) == "ready\n"
        watched.end(1.0 if code == -9 else 30.0)
        assert watched.code == code
        assert watched.line(1.0) == "asked\n"
        assert watched.line(1.0) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="setsid")
def test_a_pipe_that_somebody_else_holds():
    """Whoever has left the session and holds the pipe open keeps neither end nor next line waiting."""
    code = "import subprocess; print(subprocess.Popen(['setsid', 'sleep', '20']).pid, flush=True)"
    start = time.monotonic()
    with Watched(python(code), dict(os.environ)) as watched:
        child = int(watched.line(60.0))
        assert watched.wait(60.0) == 0
        assert watched.line(0.1) is None
    os.kill(child, 9)
    assert time.monotonic() - start < 15


def test_nothing_has_to_be_built():
    """The GPU check imports this before it builds: neither torch nor fastrnn is asked for."""
    code = "import sys, benchmarks.lab.process; print({'torch', 'fastrnn'} & {*sys.modules})"
    done = subprocess.run(python(code), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_workers_environment(tmp_path):
    """From anywhere it finds this package and the fastrnn that is in use here, on so many threads."""
    code = "import json, os, benchmarks.lab, fastrnn, torch; print(json.dumps([benchmarks.lab.__file__, "
    code += "fastrnn.__file__, torch.get_num_threads(), os.environ['JAX_PLATFORMS']]))"
    options = {"cwd": tmp_path, "env": process.environment(1), "capture_output": True, "text": True}
    done = subprocess.run(python(code), check=True, **options)
    lab = Path(process.__file__).with_name("__init__.py")
    assert json.loads(done.stdout) == [str(lab), fastrnn.__file__, 1, "cpu"]
