"""Processes that fork: a child of os.fork, or of multiprocessing's way to start one, has only the thread that
forked, and OpenMP does not know."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import HANGS_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks without exec, as Linux has them")

PROGRAM = """
import multiprocessing, os, signal, sys, threading
import torch, fastrnn
from fastrnn._ops import library

# Threads, whether or not there are CPUs for them, and however small the layer.
torch.ops.fastrnn.cpu_limit_threads(64, True)
library.set_cpu_machine(meeting_ns=0, region_ns=0)
torch.manual_seed(0)
layers = [make(24, 40) for make in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN)]
x = torch.randn(6, 4, 24)
# Packed by the parent, with its number of threads; several panels, so that they are shared.
streamer = fastrnn.LSTM(24, 300).eval().streamer()

def results():
    torch.set_num_threads(3)
    found = []
    for layer in layers:
        layer.zero_grad()
        y = layer(x)[0]
        y.square().sum().backward()
        found += [y.detach(), *(p.grad.clone() for p in layer.parameters())]
    found.append(fastrnn.functional.linear_scan(x, x))
    with torch.no_grad():
        return [*found, streamer(x)[0]]

def as_before():
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(results(), expected, strict=True))

def in_child(function):
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(sys.argv[1]))  # which ends a child that hangs
        os._exit(0 if function() else 1)
    assert os.waitpid(pid, 0)[1] == 0, function.__name__

def alone():
    return as_before() and library.cpu_threads() == 1

def family():
    in_child(alone)  # the child's child
    found = []
    def helped():
        found.append(as_before() and library.cpu_threads() == 3)
    thread = threading.Thread(target=helped)
    thread.start()
    thread.join()
    in_child(alone)
    return found == [True] and alone()

def has_helpers():
    return as_before() and library.cpu_threads() == 3

def another_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]

# A thread that has made no call may fork, whatever the others did: the child has all its threads.
expected = another_thread(results)
torch.set_num_threads(3)
in_child(has_helpers)
# One that has keeps nothing of it: once it hung.
assert as_before()
in_child(alone)
in_child(family)
def work():
    signal.alarm(int(sys.argv[1]))
    sys.exit(not alone())

worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
worker.join()
assert worker.exitcode == 0
assert has_helpers()
print("fine")
"""


def test_a_child_of_a_thread_with_helpers():
    """Protects from a call that waits for ever: in a child, the threads that worked for the one that forked
    are not there. Layers, both passes, scans and streams; the parent goes on as before. (What torch computes
    itself waits there, unless it is told to use one thread.)"""
    command = [sys.executable, "-c", PROGRAM, str(HANGS_S // 4)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S)
    assert (ran.returncode, ran.stdout) == (0, "fine\n"), ran.stdout + ran.stderr
