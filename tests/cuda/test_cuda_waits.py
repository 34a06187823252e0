"""Waits of the persistent kernels for other CTAs: none is endless. The kernels' own source, on the emulator.

Its clock goes on when nothing else can, so ten seconds are waited in no time. A signal (an asynchronous
store of a cluster, a release of the grid) gets lost on the way, as a wrong count of bytes or a wrong parity
would have it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from persistent_cases import (
    CELLS,
    PRECISIONS,
    TIERS,
    Case,
    backward,
    expected,
    forward,
    fused,
    problem,
    worst,
)

LIMIT = 10.0  # seconds, persistent/params.h's kWaitTicks
TIMED_OUT = 2  # cuda/device/status.h


class Status(NamedTuple):
    """cuda/device/status.h."""

    code: int
    tier: int = 0
    cell: int = 0
    T: int = 0
    B: int = 0
    H: int = 0
    step: int = 0
    backward: int = 0
    precision: int = 0
    D: int = 0
    ctas: int = 0


#: One tile of units a CTA and a warp of it, which meets no barrier; several warps a tile; weights in shared
#: memory; several tiles of rows.
CASES = [
    Case("lstm", "bfloat16", "cluster", T=7, B=3, H=33, D=1),
    Case("gru", "float16", "cluster", T=6, B=9, H=70, D=1, sms=4),
    Case("lstm", "tf32", "cluster", T=5, B=2, H=166, D=1),
    Case("rnn_tanh", "bfloat16", "cluster", T=6, B=2, H=200, D=1),
    Case("rnn_relu", "float16", "cluster", T=6, B=9, H=100, D=1, cluster=8, sms=8),
    Case("lstm", "bfloat16", "grid", T=7, B=3, H=40, D=1),
    Case("gru", "float32", "grid", T=5, B=20, H=20, D=1, sms=2),
    Case("rnn_relu", "tf32", "grid", T=6, B=2, H=33, D=1),
]


def finite_then_nan(rows: torch.Tensor, slopes_of_zero: bool) -> int:
    """How many of the steps (T,B,n) are right through; the others have to be NaN in all places."""
    bad = rows.isnan() | (slopes_of_zero & (rows == 0))
    whole = rows.isfinite().flatten(1).all(1)
    good = int(whole.int().cumprod(0).sum())
    assert bad[good + 1 :].all(), "finite after the first NaN"
    return good


@pytest.mark.parametrize("seed", [3, 5, 13])
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_lost_signal(ops, case, back, seed):
    """Anywhere in a pass: it ends in time, with NaN from there on, and says what it was and at which step."""
    p = problem(case)
    ops.configure(seed)
    right = forward(ops, case, p)
    saved = [t.clone() if isinstance(t, torch.Tensor) else t for t in right]
    if back:
        right = backward(ops, case, p, saved)
    seconds, signals = ops.past()
    assert seconds == 0
    assert Status(*ops.take_status()).code == 0
    for lost in sorted({0, signals // 3, 2 * signals // 3, signals - 1}):
        ops.trouble(lost)
        got = backward(ops, case, p, saved) if back else forward(ops, case, p)
        ops.trouble()
        seconds, sent = ops.past()
        assert LIMIT <= seconds <= LIMIT + 2, (lost, seconds)
        assert sent <= signals, "more was sent than without a fault"
        status = Status(*ops.take_status())
        assert status[:6] == (TIMED_OUT, TIERS[case.tier], CELLS.index(case.cell), case.T, case.B, case.H)
        assert status[7:10] == (back, PRECISIONS.index(case.precision), case.D)
        assert case.tier != "cluster" or status.ctas == case.cluster
        # A row is a step's output, or its gates' gradient; the states at the pass's end are NaN.
        steps = got[0].reshape(case.T, case.B, -1)
        if back:
            good = finite_then_nan(steps.flip(0), case.cell == "rnn_relu")
            assert status.step >= 1
        else:
            good = finite_then_nan(steps, False)
        if case.cell == "rnn_relu" and back:  # zero slopes hide a NaN
            assert good >= status.step - 1
        else:
            # The signal may have been one for the step before, on which only another CTA waits.
            assert good in (status.step - 1, status.step)
        made = steps.flip(0) if back else steps
        assert torch.equal(made[:good], _steps(right[0], case, back)[:good])
        assert got[1].isnan().any()
        if case.tier == "grid":
            assert got[3 if back else 5] == 1


def _steps(result: torch.Tensor, case: Case, back: bool) -> torch.Tensor:
    steps = result.reshape(case.T, case.B, -1)
    return steps.flip(0) if back else steps


@pytest.mark.parametrize("tier", ["cluster", "grid"])
def test_other_replicas_are_right(ops, tier):
    """What gives up is one replica: a direction, and some of the rows."""
    case = Case("lstm", "bfloat16", tier, T=5, B=9, H=33, D=2)
    p = problem(case)
    ops.configure(2)
    right = forward(ops, case, p)
    signals = ops.past()[1]
    ops.trouble(signals // 2)
    got = forward(ops, case, p)
    hn, want = got[1], right[1]
    spoilt = hn.isnan().flatten(2).any(2)  # (D,B)
    assert spoilt.any()
    assert not spoilt.all()
    assert torch.equal(hn[~spoilt], want[~spoilt])


def test_resets_and_ends(ops):
    """A row that has ended before the wait that failed keeps its right result, others do not."""
    case = Case("gru", "bfloat16", "cluster", T=6, B=4, H=40, D=1, lengths=(1, 6, 6, 6), resets="some")
    p = problem(case)
    right = forward(ops, case, p)
    ops.trouble(ops.past()[1] * 2 // 3)
    got = forward(ops, case, p)
    assert torch.equal(got[1][0, 0], right[1][0, 0])
    assert got[1][0, 1:].isnan().flatten(1).any(1).all()


@pytest.mark.parametrize("tier", ["cluster", "grid"])
def test_the_next_launch_is_right(ops, tier):
    """A failure leaves nothing behind but the status: not in memory, not in a flag, not in a barrier."""
    case = Case("lstm", "bfloat16", tier, T=5, B=3, H=40, D=1)
    p = problem(case)
    want = expected(case, p)
    forward(ops, case, p)
    ops.trouble(ops.past()[1] // 2)
    assert forward(ops, case, p)[1].isnan().any()
    ops.trouble()
    assert worst(case, fused(ops, case, p), want)[0] <= 1
    assert ops.past()[0] == 0


def test_the_first_failure_stays(ops):
    """Until it is cleared: what follows is mostly its consequence."""
    first = Case("lstm", "bfloat16", "grid", T=4, B=2, H=20, D=1)
    second = Case("gru", "float16", "cluster", T=5, B=3, H=33, D=1)
    for case in (first, second):
        p = problem(case)
        ops.trouble()
        forward(ops, case, p)
        ops.trouble(ops.past()[1] // 2)
        forward(ops, case, p)
    assert Status(*ops.take_status())[:6] == (TIMED_OUT, TIERS["grid"], 0, 4, 2, 20)
    assert Status(*ops.take_status()).code == 0
    forward(ops, second, problem(second))
    assert Status(*ops.take_status())[:6] == (TIMED_OUT, TIERS["cluster"], 1, 5, 3, 33)


#: In a process of its own: an answer is remembered for the process, and another test may have had it.
ASKED_AGAIN = """
import torch
from emu.build import NAMESPACE, library
from persistent_cases import Case, forward, problem

torch.ops.load_library(str(library()))
ops = getattr(torch.ops, NAMESPACE)
case = Case("gru", "bfloat16", "cluster", T=2, B=1, H=48, D=1, cluster=8)
p = problem(case)
ops.fail(0, 1)
try:
    forward(ops, case, p)
except RuntimeError as error:
    assert "720" in str(error), error  # cudaErrorCooperativeLaunchTooLarge
else:
    raise AssertionError("no error")
assert forward(ops, case, p)[1].isfinite().all()
"""


def test_a_failed_question_is_asked_again(ops):
    """About room for clusters: the launch that could not know does without, the next one does not."""
    tests = Path(__file__).parents[1]
    found = {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    command = [sys.executable, "-c", ASKED_AGAIN]
    done = subprocess.run(command, env=os.environ | found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
