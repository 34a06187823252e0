"""The programs that gpu-check runs on a GPU, on the emulator: what they find wrong, and what they run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import small_cases
import smoke
import soak
import torch
import what_ran
from emu.build import NAMESPACE, library

from fastrnn import _checks
from fastrnn._plan import gpus


@pytest.fixture
def ops():
    """The operators on an emulated H100."""
    torch.ops.load_library(str(library()))
    found, gpu = getattr(torch.ops, NAMESPACE), gpus.KNOWN["H100"]
    found.device(gpu.compute_capability, gpu.sms, gpu.shared_bytes_per_block)
    yield found
    found.device(0, 0, 0)  # none, as other tests have it


@pytest.mark.parametrize("tier", smoke.TIERS)
def test_smoke_of_every_tier(ops, tier):
    """Each kernel family's lines: every cell and type, all right; wrong numbers, an error and a lost device
    are told apart, each by its name."""
    reports = []
    chosen = list(smoke.runs(ops, tier, lambda t: t))
    if tier != "scan":
        cells = {name.split()[1] for name, _ in chosen}
        assert cells == set(smoke.CELLS)
        assert len(chosen) == len(smoke.CELLS) * 2 * (3 if tier.startswith("cluster") else 4)
    chosen = chosen[2:6]
    found = smoke.smoke(chosen, lambda: None, lambda: True, lambda *report: reports.append(report))
    assert found == dict.fromkeys((name for name, _ in chosen), "ok")
    assert reports == [(name, outcome) for name, _ in chosen for outcome in ("running", "ok")]

    def wrong():
        names, tolerance, got, want = chosen[0][1]()
        return names, tolerance, [got[0] + 1, got[1] * torch.nan, *got[2:]], want

    def breaks():
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    last = [("wrong", wrong), ("breaks", breaks), ("never", breaks)]
    found = smoke.smoke(iter(last), lambda: None, lambda: len(reports) < 11, lambda *r: reports.append(r))
    assert found["wrong"].startswith("wrong: ")
    assert "nan times its tolerance" in found["wrong"]
    assert found["breaks"] == "RuntimeError: CUDA error: an illegal memory access"
    assert "never" not in found


class Counting:
    """Operators that keep a count, of what we say that ran."""

    def __init__(self, text: str) -> None:
        self.text = text

    def cuda_clear_ran(self) -> None:
        pass

    def cuda_ran(self) -> str:
        return self.text


@pytest.mark.parametrize(
    ("text", "tier", "good"),
    [
        ("grid\tforward\t1\nstepwise\tforward\t0", "grid", True),
        ("grid\tforward\t1\nstepwise\tbackward\t2", "grid", False),
        ("cluster\tforward\t1\ncluster_8\tforward\t1", "cluster", True),
        ("cluster\tforward\t1\ncluster_8\tforward\t1", "cluster_8", True),
        ("cluster\tforward\t1\ncluster_4\tforward\t1", "cluster_8", False),
        ("", "one_cta", False),
    ],
)
def test_what_ran_is_what_was_asked_for(text, tier, good):
    """A tier that another has stood in for is credited with nothing."""
    if good:
        with what_ran.only(Counting(text), tier):
            pass
        return
    with (
        pytest.raises(AssertionError, match=f"{tier} was asked for, and what ran is"),
        what_ran.only(Counting(text), tier),
    ):
        pass


def test_the_librarys_own_count(ops):
    """Its word, not the numbers: another tier computes the same; clusters of another size are another one."""
    case = smoke.layer_cases.Case("lstm", T=6, B=2, IN=3, H=20, dtype=torch.bfloat16)
    p = smoke.layer_cases.problem(case)
    for ran, asked, good in (
        ("one_cta", "one_cta", True),
        ("one_cta", "grid", False),
        ("cluster_8", "cluster", True),
        ("cluster_8", "cluster_8", True),
        ("cluster_8", "cluster_4", False),
        ("cluster", "cluster", True),
    ):
        told = nullcontext()
        if not good:
            told = pytest.raises(AssertionError, match=f"{asked} was asked for, and what ran is {ran}")
        with told, what_ran.only(ops, asked, "forward"):
            smoke.layer_cases.forward(ops, replace(case, tier=ran), p)


@pytest.mark.parametrize("tier", soak.SIZES)
def test_soak(ops, tier, monkeypatch):
    """Runs at least twice, forward and backward; other bits, numbers that are not finite and another tier are
    each told."""
    monkeypatch.setitem(soak.SIZES, tier, (9, 33))
    case = soak.case_of(tier, "lstm", steps=12)
    p, noises = soak.made(case, "cpu"), []
    assert soak.soak(ops, case, p, 0.0, lambda: noises.append(1)) == (2, "ok")
    assert len(noises) == 1
    honest = soak.both
    flaky = iter([1.0, 1.0, 1.1])

    def other_bits(*arguments):
        y, *rest = honest(*arguments)
        return [y * next(flaky), *rest]

    monkeypatch.setattr(soak, "both", other_bits)
    runs, found = soak.soak(ops, case, p, 60.0)
    assert (runs, found) == (3, "y of run 3 has other bits than that of the first")
    monkeypatch.setattr(soak, "both", lambda *a: [t * torch.nan for t in honest(*a)])
    assert soak.soak(ops, case, p, 0.0) == (1, "y is not finite")


def test_soak_is_the_tiers_own_size():
    """At twenty thousand steps; what is drawn on the device is what the operators take."""
    for tier in soak.SIZES:
        case = soak.case_of(tier, "gru")
        assert (case.T, case.dtype, case.tier) == (20_000, torch.bfloat16, tier)
        assert small_cases.takes(case, gpus.find("H200")), case
    theirs = small_cases.layer_cases.problem(replace(case, T=3))
    for cell in soak.CELLS:
        p = soak.made(replace(case, cell=cell, T=3), "cpu")
        theirs = small_cases.layer_cases.problem(replace(case, cell=cell, T=3))
        for name in ("x", "h0", "c0"):
            mine = getattr(p, name)
            assert (mine is None) == (getattr(theirs, name) is None)
            assert mine is None or mine.shape == getattr(theirs, name).shape
        for mine, other in ((p.weights, theirs.weights), (p.cotangents, theirs.cotangents)):
            assert [(t.shape, t.dtype) for t in mine] == [(t.shape, t.dtype) for t in other]


def test_small_cases_run(ops, monkeypatch, capsys):
    """The first ones have something of everything; right and wrong are counted; none begins after its
    time."""
    found = small_cases.cases(gpus.find("H100"))
    chosen = small_cases.spread([(small_cases.layer_cases, c) for c in found if c.tier == "grid"])
    assert sorted(str(c) for _, c in chosen) == sorted(str(c) for c in found if c.tier == "grid")
    assert len({(c.cell, c.dtype, c.D, c.sizes is None) for _, c in chosen[:16]}) >= 12
    assert small_cases.spread([]) == []
    assert small_cases.run(ops, chosen[:3], lambda t: t) == (3, 0, 0)
    assert small_cases.run(ops, chosen[:3], lambda t: t, deadline=0.0) == (0, 0, 3)

    class Wrong:
        problem, expected, worst = (
            getattr(small_cases.layer_cases, n) for n in ("problem", "expected", "worst")
        )

        @staticmethod
        def fused(*arguments):
            y, *rest = small_cases.layer_cases.fused(*arguments)
            return [y + 1, *rest]

    assert small_cases.run(ops, [(Wrong, chosen[0][1]), chosen[1]], lambda t: t) == (1, 1, 0)
    assert f"FAILED {chosen[0][1]}" in capsys.readouterr().out


def test_small_cases_meet_every_kernel():
    """Each tier with each cell and type that it takes, packed and padded, saved and recomputed."""
    found = small_cases.cases(gpus.find("H100"))
    for tier in _checks.TIERS:
        mine = [c for c in found if c.tier == tier]
        assert {c.cell for c in mine} == {"lstm", "gru", "rnn_tanh", "rnn_relu"}
        assert {c.dtype for c in mine} >= {torch.float32, torch.bfloat16, torch.float16}
        assert any(c.tf32 for c in mine)
        assert {c.sizes is None for c in mine} == {True, False}
        assert {c.save for c in mine} == {"gates", "recompute"}
        assert {c.D for c in mine} == {1, 2}
    assert any(c.P for c in found)
    assert any(c.dtype == torch.float64 for c in found)


def test_small_scans_end_at_words():
    """What the scan copies by words ends with one, so that memcheck has nothing to say; rows may be odd."""
    found = small_cases.scans()
    for case in found:
        p = small_cases.sru_cases.problem(case)
        copied = [p.inputs["u"], p.inputs["x"], p.inputs["v"], p.mask_pad, p.cotangents[0]]
        assert all(t is None or t.numel() * t.element_size() % 4 == 0 for t in copied), case
    assert any(c.O % 2 and c.dtype == torch.bfloat16 for c in found)
