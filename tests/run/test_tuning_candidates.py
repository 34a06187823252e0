"""Candidates of tuning on the emulator, in a child process and here: every fault that a kernel may have ends
in quarantine, with the right words, and right kernels do not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emu.build import NAMESPACE
from emu.build import library as emulator
from tuning_fakes import A100, GPU, H100, KIND

from fastrnn._plan.tuning import session
from fastrnn._plan.tuning.kinds import Candidate, Kind, candidates
from fastrnn._run.tuning import candidates as run_candidates
from fastrnn._run.tuning import child

CHILD = Path(__file__).with_name("tuning_child.py")


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("wrong:grid", "wrong numbers: "),
        ("nan:grid", "NaN: "),
        ("bits:grid", "different bits: "),
        ("slow:grid", "slow: "),
        ("hang:grid", "hang: no answer within"),
        ("crash:grid", "crash: the process ended with signal SIGSEGV"),
        ("exit:grid", "crash: the process ended with status 3"),
        ("error:grid", "error: RuntimeError: CUDA error: an illegal memory access"),
    ],
)
def test_planted_faults(store, fault, word):
    """Real kernels on the emulator in a real child process, one tier of which has a fault: it ends in
    quarantine, and the tier beside it is verified and timed."""
    emulator()  # compiled before a time limit runs
    limit = 4.0 if fault.startswith("hang") else 60.0
    kind = replace(KIND, T=5, training=False)
    with child.Child([sys.executable, str(CHILD), fault], limit_s=limit, start_limit_s=120.0) as runner:
        mine = session.Session(store, dict(GPU), A100, runner)
        record = mine.run([kind])[0].record
    found = record["candidates"]
    assert found["grid forward"]["state"] == "quarantined"
    assert found["grid forward"]["why"].startswith(word)
    # On the emulator a step at a time is faster than one CTA's kernel, as it would be on no GPU.
    assert found["one_cta forward"]["state"] == "verified" or found["one_cta forward"]["why"].startswith(
        "slow"
    )
    assert record["forward"] in ("stepwise", "stepwise_graph", "torch", "one_cta")


def test_a_child_that_does_not_start(store):
    """Says nothing about the candidates."""
    for command in ([sys.executable, str(CHILD), "no start"], ["/nonexistent"]):
        with child.Child(command, start_limit_s=60.0) as runner:
            verdict = runner.verify(KIND, Candidate("grid", "forward"))
        assert (verdict.ok, verdict.ran) == (False, False)
        assert verdict.what == "not run"


@pytest.fixture(scope="module")
def executor():
    import runpy

    made = runpy.run_path(str(CHILD), run_name="tuning_child")["executor"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield made
    getattr(torch.ops, NAMESPACE).device(0, 0, 0)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("rows", ["full", "packed", "masked"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize(
    ("dtype", "tf32"), [("bfloat16", False), ("float16", False), ("float32", True), ("float32", False)]
)
def test_right_kernels_are_verified(executor, cell, rows, dtype, tf32):
    """No false alarm: the emulated kernels, whose numbers other tests hold to the reference, are right here
    too, for every cell, type and kind of rows, both passes."""
    kind = Kind(cell, 5, 3, 4, 20, dtype=dtype, tf32=tf32, training=True, rows=rows)
    for candidate in candidates(kind, A100 if rows != "full" else H100):
        if candidate.tier in ("cluster_4", "cluster_16"):
            continue
        verdict = executor().verify(kind, candidate)
        assert verdict.ok, f"{candidate.name}: {verdict.text}"


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize(
    ("fault", "what"), [("wrong", "wrong numbers"), ("nan", "NaN"), ("bits", "different bits")]
)
def test_faults_of_each_pass(executor, which, fault, what):
    kind = replace(KIND, T=5)
    verdict = executor(f"{fault}:one_cta").verify(kind, Candidate("one_cta", which))
    assert (verdict.ok, verdict.what) == (False, what)
    assert ("grad" in verdict.why) or which == "forward"


def test_times(executor):
    """Everybody has a turn, torch's own layer too; where that cannot, it has none."""
    chosen = list(candidates(KIND, A100))
    times = executor().time(KIND, chosen)
    assert set(times.candidates) == set(chosen)
    assert set(times.stepwise) == {"forward", "backward"}
    assert all(us > 0 for us in (*times.candidates.values(), *times.stepwise.values(), times.torch))
    masked = replace(KIND, rows="masked", training=False)
    assert executor().time(masked, []).torch is None


def test_the_long_shape():
    """The issue's: T = 256 beside the kind's own."""
    assert child.LIMIT_S > 0
    import importlib

    assert importlib.reload(run_candidates).LONG == 256
