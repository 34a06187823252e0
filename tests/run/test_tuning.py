"""fastrnn tune without a GPU: what becomes of candidates, and who replaces torch's own layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tuning_fakes import A100, FAULTS, GPU, H100, KIND, Scripted, known, tuned

from fastrnn._plan.tuning import cache, decide, identity, session, trust
from fastrnn._plan.tuning.kinds import Candidate, Stack, candidates, of_stack

GRAPH = "stepwise_graph"


@pytest.mark.parametrize("change", [{"P": 4}, {"dtype": "float64"}])
def test_what_a_graph_alone_takes(change):
    """Projections and float64 have a candidate, and a kind, since the stepwise tier has one to prove."""
    kind = replace(KIND, **change)
    assert {c.tier for c in candidates(kind, H100)} == {GRAPH}
    stack = Stack("lstm", 6, 3, 4, 20, kind.P, 2, 2, kind.dtype, False, True, False)
    assert [(k.I, k.P, k.dtype) for k in of_stack(stack)] == [
        (n, kind.P, kind.dtype) for n in (4, 2 * (kind.P or 20))
    ]
    assert len({k.key for k in of_stack(stack)} | {KIND.key}) == 2


def test_which_candidates_there_are():
    """What the plan says could take each pass: no clusters before compute capability 9.0, none of float32."""
    assert [c.name for c in candidates(KIND, A100)] == [
        f"{tier} {which}" for tier in ("one_cta", "grid", GRAPH) for which in ("forward", "backward")
    ]
    assert len(list(candidates(KIND, H100))) == 12
    assert all(c.which == "forward" for c in candidates(replace(KIND, training=False), H100))
    assert not any("cluster" in c.tier for c in candidates(replace(KIND, dtype="float32"), H100))
    assert any("cluster" in c.tier for c in candidates(replace(KIND, dtype="float32", tf32=True), H100))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_in_quarantine(store, fault):
    """With the word for what it was; the other candidates are tuned all the same, and it is not tried
    again."""
    runner = Scripted(store, {"grid forward": FAULTS[fault]})
    record = tuned(runner)
    assert record["candidates"]["grid forward"]["state"] == "quarantined"
    assert record["candidates"]["grid forward"]["why"].startswith(fault)
    assert set(runner.seen) == {"running"}  # written before the launch
    assert (record["forward"], record["backward"]) == ("one_cta", "one_cta")
    again = Scripted(store)
    assert tuned(again) == known(store)
    assert again.asked == ["time"]
    assert known(store)["candidates"]["grid forward"]["state"] == "quarantined"
    tuned(Scripted(store), again=True)
    assert known(store)["candidates"]["grid forward"]["state"] == "verified"


def test_slow_ends_in_quarantine(store):
    """What a step at a time outruns."""
    record = tuned(Scripted(store, us={"grid forward": 50.5, "grid backward": 49.0}))
    assert record["candidates"]["grid forward"]["state"] == "quarantined"
    assert record["candidates"]["grid forward"]["why"] == "slow: 50.5 µs forward, a step at a time takes 50.0"
    assert record["candidates"]["grid backward"] == {"state": "verified", "why": "", "us": 49.0}


def test_a_timing_that_hangs(store):
    """One candidate that hangs only now takes no other's time with it."""
    runner = Scripted(store, us={"grid backward": FAULTS["hang"]})
    record = tuned(runner)
    assert record["candidates"]["grid backward"]["why"].startswith("hang")
    assert record["candidates"]["grid forward"]["state"] == "verified"
    assert record["forward"] == "one_cta"


def test_what_was_running_when_the_process_ended(store):
    """A crash or hang of everything is found at the next start."""

    def planted(document):
        kinds = cache.device_of(document, identity.text(GPU), dict(GPU))["kinds"]
        kinds[KIND.key] = {"candidates": {"grid forward": {"state": "running", "why": ""}}}

    store.update(planted)
    runner = Scripted(store)
    record = tuned(runner)
    assert "grid forward" not in runner.asked
    assert record["candidates"]["grid forward"] == {"state": "quarantined", "why": cache.ENDED}
    assert "crash or hang" in cache.ENDED
    # Read alone, before anybody has tuned again, it is no proof either.
    kind = {"forward": "grid", "candidates": {"grid forward": {"state": "running"}}}
    device = trust.Device(0)
    device._take({"kinds": {replace(KIND, training=False).key: kind}})
    assert not device.entries


def test_an_interrupt_says_nothing(store):
    """Ctrl-C is no fault of the candidate's, nor is a child that could not be started."""
    with pytest.raises(KeyboardInterrupt):
        tuned(Scripted(store, {"grid forward": KeyboardInterrupt()}))
    assert known(store)["candidates"]["grid forward"]["state"] == "not run"
    record = tuned(
        Scripted(store, {"grid forward": session.Verdict(False, "not run", "no child", ran=False)})
    )
    assert record["candidates"]["grid forward"]["state"] == "not run"
    assert record["forward"] == "one_cta"


def test_verify_only(store):
    """Nothing is timed, so nothing new runs."""
    runner = Scripted(store)
    record = tuned(runner, timed=False)
    assert "time" not in runner.asked
    assert "forward" not in record
    assert {c["state"] for c in record["candidates"].values()} == {"verified"}
    device = trust.Device(0)
    device._take({"kinds": {KIND.key: record}})
    assert not device.entries


@pytest.mark.parametrize(
    ("us", "stepwise", "torch_us", "want"),
    [
        ({"one_cta": (10, 20), "grid": (12, 11)}, 50, 30, ("one_cta", "grid")),
        ({"one_cta": (10, 20), "grid": (12, 11)}, 50, 22, ("torch", "torch")),  # wins by less than 5%
        ({"one_cta": (10, 20), "grid": (12, 11)}, 50, 22.2, ("one_cta", "grid")),
        ({"one_cta": (10, None)}, 12, 30, ("one_cta", "stepwise")),
        ({}, 12, 30, ("stepwise", "stepwise")),
        ({}, 15, 30, ("torch", "torch")),
        (
            {"one_cta": (10, 10)},
            10.2,
            None,
            ("stepwise", "stepwise"),
        ),  # torch cannot: stepwise is to be beaten
        ({"one_cta": (9, 9)}, 10, None, ("one_cta", "one_cta")),
    ],
)
def test_who_replaces_torchs_own_layer(us, stepwise, torch_us, want):
    """Forward and backward together, by 5% or more."""
    times = {
        Candidate(tier, which): found
        for tier, both in us.items()
        for which, found in zip(("forward", "backward"), both, strict=True)
        if found is not None
    }
    found = decide.decide(KIND, times, {"forward": stepwise, "backward": stepwise}, torch_us)
    assert found[:2] == want
    assert "µs" in found.why
