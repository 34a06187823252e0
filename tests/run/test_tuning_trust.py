"""What a process knows of its GPU: the cache, shipped tables, FASTRNN_TUNE, first calls, quarantine."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from tuning_fakes import GPU, KIND, first_call, written

import fastrnn
from fastrnn._ops import cuda
from fastrnn._plan.tuning import cache, identity, trust


def test_the_cache_is_trusted(gpu):
    assert trust.doubt(trust.device(0), [KIND]) == trust.UNVERIFIED
    written(gpu)
    assert trust.doubt(trust.device(0), [KIND]) == trust.UNVERIFIED  # looked up once
    before = trust.generation
    trust.learnt(0)
    assert trust.generation != before
    assert trust.doubt(trust.device(0), [KIND]) is None
    assert trust.device(0).lines() == f"{KIND.key}\tgrid\tone_cta\n"
    for other in (
        replace(KIND, H=21),
        replace(KIND, training=False),
        replace(KIND, B=5),
        replace(KIND, dtype="float16"),
    ):
        assert trust.doubt(trust.device(0), [KIND, other]) == trust.UNVERIFIED


@pytest.mark.parametrize("change", list(GPU))
def test_only_of_this_very_device(gpu, monkeypatch, change):
    """Another GPU, driver or build has proven nothing."""
    written(gpu)
    monkeypatch.setattr(identity, "of", lambda _: GPU | {change: "other"})
    assert trust.doubt(trust.device(0), [KIND]) == trust.UNVERIFIED


def test_only_what_was_verified(gpu):
    """An entry whose winner is not verified is none, whatever it says."""
    for state in ("quarantined", "running", "not run"):
        written(gpu, state=state)
        trust.learnt(0)
        assert trust.doubt(trust.device(0), [KIND]) == trust.UNVERIFIED
    written(gpu, quarantined={"grid": "it gave up"})
    trust.learnt(0)
    assert "quarantine" in trust.doubt(trust.device(0), [KIND])
    written(gpu, "torch", "torch")
    trust.learnt(0)
    assert "torch's own layer is as fast" in trust.doubt(trust.device(0), [KIND])


def test_shipped_tables(gpu, tmp_path, monkeypatch):
    """Tables of measured devices, in the cache's form; what one leaves open may be anything; the user's
    wins."""
    assert cache.shipped() == []  # none today
    table = cache.Cache(tmp_path / "table.json")
    written(table, "one_cta", "one_cta", device={"gpu": "Test GPU"})
    monkeypatch.setattr(cache, "shipped", lambda: [table.read()])
    assert trust.doubt(trust.device(0), [KIND]) is None
    assert trust.entry(0, KIND) == ("one_cta", "one_cta")
    written(gpu, "grid", "grid")
    trust.learnt(0)
    assert trust.entry(0, KIND) == ("grid", "grid")
    monkeypatch.setattr(identity, "of", lambda _: GPU | {"gpu": "Other"})
    trust.learnt(0)
    assert trust.entry(0, KIND) is None


def test_the_switch(gpu, monkeypatch):
    """FASTRNN_TUNE: off knows nothing; verified is the default; what is none of them is said once."""
    written(gpu)
    monkeypatch.setenv("FASTRNN_TUNE", "off")
    assert trust.doubt(trust.device(0), [KIND]) == trust.UNVERIFIED
    monkeypatch.setenv("FASTRNN_TUNE", "verified")
    trust.learnt(0)
    assert trust.doubt(trust.device(0), [KIND]) is None
    monkeypatch.setenv("FASTRNN_TUNE", "always")
    monkeypatch.setattr(trust, "_warned", set())
    with pytest.warns(RuntimeWarning, match="FASTRNN_TUNE: expected one of off, verified, on, got 'always'"):
        assert trust.mode() == "verified"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trust.mode() == "verified"


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU."""

    is_cuda, is_cpu = True, False
    device = torch.device("cuda", 0)


def test_the_first_call(on):
    """A kind that is new is tuned once, and what won runs from then on; the caller's generators stay as they
    are."""
    state = torch.get_rng_state()
    assert first_call() is None
    assert on.asked.count("time") == 1
    assert first_call() is None
    assert on.asked.count("time") == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_first_call_that_finds_nothing(on):
    """Is not made again by every later call."""
    on.torch_us = 1.0
    assert "as fast" in first_call()
    on.verdicts = {}
    count = len(on.asked)
    assert "as fast" in first_call()
    assert len(on.asked) == count


@pytest.mark.parametrize(
    "where", ["verified", "deterministic", "capture", "mode", "subclass", "tracing", "compiling"]
)
def test_where_nothing_is_tuned(on, monkeypatch, where):
    """Never within a capture, a compiler, an export or a mode, nor on tensors that are not plain ones; and
    with deterministic algorithms what is known is used, and nothing timed."""
    if where == "verified":
        monkeypatch.setenv("FASTRNN_TUNE", "verified")
    elif where == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    elif where == "capture":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    elif where == "mode":
        monkeypatch.setattr(trust.torch_state, "dispatch_modes", lambda: 1)
    elif where == "subclass":
        monkeypatch.setattr(trust, "eligible", lambda _, e=trust.eligible: False)
    elif where == "tracing":
        monkeypatch.setattr(trust.torch_state, "tracing", lambda: True)
    elif where == "compiling":
        monkeypatch.setattr(trust.torch_state, "compiling", lambda: True)
    assert first_call() == trust.UNVERIFIED
    assert not on.asked


def test_eligible_is_of_plain_tensors(gpu, monkeypatch):
    monkeypatch.setenv("FASTRNN_TUNE", "on")
    assert trust.eligible(torch.zeros(1))
    assert not trust.eligible(torch.zeros(1).as_subclass(OnGpu))


def test_quarantine_finds_its_way_to_the_cache(gpu, monkeypatch):
    """What C++ has put in quarantine is known to the next process; cuda_status raises, once."""
    texts = ["tier 'grid' gave up waiting (code 2): lstm, T=100, B=4, H=20, step 17", ""]
    monkeypatch.setattr(cuda, "status", lambda _: texts.pop(0))
    monkeypatch.setattr(cuda, "quarantined", lambda _: {"grid": "it gave up"})
    written(gpu)
    with pytest.raises(RuntimeError, match=r"grid.*T=100, B=4, H=20, step 17.*quarantine"):
        fastrnn.cuda_status()
    assert gpu.read()["devices"][identity.text(GPU)]["quarantined"] == {"grid": "it gave up"}
    found = fastrnn.cuda_status(0)
    assert found["devices"][0]["quarantined"] == {"grid": "it gave up"}
    assert found["devices"][0]["proven"] == {KIND.key: ("grid", "one_cta")}
    assert "quarantine" in trust.doubt(trust.device(0), [KIND])
    for wrong in ("cpu", "nonsense", 1.5):
        with pytest.raises(ValueError, match="device: expected a GPU"):
            fastrnn.cuda_status(wrong)
