"""The persistent kernels' own source, run on the CPU by the emulator: every cell, precision and tier.

The layer around them is tested in test_cuda_emulated.py; what needs a GPU (its arithmetic, memory order,
occupancy) in test_cuda.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from persistent_cases import (
    CELLS,
    PRECISIONS,
    TIERS,
    Case,
    backward,
    check,
    expected,
    forward,
    fused,
    problem,
    wider,
    worst,
)

PACKED = (9, 4, 4, 2, 1)
#: CTAs of a cluster and units: CTAs with several tiles and one too few, with one, and without any.
CLUSTERS = ((4, 70), (8, 120), (8, 33), (16, 245), (16, 100))
H100 = {"sms": 132, "shared_bytes": 227 << 10, "compute_capability": 90, "cooperative": True}
A100 = {"sms": 108, "shared_bytes": 163 << 10, "compute_capability": 80, "cooperative": True}
RTX = {"sms": 128, "shared_bytes": 99 << 10, "compute_capability": 89, "cooperative": True}


def cases() -> list[Case]:
    """Every cell, precision and tier in every kind of shape; then the edges of each tier."""
    out = []
    for cell in CELLS:
        for precision in PRECISIONS:
            for tier in TIERS:
                if tier == "cluster" and precision == "float32":
                    continue  # no kernel
                plain = Case(cell, precision, tier)
                out += [
                    plain,
                    replace(plain, sizes=PACKED, H=20),  # even: by pairs
                    replace(plain, T=1, B=1, H=7, D=1),
                    replace(plain, T=3, B=2, H=18, strided=True),
                    replace(plain, T=3, B=3, H=16, bias=False, absent=True),
                ]
    for cell, precision, H in (
        ("lstm", "bfloat16", 128),
        ("lstm", "tf32", 64),
        ("gru", "float16", 121),
        ("gru", "float32", 96),
        ("rnn_tanh", "tf32", 128),
    ):
        out.append(Case(cell, precision, "one CTA", T=3, B=2, H=H, D=1))
    # Whole tiles of one CTA: rows missing, one row and one step, nothing comes in; and layers that have whole
    # tiles but no whole pairs, or rows that do not run all steps as one sequence.
    for cell in CELLS:
        for precision in PRECISIONS:
            plain = Case(cell, precision, "one CTA", H=32)
            out += [plain, replace(plain, T=1, B=1, D=1), replace(plain, B=8, H=16, bias=False, absent=True)]
            out += [replace(plain, T=7, B=3, H=48, inputs=20), replace(plain, T=2, B=17, H=64, D=1)]
        out += [replace(plain, sizes=PACKED), replace(plain, B=10, lengths=(3, 0, 5, 1), resets="some")]
        out += [replace(plain, resets="some"), replace(plain, strided=True)]
    for cell in CELLS:
        for tier in TIERS:
            for precision in ("bfloat16", "tf32" if tier == "cluster" else "float32"):
                # Rows of no step, of one and of all; resets at step 0, behind a row's end, at random.
                ragged = Case(cell, precision, tier, B=10, lengths=(3, 0, 5, 1))
                out += [ragged, replace(ragged, H=20, lengths=None, resets="some")]
                out.append(replace(ragged, resets="some", absent=True))
            out.append(replace(ragged, T=3, B=3, H=7, D=1, resets="all", strided=True))
        # Three tiles of rows a replica, of which the last is not full; more tiles of K than warps.
        out.append(Case(cell, "bfloat16", "grid", T=4, B=34, H=20, sms=8))
        out.append(Case(cell, "tf32", "grid", T=3, B=3, H=150, D=1))
        for i, (size, H) in enumerate(CLUSTERS):
            precision = ("bfloat16", "float16", "tf32")[(i + CELLS.index(cell)) % 3]
            out.append(Case(cell, precision, "cluster", T=3, B=9, H=H, D=1 + i % 2, cluster=size, sms=18))
    # Weights that wait in shared memory; four tiles of units a CTA; one warp a tile, which meets no barrier.
    out.append(Case("lstm", "tf32", "cluster", T=3, B=3, H=133, D=1))
    out.append(Case("gru", "float16", "cluster", T=3, B=2, H=210, D=1))
    out.append(Case("lstm", "bfloat16", "cluster", T=3, B=2, H=150, D=1, cluster=4, sizes=(2, 1, 1)))
    out.append(Case("rnn_relu", "bfloat16", "cluster", T=4, B=9, H=200, D=1))
    # Weights from shared memory, more tiles than are loaded at once; loaded by 4, by pairs and one by one.
    for precision, H in (("bfloat16", 260), ("float16", 258), ("bfloat16", 259)):
        out.append(Case("lstm", precision, "cluster", T=2, B=2, H=H, D=1))
    # Three tiles of units a CTA, whose warps are three, three and two: as large as there is memory for.
    out.append(Case("lstm", "bfloat16", "cluster", T=2, B=1, H=768, D=1, cluster=16))
    # Rows of weights that begin at a multiple of 4 elements, of 2, of none, whatever H is.
    for i, cell in enumerate(CELLS[:3]):
        for j, precision in enumerate(PRECISIONS):
            tier = list(TIERS)[(i + j) % (3 if precision != "float32" else 2)]
            for shift in (4, 2, 1):
                out.append(
                    Case(cell, precision, tier, T=2, B=2, H=36, D=1, inputs=8 * (tier != "grid"), shift=shift)
                )
    # The grid's weights in shared memory: one tile or two of a warp, of some or of all; two tiles of rows, a
    # half one of units; loaded by 4, by pairs and one by one; the longest sums of exact float32.
    for cell, precision, H, B in (
        ("lstm", "float32", 390, 9),
        ("lstm", "tf32", 642, 2),
        ("gru", "float32", 656, 1),
        ("gru", "tf32", 701, 3),
        ("lstm", "bfloat16", 1100, 1),
        ("rnn_tanh", "tf32", 1028, 2),
        ("lstm", "float32", 762, 3),
        ("rnn_tanh", "float32", 1024, 9),
    ):
        out.append(Case(cell, precision, "grid", T=2, B=B, H=H, D=1, sms=-(-H // 16)))
    # Backward in a cluster: several outputs a warp, an odd number of them; weights in shared memory, a CTA of
    # fewer tiles than the others; two tiles of rows, the second one of a single row.
    large = {"T": 3, "H": 260, "D": 1, "sms": 8}
    out.append(Case("gru", "bfloat16", "cluster", B=3, lengths=(3, 0, 1), **large))
    out.append(Case("rnn_tanh", "tf32", "cluster", B=2, resets="some", **large))
    out.append(Case("lstm", "bfloat16", "cluster", B=9, lengths=(3, 1), resets="some", cluster=8, **large))
    out.append(Case("gru", "tf32", "cluster", sizes=(9, 3), cluster=8, **large))
    out.append(Case("rnn_relu", "float16", "cluster", B=9, cluster=16, **large | {"sms": 16}))
    for i, cell in enumerate(CELLS):
        for j, size in enumerate((4, 8, 16)):
            precision = ("bfloat16", "float16", "tf32")[(i + j) % 3]
            out.append(Case(cell, precision, "cluster", T=3, B=17, H=85, cluster=size, sms=size))
    # x's part made by the kernel: steps of one row, of a few and of full tiles in a product; padded units.
    for i, cell in enumerate(CELLS):
        for j, precision in enumerate(PRECISIONS):
            tier = list(TIERS)[(i + j) % 3] if (i + j) % 3 < 2 or precision != "float32" else "one CTA"
            plain = Case(cell, precision, tier)
            out += [
                replace(plain, T=37, B=1, H=7, D=1, inputs=1),
                replace(plain, T=11, B=3, H=18, inputs=33),
                replace(plain, T=1, B=2, H=20, inputs=64, bias=False, absent=True)
                if cell != "rnn_relu"
                else replace(plain, T=2, B=9, inputs=16),
                replace(plain, sizes=PACKED, H=20, inputs=7, strided=True),
                replace(plain, B=10, lengths=(3, 0, 5, 1), resets="some", inputs=10),
            ]
    out.append(Case("gru", "float16", "grid", T=4, B=34, H=20, sms=8, inputs=5))
    out.append(Case("lstm", "bfloat16", "cluster", T=9, B=1, H=70, D=1, inputs=48))
    return out


@pytest.mark.parametrize("case", cases(), ids=str)
def test_layer(ops, case):
    """Outputs and gradients against the reference; every tensor at a guard page, fresh memory NaN."""
    ops.configure(len(str(case)))
    check(ops, case)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_schedule_gives_the_same_bits(ops, cell, tier):
    """Priorities, preemption and how many CTAs run at once change nothing: sums have their order."""
    case = Case(cell, "bfloat16", tier, sizes=PACKED, H=20)
    p = problem(case)
    want = None
    for seed in range(36):
        ops.configure(seed)
        got = fused(ops, case, p)
        want = want or got
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), seed
    assert worst(case, want, expected(case, p))[0] <= 1


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_schedule_adds_up_the_peers_in_order(ops, cell):
    """Four CTAs' parts of two tiles of rows, one CTA's with fewer tiles of units, in any order of arrival."""
    case = Case(cell, "float16", "cluster", T=4, B=9, H=100, D=1, sms=4)
    p = problem(case)
    ops.configure(0)
    saved = forward(ops, case, p)
    want = backward(ops, case, p, saved)
    for seed in range(1, 16):
        ops.configure(seed)
        got = backward(ops, case, p, saved)
        assert all(torch.equal(a, b) for a, b in zip(got[:3], want[:3], strict=True)), seed


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_saved_nothing_changed(ops, cell, tier):
    """Inference gives training's outputs, and inputs and saved tensors are as they were afterwards."""
    case = Case(cell, "float16", tier, sizes=PACKED)
    p = problem(case)
    saved = forward(ops, case, p)
    for a, b in zip(forward(ops, case, p, save=False)[:3], saved[:3], strict=True):
        assert torch.equal(a, b)
    inputs = [p.gx, *p.w_hh, p.h0, p.c0, p.grad_y, p.grad_hn, p.grad_cn, *saved[:5]]
    before = [t.clone() for t in inputs]
    with_state, without = backward(ops, case, p, saved), backward(ops, case, p, saved, need_state=False)
    assert torch.equal(with_state[0], without[0])
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_whole_tiles_give_the_general_kernels_bits(ops, cell, precision):
    """The kernels that ask nothing at an access, against those that ask: lengths of T take the latter."""
    widest = 128 if precision in ("bfloat16", "float16") else 64
    plain = Case(cell, precision, "one CTA", H=32)
    for case in (plain, replace(plain, T=1, B=1), replace(plain, T=3, B=2, H=widest, inputs=5)):
        for absent in (False, True):
            ops.configure(case.H)
            p = problem(replace(case, absent=absent))
            if absent:
                p.grad_y = torch.empty(0, dtype=case.dtype)
            masked = replace(p, lengths=torch.full((case.B,), case.T))
            whole, general = forward(ops, case, p), forward(ops, case, masked)
            assert all(torch.equal(a, b) for a, b in zip(whole[:5], general[:5], strict=True))
            backwards = [backward(ops, case, q, whole, state) for q in (p, masked) for state in (True, False)]
            for with_whole, without in zip(backwards[:2], backwards[2:], strict=True):
                assert all(torch.equal(a, b) for a, b in zip(with_whole[:3], without[:3], strict=True))


def test_the_kernels_of_whole_tiles_run_where_they_may(ops):
    """One CTA, whole tiles and pairs, rows that run all steps as one sequence; no other layer."""
    plain = Case("lstm", "bfloat16", "one CTA", H=32)
    whole = [plain, replace(plain, T=1, B=1), replace(plain, H=128, B=17), replace(plain, inputs=7)]
    whole += [replace(plain, cell=cell, precision=precision) for cell in CELLS for precision in PRECISIONS]
    general = [replace(plain, tier=tier) for tier in TIERS if tier != "one CTA"]
    general += [replace(plain, H=H) for H in (8, 31, 33, 34, 40)]
    general += [replace(plain, sizes=PACKED), replace(plain, sizes=(2, 2)), replace(plain, strided=True)]
    general += [replace(plain, B=2, lengths=(5, 5)), replace(plain, resets="some")]
    for case in whole + general:
        p = problem(case)
        saved = forward(ops, case, p)
        assert ops.persistent_whole_tiles() == (case in whole), case
        backward(ops, case, p, saved)
        assert ops.persistent_whole_tiles() == (case in whole), case
    p = problem(plain)
    saved = forward(ops, plain, p)
    p.grad_cells = torch.zeros(plain.D, plain.T * plain.B, plain.H)
    backward(ops, plain, p, saved)
    assert not ops.persistent_whole_tiles()
    for rows in ("gx", "grad_y"):  # at an odd element, of which everything else is whole
        p = problem(plain)
        setattr(p, rows, wider(getattr(p, rows)))
        saved = forward(ops, plain, p)
        assert ops.persistent_whole_tiles() == (rows != "gx")
        backward(ops, plain, p, saved)
        assert ops.persistent_whole_tiles() == (rows != "grad_y")


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], ids=hex)
@pytest.mark.parametrize("tier", ["one CTA", "grid"])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_weight_that_is_any_nan_stays_one(ops, precision, tier, bits):
    """Weights are rounded by adding to their bits: those of the largest NaN would run over into a zero."""
    for H in (16, 21):
        case = Case("rnn_tanh", precision, tier, T=3, B=2, H=H, D=1, sms=4)
        p = problem(case)
        ops.configure(1)
        saved = forward(ops, case, p)
        assert saved[0].isfinite().all()
        p.w_hh[0].view(torch.int32)[0, 0] = bits
        y = forward(ops, case, p)[0]
        assert y[:, 0].isnan().all()
        assert y[: case.B, 1:].isfinite().all()
        assert backward(ops, case, p, saved)[1][0, :, 0].isnan().all()


@pytest.mark.parametrize("H", [17, 16])
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_in_place(ops, cell, tier, H):
    """As persistent/params.h allows: gates saved where gx was, and their gradient written where they were."""
    case = Case(cell, "bfloat16", tier, H=H, sizes=None if H == 16 else PACKED)
    p = problem(case)
    apart = forward(ops, case, p)
    gradients = backward(ops, case, p, apart)
    in_gates = replace(p, gx=torch.full_like(apart[3], torch.nan))  # a GRU's rows are one gate longer
    in_gates.gx[..., : p.gx.shape[-1]] = p.gx
    together = forward(ops, case, in_gates, in_place=True)
    assert together[3].data_ptr() == in_gates.gx.data_ptr()
    for a, b in zip(together[:5], apart[:5], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(backward(ops, case, p, together, in_place=True)[:3], gradients[:3], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_a_wait_that_cannot_end_does_not_hang(ops, cell):
    """CTAs that are not there at once, which no cooperative launch does: NaN, and the error word says why."""
    case = Case(cell, "tf32", "grid", H=40)
    p = problem(case)
    ops.configure(3)
    saved = forward(ops, case, p)
    assert saved[5] == 0
    assert backward(ops, case, p, saved)[3] == 0
    ops.configure(3, -2)
    broken = forward(ops, case, p)
    assert broken[5] == 1
    assert broken[0].isnan().all()
    assert broken[1].isnan().all()
    gradients = backward(ops, case, p, saved)
    assert gradients[3] == 1
    last = gradients[0][0, -case.B :]  # nothing reaches the last step's gates from a later one
    assert last.isfinite().all()
    rest = gradients[0][:, case.B : -case.B]
    assert (
        rest.isnan() | (rest == 0 if cell == "rnn_relu" else rest.isnan())
    ).all()  # relu's zero slope is left
    assert gradients[1].isnan().all()


def numbers(ops, cell, precision, tier, H, B=8, D=1, backward=False, device=H100, cluster=8):
    """The geometry as a dict, or the reason why there is none."""
    at = (cell, PRECISIONS.index(precision), TIERS[tier], cluster, H, B, D, backward, *device.values())
    values, reason = ops.persistent_geometry(*at)
    assert (reason == "") == bool(values[0])
    keys = ("ctas_a_replica", "replicas", "ctas", "n_tiles", "threads", "shared", "workspace")
    keys += ("k_split", "peers")
    return dict(zip(keys, values[1:], strict=True)) if values[0] else reason


@pytest.mark.parametrize("device", [H100, A100, RTX], ids=["H100", "A100", "RTX"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_geometry_stays_within_the_device(ops, device, backward):
    """Whatever fits: enough rows, units and SMs, and no more shared memory than a block can have."""
    fitting = 0
    for cell in CELLS:
        for precision in PRECISIONS:
            for tier in TIERS:
                for H in (1, 16, 17, 64, 96, 128, 129, 512, 768, 1024, 1536, 2048):
                    for B in (1, 8, 9, 64, 65, 128, 1024):
                        for D in (1, 2):
                            g = numbers(ops, cell, precision, tier, H, B, D, backward, device)
                            if isinstance(g, str):
                                continue
                            fitting += 1
                            assert g["replicas"] * g["n_tiles"] * 8 >= B
                            assert (g["replicas"] - 1) * g["n_tiles"] * 8 < B
                            assert g["ctas"] == g["ctas_a_replica"] * g["replicas"] * D
                            assert g["threads"] <= 256
                            assert g["shared"] <= device["shared_bytes"]
                            if tier == "cluster":
                                assert g["ctas_a_replica"] == 8
                                assert g["peers"] <= 8
                                assert g["n_tiles"] <= g["k_split"]  # a finishing warp each
                                assert g["threads"] // 32 // g["k_split"] * 16 * g["peers"] >= H
                                assert backward or g["threads"] // 32 % g["k_split"] == 0
                            elif tier == "grid":
                                assert g["ctas_a_replica"] * 16 >= H
                                assert g["ctas"] <= device["sms"]
                                assert g["n_tiles"] <= 8
                            else:
                                assert g["threads"] // 2 >= H
    assert fitting > 500


def test_geometry_reaches_what_it_must(ops):
    """The ranges that the plan counts on, and a reason where one ends."""
    for half in ("bfloat16", "float16"):
        for back in (False, True):
            for cell in CELLS:
                assert numbers(ops, cell, half, "one CTA", 128, backward=back)["ctas"] == 1
                assert numbers(ops, cell, half, "grid", 1024, B=128, backward=back)["ctas"] == 128
                assert numbers(ops, cell, half, "grid", 512, B=128, D=2, backward=back)["ctas"] == 128
            assert numbers(ops, "gru", half, "grid", 1536, B=64, backward=back)["ctas"] == 96
    assert numbers(ops, "lstm", "tf32", "one CTA", 64)["threads"] == 128
    assert numbers(ops, "lstm", "tf32", "grid", 512, B=128)["ctas"] == 128
    assert "registers" in numbers(ops, "lstm", "bfloat16", "one CTA", 129)
    # Weights beyond the registers in shared memory: where an SM's parts of sums still have room.
    for back in (False, True):
        for cell in CELLS:
            for precision, H, B in (("tf32", 1024, 64), ("float32", 768, 32), ("bfloat16", 2048, 32)):
                g = numbers(ops, cell, precision, "grid", H, B, backward=back)
                assert g["ctas"] == H // 16 * min(132 // (H // 16), -(-B // 8)), (cell, precision, back)
    assert numbers(ops, "rnn_tanh", "tf32", "grid", 1536, B=8)["ctas"] == 96
    assert "registers and shared memory" in numbers(ops, "lstm", "tf32", "grid", 1536)
    for cell in CELLS:  # its sums are no longer exact enough, whatever there is room for
        longest = 1024 if cell.startswith("rnn") else 768
        assert numbers(ops, cell, "float32", "grid", longest)["threads"] == 256
        assert "last digits" in numbers(ops, cell, "float32", "grid", longest + 1)
    assert "registers and shared memory" in numbers(ops, "lstm", "bfloat16", "grid", 4096)
    assert "too few SMs for the batch" in numbers(ops, "lstm", "tf32", "grid", 1024, B=128)
    assert "too few SMs for the batch" in numbers(ops, "lstm", "bfloat16", "grid", 1024, B=129)
    assert "too few SMs for the recurrent" in numbers(ops, "lstm", "bfloat16", "grid", 1024, D=2, device=A100)
    assert "cooperative" in numbers(ops, "gru", "tf32", "grid", 64, device={**H100, "cooperative": False})
    old = {**H100, "compute_capability": 75}
    assert "compute capability" in numbers(ops, "gru", "tf32", "one CTA", 64, device=old)
    assert "nothing" in numbers(ops, "gru", "tf32", "one CTA", 64, B=0)


def test_geometry_of_clusters(ops):
    """What each size takes, how a batch that is larger than the device is cut, and what is refused."""
    for back in (False, True):
        for cell in CELLS:
            for size, H in ((4, 256), (8, 256), (16, 512)):
                g = numbers(ops, cell, "bfloat16", "cluster", H, cluster=size, backward=back)
                assert (g["ctas"], g["peers"]) == (size, size)
        gru = numbers(ops, "gru", "float16", "cluster", 768, cluster=16, backward=back)
        assert gru["shared"] > 100 << 10  # weights too
    assert numbers(ops, "lstm", "tf32", "cluster", 256, cluster=16)["threads"] == 128
    assert numbers(ops, "lstm", "bfloat16", "cluster", 384, cluster=16)["peers"] == 12
    # cuDNN's hard case: all warps forward, of which three tiles of units share eight; backward all warps
    # where there are outputs for them, 32 units each.
    hard = [
        numbers(ops, "lstm", half, "cluster", 768, B=16, cluster=16, backward=back)
        for half in ("bfloat16", "float16")
        for back in (False, True)
    ]
    assert [(g["threads"], g["n_tiles"], g["replicas"]) for g in hard] == [(256, 1, 2)] * 4
    assert "shared memory of a cluster" in numbers(ops, "lstm", "bfloat16", "cluster", 784, cluster=16)
    assert numbers(ops, "lstm", "tf32", "cluster", 160, cluster=16, backward=True)["threads"] == 160
    rows = numbers(ops, "lstm", "bfloat16", "cluster", 512, B=1000, cluster=16, backward=True)
    assert (rows["n_tiles"], rows["threads"]) == (4, 256)
    few, many = (numbers(ops, "lstm", "bfloat16", "cluster", 512, B=B, cluster=16) for B in (56, 1000))
    assert (few["n_tiles"], few["replicas"]) == (1, 7)
    assert (many["n_tiles"], many["replicas"]) == (4, 32)  # they run as SMs become free
    assert "no kernel" in numbers(ops, "lstm", "float32", "cluster", 64)
    assert "no thread block cluster" in numbers(ops, "lstm", "bfloat16", "cluster", 64, device=A100)
    assert "too few CTAs" in numbers(ops, "lstm", "bfloat16", "cluster", 2048)
    assert "shared memory of a cluster" in numbers(ops, "lstm", "bfloat16", "cluster", 1024, cluster=16)


def test_more_steps_than_16_bits_count(ops):
    """T = 70000, against the same kernel over the two halves of the sequence."""
    case = Case("rnn_tanh", "bfloat16", "one CTA", T=70000, B=1, H=1, D=1)
    p = problem(case)
    y, hn, *_ = forward(ops, case, p, save=False)
    half = replace(case, T=35000)
    first = forward(ops, half, replace(p, gx=p.gx[:, :35000].contiguous()), save=False)
    second = forward(ops, half, replace(p, gx=p.gx[:, 35000:].contiguous(), h0=first[1]), save=False)
    assert torch.equal(y, torch.cat([first[0], second[0]]))
    assert torch.equal(hn, second[1])
