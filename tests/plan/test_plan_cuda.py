"""The plan of a layer on a GPU: which tier, cut how, for GPUs that need not be here."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastrnn import _C
from fastrnn._plan import gpus

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def plan(H, B=16, T=100, *, cell="lstm", dtype="bfloat16", gpu="H100", tier="auto", tf32=False, P=0, D=1):
    """Both passes of a layer: forward's entries, and backward's under "backward"."""
    sizes = {"T": T, "B": B, "I": H, "H": H, "P": P, "directions": D}
    return _C.plan(
        device="cuda",
        cell=cell,
        **sizes,
        dtype=dtype,
        training=True,
        gpu=gpus.find(gpu).properties(),
        tf32=tf32,
        tier=tier,
    )


@pytest.mark.parametrize(
    ("arguments", "tier"),
    [
        ({"H": 64}, "one_cta"),
        ({"H": 128, "B": 1}, "one_cta"),
        ({"H": 192}, "cluster"),
        ({"H": 256, "B": 64, "cell": "gru"}, "cluster"),
        ({"H": 512, "cell": "rnn_tanh", "D": 2}, "cluster"),
        ({"H": 256, "dtype": "float32", "tf32": True, "gpu": "B200"}, "cluster"),
        ({"H": 256, "dtype": "float32"}, "grid"),
        ({"H": 512, "gpu": "A100"}, "grid"),
        ({"H": 1024, "B": 64}, "grid"),
        # With weights in shared memory.
        ({"H": 1024, "dtype": "float32"}, "grid"),
        ({"H": 1024, "B": 64, "dtype": "float32", "tf32": True}, "grid"),
        ({"H": 2048, "B": 16}, "grid"),
        ({"H": 1024, "B": 16, "gpu": "A100"}, "grid"),
        ({"H": 64, "dtype": "float32", "tf32": True}, "one_cta"),
        ({"H": 64, "dtype": "float64"}, "stepwise"),
        ({"H": 64, "P": 8}, "stepwise"),
        ({"H": 64, "T": 3}, "stepwise"),
        ({"H": 64, "B": 0}, "stepwise"),
        ({"H": 8192}, "stepwise"),
        ({"H": 1024, "B": 4096}, "stepwise"),
    ],
)
def test_dispatch(arguments, tier):
    """The order of the design: what no persistent kernel does, an SM, a cluster, the whole GPU, steps."""
    found = plan(**arguments)
    assert found["kernel"] == tier
    assert found["backward"]["kernel"] in ((tier, "grid") if tier == "cluster" else (tier, "stepwise"))
    assert found["reason"]
    assert found["step_us"] > 0


@pytest.mark.parametrize("gpu", gpus.KNOWN)
def test_every_plan_can_run(gpu):
    """Over cells, types, sizes and batches: what is chosen is possible, and within the device's limits."""
    device = gpus.find(gpu)
    for cell, dtype, H, B, D in itertools.product(
        CELLS,
        ("bfloat16", "float16", "float32"),
        (1, 33, 128, 129, 500, 1024, 1536, 2048),
        (1, 9, 128, 1000),
        (1, 2),
    ):
        found = plan(H, B, cell=cell, dtype=dtype, gpu=gpu, tf32=H % 2 == 0, D=D)
        for one in (found, found["backward"]):
            assert one["possible"]
            if one["kernel"] == "stepwise":
                continue
            assert one["shared_bytes"] <= device.shared_bytes_per_block
            assert one["threads"] % 32 == 0
            assert 32 <= one["threads"] <= 1024
            assert one["replicas"] * one["row_tiles"] * 8 >= B
            assert one["ctas"] * one["units_per_cta"] >= D * H
            assert (one["kernel"] == "cluster") == ("cluster" in one)
            if one["kernel"] == "cluster":
                assert device.compute_capability >= 90
                assert one["cluster"] in (4, 8, 16)
                assert one["ctas"] == one["cluster"] * one["replicas"] * D
            if one["kernel"] == "grid":
                assert one["ctas"] <= device.sms  # all of them at once, or they wait for ever


def test_auto_takes_the_fastest_by_estimate():
    """No tier that could be asked for by name has a lower estimate than the one chosen."""
    for H, B in itertools.product((32, 128, 256, 1024, 2048), (1, 16, 128, 512)):
        chosen = plan(H, B)
        for tier in ("one_cta", "cluster", "grid", "stepwise"):
            if tier == "cluster" and plan(H, B, tier="one_cta")["possible"]:
                continue  # where one SM holds the weights, its neighbours take further rows
            named = plan(H, B, tier=tier)
            if named["possible"]:
                assert chosen["step_us"] <= named["step_us"]


def test_the_grids_exchange_is_no_faster_than_any_that_was_published():
    """1.04 µs for flags through the L2 on an H200; so a layer that one SM holds stays there, and one that a
    cluster holds is no grid's because of it."""
    for dtype in ("bfloat16", "float16", "float32"):
        assert plan(64, 1, T=1 << 20, dtype=dtype, tier="grid")["step_us"] > 1.04
    for B in (1, 16, 64):
        assert plan(64, B, dtype="float32")["kernel"] == "one_cta"
    for H in (384, 512):
        assert plan(H, 64)["kernel"] == plan(H, 64)["backward"]["kernel"] == "cluster"


def test_the_parts_of_a_sum_take_their_time():
    """Forward of a cell with more gates reads fewer warps' at once: the model knows the rounds that takes."""
    lstm, rnn = (plan(1024, 1, T=1 << 20, tier="grid", cell=cell) for cell in ("lstm", "rnn_tanh"))
    assert lstm["step_us"] - rnn["step_us"] == pytest.approx(2 * 0.045, abs=1e-3)


def test_clusters_of_16_win_by_a_tenth():
    """Fewer of them fit than the SMs of a GPU say: where a portable size is nearly as fast it is taken."""
    near = 0
    for H, B, cell in itertools.product((192, 256, 384, 512), (1, 16, 64), ("lstm", "gru")):
        sizes = {n: plan(H, B, cell=cell, tier=f"cluster_{n}") for n in (4, 8, 16)}
        for of in (lambda found: found, lambda found: found["backward"]):
            us = {n: of(p)["step_us"] for n, p in sizes.items() if of(p)["possible"]}
            chosen = of(plan(H, B, cell=cell, tier="cluster"))["cluster"]
            portable = min((t for n, t in us.items() if n < 16), default=None)
            if 16 not in us or portable is None:
                continue
            assert (chosen == 16) == (us[16] < 0.9 * portable)
            near += 0.9 * portable <= us[16] < portable
    assert near  # and there are such cases


def test_the_cluster_grows_with_the_layer_and_shrinks_with_the_batch():
    """The size is the model's: large where one layer is alone, small where many rows need many clusters."""
    sizes = [plan(H, B, tier="cluster")["cluster"] for H, B in ((33, 1), (512, 16), (256, 1000))]
    assert sizes[0] <= 4
    assert sizes[1] == 16
    assert sizes[2] < 16
    few, many = plan(512, 56, tier="cluster"), plan(512, 64, tier="cluster")
    assert (few["row_tiles"], many["row_tiles"]) == (1, 2)
    assert "cluster" in plan(2048, tier="cluster")["reason"]
    assert "no thread block cluster" in plan(256, tier="cluster", gpu="A100")["reason"]


def test_narrow_inputs_of_short_sequences_are_projected_in_the_kernel():
    """One launch where it is the shorter way: few steps and features. The forward pass alone projects."""

    def projection(T, B, features, **options):
        shape = {
            "cell": "lstm",
            "T": T,
            "B": B,
            "I": features,
            "H": 64,
            "P": 0,
            "directions": 1,
            "dtype": "bfloat16",
        }
        gpu = gpus.find("H100").properties()
        found = _C.plan(device="cuda", **shape, training=True, gpu=gpu, **options)
        assert "input_projection" not in found["backward"]
        return found.get("input_projection")

    assert projection(100, 1, 16) == projection(200, 1, 64) == projection(40, 16, 16) == "in the kernel"
    assert projection(100, 1, 65) == "before it"  # more than the kernel takes
    assert projection(1000, 1, 16) == projection(100, 16, 16) == "before it"  # a launch costs less
    assert projection(40, 8 * 132, 16) == "in the kernel"
    assert projection(40, 8 * 132 + 1, 16) == "before it"  # CTAs that come one after another
    assert projection(40, 1, 16, tier="stepwise") is None


def test_a_tier_by_name():
    """Stepwise takes everything; a persistent tier that cannot says so, and says why."""
    assert plan(64, tier="stepwise")["kernel"] == "stepwise"
    assert plan(64, tier="grid")["kernel"] == "grid"
    for arguments in ({"H": 4096}, {"H": 64, "dtype": "float64"}, {"H": 64, "P": 8}):
        refused = plan(**arguments, tier="one_cta")
        assert not refused["possible"]
        assert refused["reason"]
        assert "step_us" not in refused


def test_old_and_small_gpus():
    """Below compute capability 8.0, and without cooperative launches, there are fewer tiers."""
    shape = {"cell": "lstm", "T": 100, "B": 16, "I": 512, "H": 512, "dtype": "float16"}
    known = gpus.find("A100").properties()
    for change in ({"compute_capability": 75}, {"cooperative_launch": False}, {"sms": 20}):
        assert _C.plan(device="cuda", **shape, gpu=known | change)["kernel"] == "stepwise"
    assert _C.plan(device="cuda", **shape, gpu=known)["kernel"] == "grid"


def test_errors_name_the_argument():
    """A GPU that is not known, a tier that is none, no GPU at all."""
    with pytest.raises(ValueError, match=r"gpu: expected one of A100, .*, got 'Voodoo'"):
        gpus.find("Voodoo")
    with pytest.raises(ValueError, match=r"tier: expected one of 'auto', .*, got 'both'"):
        plan(64, tier="both")
    with pytest.raises(ValueError, match="gpu: expected the properties"):
        _C.plan(device="cuda", cell="lstm", T=1, B=1, I=1, H=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_properties_of_the_gpu_that_is_here():
    """What torch says of the device is what the kernels find: the plan on paper is the plan in use."""
    here = gpus.find()
    assert here.compute_capability >= 70
    assert here.sms > 0
    assert here.shared_bytes_per_block >= 48 << 10


@pytest.mark.parametrize("cell", ["lstm+peephole", "gru+reset_before", "rnn_tanh+norm=1e-05", "lstm+heads=4"])
def test_a_variant_is_stepwise(cell):
    """Its plan says why, for both passes, and never passes a plain cell's timing off as its own."""
    found = plan(256, cell=cell)
    for one in (found, found["backward"]):
        assert one["kernel"] == "stepwise"
        assert one["reason"] == "a variant: stepwise only"
    asked = plan(256, cell=cell, tier="grid")
    assert not asked["possible"]
    assert asked["reason"] == "a variant: stepwise only"
    assert _C.trust_key(cell, T=100, B=16, I=8, H=256) != _C.trust_key(
        cell.partition("+")[0], T=100, B=16, I=8, H=256
    )


def test_a_variants_cost():
    """Heads divide W_hh, and a norm keeps both products for backward."""
    plain, heads, norm = (plan(256, cell="lstm" + o) for o in ("", "+heads=4", "+norm=1e-05"))
    W = 4 * 256 * 256
    assert plain["weight_bytes"] - heads["weight_bytes"] == 2 * (W - W // 4)
    assert plain["flops"] - heads["flops"] == 3 * 2 * 100 * 16 * (W - W // 4)
    assert norm["saved_bytes_per_step"] - plain["saved_bytes_per_step"] == 2 * 16 * 8 * 256


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("lstm+wings", "cell: expected options peephole"),
        ("gru+peephole", "cell: 'gru' has no option 'peephole'"),
        ("lstm+heads=3", "cell: expected heads that divide hidden_size 256"),
    ],
)
def test_a_wrong_variant(cell, message):
    """As the operators put it."""
    with pytest.raises(ValueError, match=message):
        plan(256, cell=cell)
