"""One streamer, called from several Python threads at once, and from one that outlives the interpreter."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from helpers import HANGS_S
from quantized_cases import make


@pytest.mark.parametrize(("name", "hidden"), [("LSTM", 21), ("GRU", 150)])
@pytest.mark.parametrize("weights", ["float32", "int8"])
@torch.no_grad()
def test_threads_of_a_server_share_the_states(name, hidden, weights):
    """Each has rows of its own of one state: the bits that one after another writes."""
    streams, threads, steps = 16, 4, 40
    layer = make(name, 5, hidden, num_layers=2)
    stream = layer.streamer(weights)
    x = torch.randn(steps, streams, 5)
    start = [torch.randn(2, streams, hidden).tanh() for _ in range(2 if name == "LSTM" else 1)]
    alone, shared = ([s.clone() for s in start] for _ in range(2))
    wrong = []

    def serve(first, state):
        rows = torch.arange(first, streams, threads)
        mask = torch.zeros(streams, dtype=torch.bool).index_fill_(0, rows, True)
        state = tuple(state) if name == "LSTM" else state[0]
        out = torch.empty(len(rows), hidden)
        try:
            with torch.no_grad():
                for t in range(steps):
                    if t % 2:
                        stream.step(x[t], state, active=mask)
                    else:
                        stream.step_(x[t][rows], state, out=out, active=rows)
        except Exception as error:  # of another thread pytest sees nothing
            wrong.append(error)

    for first in range(threads):
        serve(first, alone)
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        running = [threading.Thread(target=serve, args=(first, shared)) for first in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        sys.setswitchinterval(often)
    assert not wrong
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a, b)


ENDS_DURING_A_CALL = """
import threading, time
import torch
import fastrnn

stream = fastrnn.GRU(5, 256).streamer()
assert stream._taken.quick.chunk is not None
x = torch.randn(80_000, 1, 5)
begun = threading.Event()

def run():
    with torch.no_grad():
        stream(x[:10])
        begun.set()
        stream(x)

class Last:
    def __del__(self):
        time.sleep(self.seconds)

last = Last()
start = time.perf_counter()
with torch.no_grad():
    stream(x)
last.seconds = 2 * (time.perf_counter() - start) + 0.5
threading.Thread(target=run, daemon=True).start()
begun.wait()
time.sleep(0.1 * last.seconds)  # it is in the kernel then, where nobody asks torch anything
"""


@pytest.mark.skipif(sys.platform == "win32", reason="of POSIX threads")
def test_a_thread_may_be_in_a_call_when_the_interpreter_ends():
    """A server is stopped while a daemon thread computes: the process ends, and does not abort."""
    import fastrnn._ops.library as library

    if library.stream_type is None:
        pytest.skip("this torch has no short way")
    ended = subprocess.run(
        [sys.executable, "-c", ENDS_DURING_A_CALL], capture_output=True, text=True, timeout=HANGS_S
    )
    assert ended.returncode == 0, ended.stderr
