"""What run_faults runs of persistent tiers whose loop has x's product beside it: streams are queues, worked
off in one after another of the orders that events leave open, and the inputs are made late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from layer_cases import Case, backward, expected, forward, inputs_of, names, problem, worst
from tolerances import worst_of as worst_among

from .graph_checks import largest

H100 = (90, 132, 227 << 10)
#: More inputs than a kernel makes the product of; two chunks, the second one shorter.
PLAIN = Case("lstm", T=37, B=3, IN=70, H=20, dtype=torch.float32, tier="one_cta_overlap")
CASES = (
    PLAIN,
    replace(PLAIN, cell="gru", T=64, reset="some", save="recompute"),
    replace(PLAIN, cell="rnn_tanh", dtype=torch.bfloat16, bias=False),
    replace(PLAIN, cell="gru", T=33, H=40, dtype=torch.float16, tier="grid_overlap"),
    replace(PLAIN, T=32, B=2, H=70, dtype=torch.bfloat16, tier="cluster_8_overlap", save="nothing"),
)


def off(case: Case, saved: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> float:
    """A forward pass's results."""
    outputs = 2 + (case.cell == "lstm")
    given = names(case)[:outputs], list(saved[:outputs]), list(want[:outputs])
    return worst_among(*given, case.tolerance, case.dtype)[0]


def one(ops, case: Case, order: int) -> float:
    ops.device(*H100)
    ops.use_stream(1)
    p = problem(case, order)
    want = expected(case, p)
    late = p.map(lambda t: ops.guarded(torch.full_like(t, 1 if t.dtype == torch.bool else torch.nan)))
    late.cotangents, late.grad_cells, late.padding = p.cotangents, p.grad_cells, p.padding
    ops.streams(True, order, False)
    for target, source in zip(inputs_of(late), inputs_of(p), strict=True):
        ops.copy_late(target, source)
    saved = forward(ops, case, late)
    ops.wait()
    ops.streams()
    ops.use_stream(0)
    if case.save == "nothing":
        return off(case, saved, want)
    lstm = case.cell == "lstm"
    x, h0, c0, weights = backward(ops, replace(case, tier="stepwise"), late, saved)
    return worst(case, [*saved[: 2 + lstm], x, h0, *([c0] if lstm else []), *weights], want)[0]


def while_another_captures(ops) -> float:
    """Somebody else, in the mode that prohibits the most. A process' first call makes the second stream."""
    ops.device(*H100)
    case = replace(PLAIN, save="nothing")
    p = problem(case)
    ops.begin_capture(3, True)
    saved = forward(ops, case, p)
    ops.end_capture(3)
    return off(case, saved, expected(case, p))


def in_any_order(ops) -> float:
    """The streams one after another, the first ones or the last ones first, in turns, at random."""
    return largest([one(ops, case, order) for order in range(6) for case in CASES[: 5 if order < 2 else 1]])


def callers_graph(ops) -> float:
    """A caller who captures gets the product and one loop, on the stream that is captured."""
    ops.device(*H100)
    ops.use_stream(1)
    case = replace(PLAIN, save="nothing")
    p = problem(case).map(ops.guarded)
    ops.begin_capture(1, True)
    saved = forward(ops, case, p)
    graph = ops.end_capture(1)
    found = []
    for seed in (1, 2):
        for target, source in zip(inputs_of(p), inputs_of(problem(case, seed)), strict=True):
            target.copy_(source)
        ops.replay(graph, 1)
        found.append(off(case, saved, expected(case, p)))
    ops.use_stream(0)
    return largest(found)


def check_cases() -> list[Callable]:
    return [while_another_captures, in_any_order, callers_graph]


def worst_of(ops, check: Callable) -> tuple[float, str]:
    return check(ops), check.__name__
