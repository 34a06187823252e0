"""What runs unasked on a GPU, on the emulator: nothing that the device has not proven, whatever the plan's
estimates say; and what becomes of a tier that fails."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from layer_cases import Case, backward, expected, forward, fused, problem, worst

from fastrnn import _C
from fastrnn._ops import cuda
from fastrnn._ops.library import CLUSTERS, TIERS
from fastrnn._plan.tuning import cache, identity, trust

H100, SHARED = (90, 132), 227 << 10
#: What every test here is about unless it says otherwise: the estimates would give it to one CTA.
PLAIN = Case("lstm", T=6, B=4, IN=3, H=20, dtype=torch.bfloat16)


@pytest.fixture
def ops(ops, monkeypatch):
    """The emulator's operators behind the package's own questions, on a GPU."""
    monkeypatch.setattr(cuda, "ops", ops)
    ops.device(*H100, SHARED)
    yield ops
    ops.device(0, 0, 0)


def key(case: Case, training: bool, rows: str = "full") -> str:
    sizes = {"T": case.T, "B": case.B, "I": case.IN, "H": case.H, "P": case.P, "directions": case.D}
    dtype = str(case.dtype).removeprefix("torch.")
    return _C.trust_key(case.cell, **sizes, dtype=dtype, tf32=case.tf32, training=training, rows=rows)


def ran() -> dict[str, tuple[int, int]]:
    """Passes since the last question, of the tiers that had any."""
    found = {t: (n["forward"], n["backward"]) for t, n in cuda.ran().items() if any(n.values())}
    cuda.clear_ran()
    return found


def right(ops, case: Case) -> None:
    p = problem(case)
    ratio, what = worst(case, fused(ops, case, p), expected(case, p))
    assert ratio <= 1, what


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_nothing_unproven_runs(ops, cell):
    """Every size: a step at a time, though the estimates name a persistent tier for each."""
    for H in (20, 150):
        case = replace(PLAIN, cell=cell, H=H)
        right(ops, case)
        assert ran() == {"stepwise": (1, 1)}
        gpu = {"compute_capability": 90, "sms": 132, "shared_bytes_per_block": SHARED, "l2_bytes": 50 << 20}
        plan = _C.plan(
            "cuda", cell, T=6, B=4, I=3, H=H, dtype="bfloat16", gpu=gpu | {"cooperative_launch": True}
        )
        assert plan["kernel"] != "stepwise"


@pytest.mark.parametrize("tier", ["one_cta", "cluster_4", "cluster_8", "cluster_16", "grid"])
@pytest.mark.parametrize(
    "case", [PLAIN, replace(PLAIN, cell="gru", lengths=(4, 0, 6)), replace(PLAIN, D=2)], ids=str
)
def test_the_proven_tier_runs(ops, case, tier):
    """With an entry its tier runs, to the bit what it is by name; the counter says which, clusters by
    size."""
    rows = "masked" if case.masked else "full"
    ops.cuda_trust(0, f"{key(case, True, rows)}\t{tier}\t{tier}\n")
    got = fused(ops, case, problem(case))
    family = tier.partition("_")[0] if tier.startswith("cluster") else tier
    assert ran() == dict.fromkeys({family, tier}, (1, 1))
    p = problem(case)
    mode = (TIERS | CLUSTERS)[tier]
    rest = (p.x, p.h0, p.c0, p.weights, *p.rows)
    y, hn, cn, gates, cells = ops.rnn_forward(*rest, case.cell, True, 1 + mode)
    grads = [*p.cotangents, None][:3]
    named = ops.rnn_backward(*grads, p.grad_cells, *rest, y, gates, cells, case.cell, True, 15 + mode)
    lstm = case.cell == "lstm"
    want = [y, hn, *([cn] if lstm else []), *named[: 2 + lstm], *named[3]]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_an_entry_is_of_its_kind(ops):
    """Passes apart, and only for what was verified: inference, another batch, length, width or type are
    kinds of their own; within a power of two of rows and steps they are one."""
    ops.cuda_trust(0, f"{key(PLAIN, True)}\tgrid\tone_cta\n")
    right(ops, PLAIN)
    assert ran() == {"grid": (1, 0), "one_cta": (0, 1)}
    right(ops, replace(PLAIN, T=5, B=3))
    assert ran() == {"grid": (1, 0), "one_cta": (0, 1)}
    others = [{"B": 5}, {"T": 9}, {"H": 21}, {"dtype": torch.float16}, {"D": 2}, {"IN": 65}, {"cell": "gru"}]
    for change in (*others, {"lengths": (3, 6, 6, 6)}, {"sizes": (4, 4, 2, 1, 1, 1)}):
        right(ops, replace(PLAIN, **change))
        assert ran() == {"stepwise": (1, 1)}, change
    forward(ops, PLAIN, problem(PLAIN), "nothing")
    assert ran() == {"stepwise": (1, 0)}


def test_torchs_win_is_an_entry_too(ops):
    """Where torch's own layer was the faster one, who comes here all the same gets a step at a time."""
    ops.cuda_trust(0, f"{key(PLAIN, True)}\tauto\tauto\n")
    right(ops, PLAIN)
    assert ran() == {"stepwise": (1, 1)}
    with pytest.raises(RuntimeError, match="lines: expected a key and the tiers of two passes"):
        ops.cuda_trust(0, "lstm\tgird\tgrid\n")


@pytest.mark.parametrize("never", [{"T": 3}, {"dtype": torch.float64}, {"P": 2}])
def test_what_no_tier_is_worth(ops, never):
    """An entry changes nothing for few steps, float64 and projections."""
    case = replace(PLAIN, **never)
    ops.cuda_trust(0, f"{key(case, True)}\tgrid\tgrid\n")
    right(ops, case)
    assert ran() == {"stepwise": (1, 1)}


@pytest.mark.parametrize("room", [8, 4])
def test_a_cluster_by_name_is_some_cluster(ops, room):
    """Without room for the plan's size smaller ones run; of a certain size, that one or an error. The launch
    remembers what it was told of a kernel, by its shared memory: no case here takes as much as another."""
    case = replace(PLAIN, H={8: 198, 4: 182}[room], tier="cluster")
    ops.room_for_clusters(room)
    right(ops, case)
    found = ran()
    assert found.pop("cluster") == (1, 1)
    assert all(int(name.removeprefix("cluster_")) <= room for name in found)
    assert "stepwise" not in found


@pytest.mark.parametrize(("tier", "H"), [("cluster", 230), ("cluster_8", 214), ("cluster_16", 246)])
def test_a_tier_by_name_runs_or_raises(ops, tier, H):
    """Never another one in its place: tests, sanitizers and records would credit what has not run."""
    ops.room_for_clusters(0)
    p = problem(replace(PLAIN, H=H, dtype=torch.float16))
    arguments = (p.x, p.h0, p.c0, p.weights, *p.rows, "lstm", True)
    with pytest.raises(
        RuntimeError, match=f"tier '{tier}' cannot run this layer's forward pass: the device has no room"
    ):
        ops.rnn_forward(*arguments, 1 + (TIERS | CLUSTERS)[tier])
    assert ran() == {}
    saved = ops.rnn_forward(*arguments, 1 + TIERS["stepwise"])
    cuda.clear_ran()
    rest = (p.x, p.h0, p.c0, p.weights, *p.rows, saved[0], *saved[3:], "lstm", True)
    with pytest.raises(RuntimeError, match="backward pass: the device has no room"):
        ops.rnn_backward(*p.cotangents, None, *rest, 15 + (TIERS | CLUSTERS)[tier])
    assert ran() == {}


def test_a_proven_tier_without_room_makes_way(ops, capfd):
    """No room just now is no fault: a step at a time, no warning, no quarantine."""
    case = replace(PLAIN, cell="gru", H=262)
    ops.cuda_trust(0, f"{key(case, True)}\tcluster_8\tcluster_8\n")
    ops.room_for_clusters(0)
    right(ops, case)
    assert capfd.readouterr().err == ""
    assert ran() == {"stepwise": (1, 1)}
    assert cuda.quarantined(0) == {}


@pytest.mark.parametrize("tier", ["one_cta", "cluster_4", "grid"])
def test_a_launch_that_fails(ops, tier, capfd):
    """Unasked: told once, a step at a time, and not tried again. By name: an error."""
    ops.cuda_trust(0, f"{key(PLAIN, True)}\t{tier}\t{tier}\n")
    p = problem(PLAIN)
    want = forward(ops, replace(PLAIN, tier="stepwise"), p)
    cuda.clear_ran()
    ops.fail(1)
    capfd.readouterr()
    got = forward(ops, PLAIN, p)
    family = "cluster" if tier == "cluster_4" else tier
    assert f"tier '{family}' could not be launched on device 0 (a planted failure)" in capfd.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert ran() == {"stepwise": (1, 0)}
    assert list(cuda.quarantined(0).values()) == ["a planted failure"]
    right(ops, PLAIN)
    assert capfd.readouterr().err == ""
    assert ran() == {"stepwise": (1, 1)}
    # By name it is another matter: quarantine is for what nobody asked for.
    mode = (TIERS | CLUSTERS)[tier]
    ops.rnn_forward(p.x, p.h0, p.c0, p.weights, *p.rows, "lstm", True, 1 + mode)
    assert tier in ran()
    ops.fail(1)
    with pytest.raises(RuntimeError, match="701"):
        ops.rnn_forward(p.x, p.h0, p.c0, p.weights, *p.rows, "lstm", True, 1 + mode)


def test_a_query_that_fails_is_asked_again(ops):
    """A failed question about room is no answer for the rest of the process."""
    case = replace(PLAIN, cell="rnn_tanh", H=278)
    ops.cuda_trust(0, f"{key(case, True)}\tcluster_8\tcluster_8\n")
    ops.fail(0, 2)
    right(ops, case)
    assert ran() == {"stepwise": (1, 1)}
    right(ops, case)
    assert ran() == {"cluster": (1, 1), "cluster_8": (1, 1)}


@pytest.mark.parametrize("asked", ["auto", "grid", "stepwise"])
def test_a_kernel_that_gave_up(ops, asked):
    """The next call says so, whatever it asks for; the tier does not run unasked any more, and the one after
    works."""
    ops.cuda_trust(0, f"{key(PLAIN, True)}\tgrid\tgrid\n")
    ops.plant_status(2, TIERS["grid"] // 16, 100, 4, 20, 17)
    case, p = replace(PLAIN, tier=asked), problem(PLAIN)
    with pytest.raises(RuntimeError, match=r"tier 'grid' gave up waiting .*T=100, B=4, H=20, step 17.*NaN"):
        forward(ops, case, p)
    assert ran() == {}
    assert list(cuda.quarantined(0)) == ["grid"]
    right(ops, PLAIN)
    assert ran() == {"stepwise": (1, 1)}
    saved = forward(ops, PLAIN, p)
    ops.plant_status(2, TIERS["one_cta"] // 16, 1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="tier 'one_cta' gave up waiting"):
        backward(ops, case, p, saved)
    assert "gave up" in cuda.quarantined(0)["one_cta"]


def test_whether_there_is_code_for_a_device(ops):
    """CUDA's own word, once more where it could not say."""
    assert cuda.has_image(0) is True
    ops.fail(0, 0, True)
    assert cuda.has_image(0) is False


def test_a_driver_too_old_for_the_library(ops, monkeypatch):
    """The library has a CUDA runtime of its own, so CUDA may refuse it where it serves torch: a no for that
    device, told once with what CUDA says, and never kernels that fail."""
    said = "CUDA driver version is insufficient for CUDA runtime version"

    def refused(device):
        raise RuntimeError(f"{said}\nmore words")

    monkeypatch.setattr(cuda, "unusable", {})
    monkeypatch.setattr(cuda, "ops", SimpleNamespace(cuda_has_image=refused))
    with pytest.warns(RuntimeWarning, match=f"cannot run on cuda:1, torch's own layers run there: {said}\\."):
        assert cuda.has_image(1) is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cuda.has_image(1) is False
    assert cuda.unusable == {1: said}


def test_from_the_cache_to_the_kernel_and_back(ops, tmp_path, monkeypatch):
    """What tuning has kept runs in the next process, where C++ plans a pass; what fails there is kept too."""
    gpu = {"gpu": "emulated"}
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path))
    monkeypatch.delenv("FASTRNN_TUNE", raising=False)
    monkeypatch.setattr(identity, "of", lambda _: gpu)
    trust.forget()
    candidates = {f"grid {which}": {"state": "verified"} for which in ("forward", "backward")}
    record = {"forward": "grid", "backward": "grid", "candidates": candidates}

    def tuned(document):
        cache.device_of(document, identity.text(gpu), gpu)["kinds"][key(PLAIN, True)] = record

    trust.store().update(tuned)
    right(ops, PLAIN)
    assert ran() == {"stepwise": (1, 1)}
    try:
        trust.device(0)  # as the first call of a layer does
        right(ops, PLAIN)
        assert ran() == {"grid": (1, 1)}
        ops.fail(1)
        right(ops, PLAIN)
        assert ran() == {"stepwise": (1, 1)}
        assert trust.save_quarantine()
        assert not trust.save_quarantine()
        kept = trust.store().read()["devices"][identity.text(gpu)]["quarantined"]
        assert kept == {"grid": "a planted failure"}
        trust.forget()  # the next process
        trust.device(0)
        right(ops, PLAIN)
        assert ran() == {"stepwise": (1, 1)}
        monkeypatch.setenv("FASTRNN_TUNE", "off")
        trust.forget()
        assert trust.device(0).lines() == ""
        assert cuda.quarantined(0) == {}
    finally:
        trust.forget()


def test_what_a_give_up_leaves(ops):
    """Every test begins on an emulated device that knows of none before it, see conftest.py: no word of a
    kernel, no quarantine, nothing proven, nothing that fails or gets lost."""
    ops.cuda_trust(0, f"{key(PLAIN, True)}\tgrid\tgrid\n")
    ops.trouble(0)
    forward(ops, replace(PLAIN, tier="grid", H=40), problem(replace(PLAIN, H=40)))
    with pytest.raises(RuntimeError, match="tier 'grid' gave up waiting"):
        forward(ops, PLAIN, problem(PLAIN))
    assert list(cuda.quarantined(0)) == ["grid"]
    forward(ops, replace(PLAIN, tier="grid", H=40), problem(replace(PLAIN, H=40)))  # gives up again
    ops.fail(1)
    ops.begin_anew()
    assert cuda.quarantined(0) == {}
    right(ops, PLAIN)
    assert ran() == {"stepwise": (1, 1)}  # nothing is proven
    right(ops, replace(PLAIN, tier="grid", H=40))
    assert ran() == {"grid": (1, 1)}
    assert ops.past()[0] == 0
