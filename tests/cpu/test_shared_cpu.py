"""Threads of a call that the system has put on one CPU: they part at once, and nothing of it stays.

Woken after a rest, a helper often finds itself on the CPU of the thread that called it, in a virtual machine
above all, and there each call waited for the system's clock: 4 to 8 ms where it takes 0.3.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from harness import build
from helpers import HANGS_S

two_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two CPUs and a system that tells and sets which a thread may run on",
)

PROGRAM = """
import json, os, sys, torch, fastrnn

layers = {"rnn": (fastrnn.GRU(128, 128), torch.randn(100, 16, 128)),
          "units": (fastrnn.LSTM(256, 256), torch.randn(50, 1, 256)),
          "scan": (fastrnn.SRU(256, 256), torch.randn(100, 16, 256))}
layer, x = layers[sys.argv[1]]
cpus = sorted(os.sched_getaffinity(0))[:2]
tasks = lambda: {int(t) for t in os.listdir("/proc/self/task")}
on = lambda t: int(open(f"/proc/self/task/{t}/stat").read().rsplit(")", 1)[1].split()[36])

def bind(to):
    for task in tasks():
        os.sched_setaffinity(task, to)

bind(cpus)  # two of them, however many there are: then it takes two threads to be on both
torch.set_num_threads(2)
with torch.no_grad():
    before = tasks()
    layer(x)
    helpers = tasks() - before
    caller = os.getpid()
    together = apart = 0
    for i in range(60):
        bind({cpus[i % 2]})
        layer(x)
        bind(cpus)
        if len({on(t) for t in helpers | {caller}}) > 1:
            continue
        together += 1
        layer(x)
        apart += len({on(t) for t in helpers | {caller}}) > 1
    kept = all(os.sched_getaffinity(t) == set(cpus) for t in tasks())
print(json.dumps({"helpers": len(helpers), "together": together, "apart": apart, "kept": kept}))
"""


@two_cpus
@pytest.mark.parametrize("work", ["rnn", "units", "scan"])
def test_threads_on_one_cpu_part_and_keep_what_they_may_use(work):
    """Put on one CPU by force, and let go: after one call most are on two, and all are bound to none."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, work], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if found["helpers"] != 1 or found["together"] < 10:
        pytest.skip(f"no two threads on one CPU to begin with: {found}")
    assert found["kept"]
    # Beside other programs 0.7 to 1 of them, without the parting 0 to 0.4. Where threads meet at every step,
    # one that slept there may be woken on the other's CPU, so what is seen after a call says little.
    if work != "units":
        assert found["apart"] >= 0.5 * found["together"], found


@pytest.mark.skipif(sys.platform != "linux", reason="threads part on Linux alone")
def test_a_thread_that_moved_is_as_free_as_before():
    """On a system played by a program: a thread moves off its caller's CPU and nowhere else; it uses what its
    container is given later, unless its owner bound it; one whose container loses its CPUs meanwhile is not
    bound for ever. Not while another call runs, and not so in a child that was forked meanwhile."""
    done = subprocess.run([build.program("own_cpus")], capture_output=True, text=True, timeout=HANGS_S)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr
