"""The cases of ``python -m benchmarks.lab`` for pytest-benchmark: a group a case, contenders side by side.

Contenders run one after the other here; for ratios that a slow minute cannot bend, use the command.
"""

import time

from benchmarks.lab.contenders import registry as contenders
from benchmarks.lab.contenders.contender import mode
from benchmarks.lab.problem import Problem
from fastrnn.proof import timing

#: Seconds a contender is measured for, and rounds that it gets at least.
BUDGET_S, ROUNDS = 0.3, 3


def run(benchmark, case, key, threads):
    """Check a contender against torch.nn (an SRU's against the reference), then time it."""
    problem = Problem(case)
    contender = contenders.build(key, problem, threads)
    difference = None
    if key != "torch" or contenders.standard(case) == "torch":
        expected = contenders.build(contenders.standard(case), problem, threads).result()
        difference = timing.disagreement(contender.result(), expected)
        assert difference <= timing.AGREEMENT[case.dtype]

    benchmark.group = case.title
    benchmark.extra_info.update(contender=contender.label, threads=threads, difference=difference)
    with mode(case):
        repeat(benchmark, contender)


def repeat(benchmark, contender):
    """Time a contender for BUDGET_S."""
    prepare = contender.prepare or (lambda: None)
    prepare()
    start = time.perf_counter()
    contender.call()
    seconds = time.perf_counter() - start
    # A call that needs preparing cannot be repeated within a round.
    calls = max(1, round(timing.SAMPLE_S / seconds)) if contender.prepare is None else 1
    rounds = min(1000, max(ROUNDS, round(BUDGET_S / (calls * seconds))))
    setup = {} if contender.prepare is None else {"setup": contender.prepare}
    benchmark.pedantic(contender.call, rounds=rounds, iterations=calls, warmup_rounds=1, **setup)


def over(path):
    """Mark a test with the path whose cases it takes: see conftest.py."""

    def mark(test):
        test.path = path
        return test

    return mark


@over("layers")
def test_layers(benchmark, case, contender, threads):
    run(benchmark, case, contender, threads)


@over("packed")
def test_packed(benchmark, case, contender, threads):
    run(benchmark, case, contender, threads)


@over("proj")
def test_projected(benchmark, case, contender, threads):
    run(benchmark, case, contender, threads)


@over("cells")
def test_cells(benchmark, case, contender, threads):
    run(benchmark, case, contender, threads)
