"""What run_faults runs of the stepwise tier as CUDA graphs: calls one after another, of which the later ones
find what the first ones have left.

A check is a function of the operators; it raises or returns the worst error in units of its tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from layer_cases import PACKED, Case, expected, forward, fused, inputs_of, problem, worst

PLAIN = Case("lstm", T=5, D=2, tier="stepwise_graph")
KINDS = (
    PLAIN,
    Case("gru", D=1, save="recompute", tier="stepwise_graph"),
    Case("rnn_tanh", B=5, lengths=(2, 0, 4), reset="some", tier="stepwise_graph"),
    Case("lstm", P=3, lengths=(1, 4, 2), tier="stepwise_graph"),
    Case("gru", sizes=PACKED, dtype=torch.bfloat16, tier="stepwise_graph"),
    Case("lstm", B=5, D=1, dtype=torch.float32, tf32=True, tier="stepwise_graph"),
    Case("rnn_relu", P=0, D=2, dtype=torch.float16, tier="stepwise_graph"),
)


def ratio(ops, case: Case, p) -> float:
    return worst(case, fused(ops, case, p), expected(case, p))[0]


def largest(found: list[float]) -> float:
    """NaN is larger than all."""
    return max(1e9 if one != one else one for one in found)


def other_numbers(ops) -> float:
    """Kinds of calls in turns, each again and again: other inputs, states, rows and weights every time, in
    other memory, of which some is gone by then."""
    found, first = [], {}
    for seed in (0, 1, 2):
        for case in KINDS:
            p = problem(case, seed).map(ops.guarded)
            found.append(ratio(ops, case, p))
            if seed == 0:
                first[case] = p, expected(case, p)
    for case, (p, want) in first.items():  # whose numbers nobody may have touched
        found.append(worst(case, fused(ops, case, p), want)[0])
    return largest(found)


def changed_in_place(ops) -> float:
    """The same memory with other numbers in it, as an optimizer leaves the weights."""
    found = []
    for case in KINDS:
        p = problem(case).map(ops.guarded)
        found.append(ratio(ops, case, p))
        for t in (*p.weights, p.h0, *([] if p.c0 is None else [p.c0])):
            t.mul_(-0.75)
        found.append(ratio(ops, case, p))
    return largest(found)


def other_rows(ops) -> float:
    """As many rows in all, in as many steps, but others at each of them; other lengths and resets."""
    found = []
    for sizes in ((4, 4, 2, 2), (4, 3, 3, 2)):
        case = Case("gru", sizes=sizes, D=2, tier="stepwise_graph")
        found.append(ratio(ops, case, problem(case)))
    for lengths in ((4, 1, 2), (0, 4, 3), (2, 2, 4)):
        case = Case("lstm", D=2, lengths=lengths, reset="some", tier="stepwise_graph")
        found.append(ratio(ops, case, problem(case, seed=sum(lengths))))
    return largest(found)


def streams(ops) -> float:
    """Two streams at once, in orders that the device might take: calls of the same kind, none waiting for the
    other."""
    found = []
    case = replace(PLAIN, save="nothing")
    problems = [problem(case, seed).map(ops.guarded) for seed in range(4)]
    want = [expected(case, p)[:3] for p in problems]
    for order in range(8):
        ops.streams(True, order, False)
        got = []
        for number, p in enumerate(problems):
            ops.use_stream(1 + number % 2)
            got.append(forward(ops, case, p)[:3])
        ops.wait()
        for g, w in zip(got, want, strict=True):
            found += [float((a - b).abs().nan_to_num(1e9).max()) * 1e11 for a, b in zip(g, w, strict=True)]
    ops.streams()
    ops.use_stream(0)
    return largest(found)


def behind_other_work(ops) -> float:
    """Inputs that are made late, on the stream of the call."""
    found = []
    for order in range(6):
        ops.use_stream(1)
        p = problem(PLAIN, order)
        want = expected(PLAIN, p)
        late = p.map(lambda t: ops.guarded(torch.full_like(t, torch.nan)))
        late.cotangents = p.cotangents
        ops.streams(True, order, False)
        for target, source in zip(inputs_of(late), inputs_of(p), strict=True):
            ops.copy_late(target, source)
        got = forward(ops, PLAIN, late)[:3]
        ops.wait()
        found.append(worst(PLAIN, [*got, *want[3:]], want)[0])
        ops.streams()
        ops.use_stream(0)
    return largest(found)


def callers_graph(ops) -> float:
    """A caller who captures gets the steps into its own graph, which needs nothing of what is kept here."""
    ops.use_stream(1)
    case = replace(PLAIN, save="nothing")
    p = problem(case).map(ops.guarded)
    forward(ops, case, p)
    ops.begin_capture(1, True)
    y, hn, cn, *_ = forward(ops, case, p)
    graph = ops.end_capture(1)
    ops.cuda_release_scratch()
    found = []
    for seed in (1, 2):
        other = problem(case, seed)
        for target, source in zip(inputs_of(p), inputs_of(other), strict=True):
            target.copy_(source)
        ops.replay(graph, 1)
        want = expected(case, p)
        found.append(worst(case, [y, hn, cn, *want[3:]], want)[0])
    ops.use_stream(0)
    return largest(found)


def callers_surroundings(ops) -> float:
    """A memory pool that the caller has chosen, whose memory others get when the caller is through with it;
    and inference mode, whose tensors nobody may change outside. A graph outlives both."""
    case = replace(PLAIN, T=3, save="nothing")
    p = problem(case).map(ops.guarded)
    want = expected(case, p)
    with torch.inference_mode():
        ops.use_pool(True)
        got = [forward(ops, case, p)[:3]]
        ops.use_pool(False)
    found = [worst(case, [*got[0], *want[3:]], want)[0]]
    del got
    if ops.pooled():
        raise AssertionError("memory of the caller's pool is kept")
    for mode in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        with mode:
            got = forward(ops, case, p)[:3]
        found.append(worst(case, [*got, *want[3:]], want)[0])
    return largest(found)


def check_cases() -> list[Callable]:
    return [
        other_numbers,
        changed_in_place,
        other_rows,
        streams,
        behind_other_work,
        callers_graph,
        callers_surroundings,
    ]


def worst_of(ops, check: Callable) -> tuple[float, str]:
    return check(ops), check.__name__
