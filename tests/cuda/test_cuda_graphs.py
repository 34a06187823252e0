"""The stepwise tier as CUDA graphs, on the emulator's: right in every call, a graph for each kind of them,
and nothing of a caller's in it. No GPU has run one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from emu import graph_checks
from emu.faults import assert_found, outcomes
from emu.planted.graphs import FAULTS
from layer_cases import PACKED, Case, expected, forward, fused, grid, inputs_of, masked_grid, problem, worst

from fastrnn import _C
from fastrnn._ops import cuda

PLAIN = Case("lstm", T=6, B=4, IN=3, H=20, tier="stepwise_graph")


@pytest.fixture
def ops(ops, monkeypatch):
    monkeypatch.setattr(cuda, "ops", ops)
    ops.begin_anew()
    ops.configure(1)
    yield ops
    ops.begin_anew()


def right(ops, case: Case, seed: int = 0) -> None:
    p = problem(case, seed)
    ratio, what = worst(case, fused(ops, case, p), expected(case, p))
    assert ratio <= 1, (case, what)


def ran() -> dict[str, tuple[int, int]]:
    found = {t: (n["forward"], n["backward"]) for t, n in cuda.ran().items() if any(n.values())}
    cuda.clear_ran()
    return found


def key(case: Case, training: bool = True) -> str:
    sizes = {"T": case.T, "B": case.B, "I": case.IN, "H": case.H, "P": case.P, "directions": case.D}
    dtype = str(case.dtype).removeprefix("torch.")
    return _C.trust_key(case.cell, **sizes, dtype=dtype, tf32=False, training=training, rows="full")


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_every_kind_of_layer(ops, cell):
    """Whatever the stepwise tier can, from a graph: outputs and every gradient."""
    for number, case in enumerate(c for c in [*grid(), *masked_grid()] if c.cell == cell):
        right(ops, replace(case, tier="stepwise_graph"), seed=number)
    found = ran()
    # Rows of no step have nothing to capture.
    assert found["stepwise_graph"][0] > 40
    assert found.get("stepwise", (0, 0))[0] <= 3


@pytest.mark.parametrize("check", graph_checks.check_cases(), ids=lambda check: check.__name__)
def test_later_calls(ops, check):
    """Graphs that are there already, and other numbers, memory, rows and streams."""
    assert check(ops) <= 1


def test_the_same_as_a_step_at_a_time(ops):
    """The same kernels and products, whoever launches them. One capture a kind of call."""
    for case in (PLAIN, replace(PLAIN, P=5, D=2), replace(PLAIN, cell="gru", sizes=PACKED)):
        before = ops.graphs()
        for seed in range(3):
            p = problem(case, seed)
            got, want = fused(ops, case, p), fused(ops, replace(case, tier="stepwise"), p)
            for g, w in zip(got, want, strict=True):
                torch.testing.assert_close(g, w, rtol=0, atol=1e-14)
        captures, launches, _ = (a - b for a, b in zip(ops.graphs(), before, strict=True))
        assert (captures, launches) == (2, 6)


def test_never_unasked(ops):
    """Nothing is known of the device: no graph, whatever the layer."""
    for case in (PLAIN, replace(PLAIN, dtype=torch.float64, P=4), replace(PLAIN, T=2)):
        for _ in range(3):
            right(ops, replace(case, tier="auto"))
    assert ran() == {"stepwise": (9, 9)}
    assert ops.graphs()[2] == 0


@pytest.mark.parametrize("change", [{}, {"P": 4}, {"T": 3}, {"dtype": torch.float32}])
def test_where_it_is_proven(ops, change):
    """Of projections and float64 as of any layer. A kind of call that comes but once is not captured; from
    the second one on it is."""
    case = replace(PLAIN, tier="auto", **change)
    ops.cuda_trust(0, f"{key(case)}\tstepwise_graph\tstepwise_graph\n")
    right(ops, case)
    assert ran() == {"stepwise": (1, 1)}
    for seed in (1, 2):
        right(ops, case, seed)
        assert ran() == {"stepwise_graph": (1, 1)}
    ops.cuda_quarantine(0, "stepwise_graph", "it was slow")
    right(ops, case)
    assert ran() == {"stepwise": (1, 1)}


@pytest.mark.parametrize("what", ["capture", "launch"])
def test_what_the_runtime_cannot(ops, what, capfd):
    """Unasked: told of once, a step at a time, and not tried again. By name an error. Either way the next
    capture finds nothing left behind."""
    case = replace(PLAIN, tier="auto")

    def fail():
        if what == "capture":
            ops.fail_graphs(1)
        else:
            right(ops, PLAIN)  # the graph is there
            ops.fail_graphs(0, 1)

    ops.cuda_trust(0, f"{key(case)}\tstepwise_graph\tstepwise_graph\n")
    right(ops, case)
    p = problem(case)
    fail()
    cuda.clear_ran()
    capfd.readouterr()
    got = forward(ops, case, p)
    assert "tier 'stepwise_graph' could not be launched" in capfd.readouterr().err
    want = expected(case, p)
    assert worst(case, [*got[:3], *want[3:]], want)[0] <= 1
    assert ran() == {"stepwise": (1, 0)}
    assert list(cuda.quarantined(0)) == ["stepwise_graph"]
    right(ops, case)
    assert ran() == {"stepwise": (1, 1)}
    ops.cuda_release_scratch()
    ops.fail_graphs(1)
    with pytest.raises(RuntimeError, match="CUDA error 901"):
        forward(ops, PLAIN, p)
    right(ops, PLAIN)
    assert ran() == {"stepwise_graph": (1, 1)}


def test_where_the_device_has_no_room(ops):
    """For a graph's copies: unasked a step at a time, what was kept is given back, and the tier is as good as
    before. By name an error."""
    case = replace(PLAIN, tier="auto", save="nothing")
    ops.cuda_trust(0, f"{key(case, training=False)}\tstepwise_graph\tstepwise\n")
    p = problem(case)
    want = expected(case, p)

    def without(tensor: int, case: Case) -> str:
        """What ran where there is no room for one of the call's tensors, by number; "" where nothing did."""
        ops.cuda_release_scratch()
        forward(ops, replace(PLAIN, T=2, save="nothing"), problem(replace(PLAIN, T=2)))  # is kept
        forward(ops, replace(case, tier="auto"), p)  # a kind that is known
        cuda.clear_ran()
        ops.no_room(tensor)
        try:
            got = forward(ops, case, p)
        except RuntimeError:
            return ""
        finally:
            ops.no_room(-1)
        assert worst(case, [*got[:3], *want[3:]], want)[0] <= 1
        return "".join(ran())

    # First the call's own, then the graph's.
    own = next(tensor for tensor in range(12) if without(tensor, case))
    assert {without(own + more, case) for more in range(5)} == {"stepwise"}
    assert ops.graphs()[2] == 0
    assert without(own + 30, case) == "stepwise_graph"
    assert cuda.quarantined(0) == {}
    assert {without(own + more, replace(case, tier="stepwise_graph")) for more in range(5)} == {""}


def test_what_is_thrown_within_a_capture(ops, capfd):
    """By a launch, by cuBLAS, by torch: as what the runtime says of the capture as a whole."""
    case = replace(PLAIN, tier="auto", save="nothing")
    ops.cuda_trust(0, f"{key(case, training=False)}\tstepwise_graph\tstepwise\n")
    p = problem(case)
    want = expected(case, p)
    forward(ops, case, p)
    capfd.readouterr()
    ops.fail(1)
    got = forward(ops, case, p)
    assert worst(case, [*got[:3], *want[3:]], want)[0] <= 1
    assert "tier 'stepwise_graph' could not be launched" in capfd.readouterr().err
    assert ran() == {"stepwise": (2, 0)}
    assert list(cuda.quarantined(0)) == ["stepwise_graph"]
    ops.fail(1)
    with pytest.raises(RuntimeError, match="CUDA error"):
        forward(ops, replace(PLAIN, T=4), problem(replace(PLAIN, T=4)))
    right(ops, PLAIN)


def test_where_no_cublas_is_found(ops):
    """torch may have it inside itself."""
    case = replace(PLAIN, tier="auto")
    ops.cuda_trust(0, f"{key(case)}\tstepwise_graph\tstepwise_graph\n")
    ops.fail_graphs(0, 0, True)
    for _ in range(3):
        right(ops, case)
    assert ran() == {"stepwise": (3, 3)}
    assert cuda.quarantined(0) == {}
    p = problem(PLAIN)
    with pytest.raises(RuntimeError, match="'stepwise_graph' cannot run this layer: torch has its cuBLAS"):
        forward(ops, PLAIN, p)


def test_while_the_caller_captures(ops):
    """The steps go into the caller's graph, in any mode of capture, and none of ours is made meanwhile."""
    for stream, mode in ((1, True), (2, False)):
        ops.use_stream(stream)
        p = problem(PLAIN).map(ops.guarded)
        before = ops.graphs()[2]
        ops.begin_capture(stream, mode)
        got = forward(ops, PLAIN, p)[:3]
        graph = ops.end_capture(stream)
        assert ops.graphs()[2] == before
        assert ran() == {"stepwise": (1, 0)}
        other = problem(PLAIN, seed=1)
        for target, source in zip(inputs_of(p), inputs_of(other), strict=True):
            target.copy_(source)
        ops.replay(graph, stream)
        want = expected(PLAIN, p)
        assert worst(PLAIN, [*got, *want[3:]], want)[0] <= 1
    ops.use_stream(0)


def test_another_stream_is_captured(ops):
    """By somebody else, in the mode that prohibits the most: our capture and theirs both end well."""
    ops.begin_capture(3, True)
    right(ops, PLAIN)
    ops.end_capture(3)
    assert ran() == {"stepwise_graph": (1, 1)}


def test_how_many_are_kept(ops):
    """The last sixteen; all are given back when asked for, and made anew then."""
    for H in range(1, 13):
        right(ops, replace(PLAIN, T=2, H=H))
    captures, _, there = ops.graphs()
    assert there == 16
    right(ops, replace(PLAIN, T=2, H=12))
    assert ops.graphs()[0] == captures
    right(ops, replace(PLAIN, T=2, H=1))  # long gone
    assert ops.graphs()[0] == captures + 2
    assert ops.cuda_release_scratch() > 16 * (8 << 20)  # their workspaces alone
    assert ops.graphs()[2] == 0
    assert ops.cuda_release_scratch() == 0
    right(ops, PLAIN)


def test_more_kinds_in_turns_than_are_kept(ops):
    """Sixteen have a graph, the others none: nobody's is made anew every time. What is in use takes the place
    of what no longer is."""
    cases = [replace(PLAIN, T=2, H=H, tier="auto", save="nothing") for H in range(1, 19)]
    late = replace(PLAIN, T=3, tier="auto", save="nothing")
    ops.cuda_trust(
        0, "".join(f"{key(c, training=False)}\tstepwise_graph\tstepwise\n" for c in [*cases, late])
    )
    problems = [problem(case) for case in cases]
    for _ in range(2):
        for case, p in zip(cases, problems, strict=True):
            forward(ops, case, p)
    before = ops.graphs()[0]
    cuda.clear_ran()
    for _ in range(3):
        for case, p in zip(cases, problems, strict=True):
            forward(ops, case, p)
    assert ran() == {"stepwise": (6, 0), "stepwise_graph": (48, 0)}
    assert ops.graphs()[0] == before
    p = problem(late)
    for _ in range(3):
        forward(ops, late, p)
    assert ran() == {"stepwise": (1, 0), "stepwise_graph": (2, 0)}
    assert ops.graphs()[2] == 16


def test_what_a_graph_cannot(ops):
    """By name an error that says why; a variant, or more than it may keep."""
    p = problem(PLAIN)
    weights = [*p.weights, torch.ones(6, 4, 20, dtype=torch.float64)]
    with pytest.raises(RuntimeError, match="'stepwise_graph' cannot run this layer's forward pass: a var"):
        ops.rnn_forward(p.x, p.h0, p.c0, weights, None, None, None, "lstm+zoneout_h", True, 256)
    gpu = {"compute_capability": 90, "sms": 132, "shared_bytes_per_block": 227 << 10, "l2_bytes": 50 << 20}
    gpu["cooperative_launch"] = True

    def plan(**sizes):
        return _C.plan("cuda", "lstm", **({"I": 8} | sizes), training=True, gpu=gpu, tier="stepwise_graph")

    assert not plan(T=8193, B=1, H=8)["possible"]
    large = plan(T=1024, B=256, H=1024)
    assert not large["possible"]
    assert "256 MB" in large["reason"]
    small = plan(T=100, B=16, H=256, P=64)
    assert small["possible"]
    assert small["kernel"] == "stepwise_graph"
    plain = _C.plan("cuda", "lstm", T=100, B=16, I=8, H=256, P=64, training=True, gpu=gpu, tier="stepwise")
    for of in (small, small["backward"]):
        assert of["graph_bytes"] <= 256 << 20
    # What the model makes of it: two thirds of the time, as the host launches two kernels less a step.
    assert 0.5 < small["step_us"] / plain["step_us"] < 0.8


@pytest.fixture(scope="module")
def found(request):
    return outcomes(request, FAULTS, "emu.graph_checks")


def test_no_fault_no_race(found):
    assert found[None].get("worst", 2) <= 1, found[None]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(found, fault):
    """A copy that is missing, memory that is somebody's, the wrong stream: later calls show each."""
    assert_found(fault, found[fault])
