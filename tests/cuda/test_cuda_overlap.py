"""Persistent tiers whose loop begins while x's product still runs, on the emulator: two streams, in whatever
order their events leave open. No GPU has run them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from emu import overlap_checks
from emu.faults import assert_found, outcomes
from emu.overlap_checks import CASES, H100, PLAIN, off
from emu.planted.overlap import FAULTS
from layer_cases import backward, expected, forward, problem

from fastrnn import _C
from fastrnn._ops import cuda
from fastrnn._plan import gpus


@pytest.fixture
def ops(ops, monkeypatch):
    monkeypatch.setattr(cuda, "ops", ops)
    ops.begin_anew()
    ops.configure(1)
    ops.device(*H100)
    yield ops
    ops.begin_anew()
    ops.device(0, 0, 0)


def ran() -> dict[str, tuple[int, int]]:
    found = {t: (n["forward"], n["backward"]) for t, n in cuda.ran().items() if any(n.values())}
    cuda.clear_ran()
    return found


def right(ops, case, tier: str) -> None:
    """Forward as the case has it, with a tier's name."""
    p = problem(case)
    want = expected(case, p)
    assert off(case, forward(ops, replace(case, tier=tier), p), want) <= 1


@pytest.mark.parametrize("check", overlap_checks.check_cases(), ids=lambda check: check.__name__)
def test_right(ops, check):
    assert check(ops) <= 1


def test_what_is_counted(ops):
    """The tier, and that the product ran beside it; clusters by size as well."""
    for case in CASES:
        right(ops, case, case.tier)
        family = case.tier.removesuffix("_overlap")
        names = {family, case.tier} | ({"cluster"} if "cluster" in family else set())
        assert ran() == dict.fromkeys(names, (1, 0))


def test_never_unasked(ops):
    """By name, and where it is proven; its tier's quarantine is its own."""
    case = replace(PLAIN, save="nothing")
    right(ops, case, "auto")
    assert ran() == {"stepwise": (1, 0)}
    sizes = {"T": case.T, "B": case.B, "I": case.IN, "H": case.H}
    key = _C.trust_key(case.cell, **sizes, dtype="float32", training=False)
    ops.cuda_trust(0, f"{key}\tone_cta_overlap\tstepwise\n")
    right(ops, case, "auto")
    assert ran() == {"one_cta": (1, 0), "one_cta_overlap": (1, 0)}
    ops.cuda_quarantine(0, "one_cta", "it gave up")
    right(ops, case, "auto")
    assert ran() == {"stepwise": (1, 0)}


def test_steps_that_are_too_few(ops):
    """They share an outcome with more steps: the same kernel, behind the product."""
    case = replace(PLAIN, T=40, B=4, save="nothing")
    sizes = {"T": 64, "B": case.B, "I": case.IN, "H": case.H}
    key = _C.trust_key(case.cell, **sizes, dtype="float32", training=False)
    ops.cuda_trust(0, f"{key}\tone_cta_overlap\tstepwise\n")
    right(ops, case, "auto")
    assert ran() == {"one_cta": (1, 0), "one_cta_overlap": (1, 0)}
    sizes["T"] = 32
    key = _C.trust_key(case.cell, **sizes, dtype="float32", training=False)
    ops.cuda_trust(0, f"{key}\tone_cta_overlap\tstepwise\n")
    right(ops, replace(case, T=20), "auto")
    assert ran() == {"one_cta": (1, 0)}


def test_a_launch_that_fails_between_chunks(ops, capfd):
    """Unasked: told of once, and the stepwise tier computes all of it anew. By name an error. Both
    streams are done with when the call is over."""
    case = replace(PLAIN, save="nothing", bias=False)
    sizes = {"T": case.T, "B": case.B, "I": case.IN, "H": case.H}
    key = _C.trust_key(case.cell, **sizes, dtype="float32", training=False)
    ops.cuda_trust(0, f"{key}\tone_cta_overlap\tstepwise\n")
    ops.fail(1)
    right(ops, case, "auto")
    assert "tier 'one_cta' could not be launched" in capfd.readouterr().err
    assert ran() == {"stepwise": (1, 0)}
    ops.fail(1)
    p = problem(case)
    with pytest.raises(RuntimeError, match="CUDA error 701"):
        forward(ops, case, p)
    right(ops, case, "one_cta_overlap")


def test_backward_has_no_product_before_it(ops):
    p = problem(PLAIN)
    saved = forward(ops, PLAIN, p)
    with pytest.raises(RuntimeError, match="'one_cta_overlap' cannot run this layer's backward pass"):
        backward(ops, PLAIN, p, saved)


SHAPE = {"cell": "lstm", "T": 100, "B": 64, "I": 512, "H": 256, "dtype": "float32"}


def plan(tier: str, **changes):
    return _C.plan("cuda", **(SHAPE | changes), gpu=gpus.KNOWN["H100"].properties(), tier=tier)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"directions": 2}, "two directions"),
        ({"rows": "packed"}, "rows of unequal length"),
        ({"T": 31}, "few steps"),
        ({"I": 16, "T": 40, "B": 1, "H": 64}, "few inputs"),
        ({}, "less than a quarter of the GPU idle"),
    ],
)
def test_where_nothing_runs_beside(change, reason):
    """The plan says why, before anything is launched."""
    tier = "one_cta_overlap" if change.get("H") == 64 else "grid_overlap"
    refused = plan(tier, **change)
    assert not refused["possible"]
    assert reason in refused["reason"]


MODELLED = {
    "grid": {"H": 384, "B": 16},
    "cluster_16": {"H": 512, "dtype": "bfloat16"},
    "cluster_16 of tf32": {"H": 512, "tf32": True},
}


@pytest.mark.parametrize("case", MODELLED)
def test_what_the_model_says(case):
    """Faster where the product is long and SMs are idle, by no more than the product."""
    change, tier = MODELLED[case], case.split()[0]
    beside, without = plan(f"{tier}_overlap", **change), plan(tier, **change)
    assert 2 <= beside["chunks"] <= 6
    assert beside["input_projection"] == "beside it, in chunks"
    shape = SHAPE | change
    rate = 400e6 if shape["dtype"] == "bfloat16" else 200e6 if "tf32" in shape else 35e6
    product = 2 * shape["B"] * 4 * shape["H"] * shape["I"] / rate
    assert 0 < without["step_us"] - beside["step_us"] < product


def test_where_the_model_says_no():
    """A short product is not worth the chunks' starts; by name it runs."""
    short = {"dtype": "bfloat16", "I": 128, "B": 4}
    assert plan("grid_overlap", **short)["step_us"] > plan("grid", **short)["step_us"]


@pytest.fixture(scope="module")
def found(request):
    return outcomes(request, FAULTS, "emu.overlap_checks")


def test_no_fault(found):
    assert found[None].get("worst", 2) <= 1, found[None]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(found, fault):
    """A missing event, a chunk that reads or writes another one's: some order shows each."""
    assert_found(fault, found[fault])
