"""The SRU's scan on the CPU against the plain-torch recurrence in float64: outputs and every gradient, on
every instruction set; the operators' contracts with torch; the errors of bad arguments.

The sizes are chosen around what the kernels are cut into: registers of 2 to 16 lanes, blocks of 64 features,
rows whose state fits a cache, sums that move to double every 256 rows.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import sru_cases
import torch
from layer_cases import PACKED
from sru_cases import ALL, INPUTS, Case, backward, expected, forward, fused, grid, names, problem, worst
from tolerances import TOLERANCES, error
from torch import Tensor

from fastrnn import reference
from fastrnn._autograd_sru import scan

OPS = torch.ops.fastrnn
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
FULL = Case(D=2, v=True, pad=True, drop=True, tanh=True)


def _leaves(p) -> dict[str, Tensor | None]:
    return {n: t if t is None else t.detach().requires_grad_() for n, t in p.inputs.items()}


def _scan(case: Case, p, leaves) -> tuple[Tensor, Tensor]:
    masks = {"mask_pad": p.mask_pad, "drop_mask": p.drop_mask, "batch_sizes": p.batch_sizes}
    return scan(**leaves, **masks, **case.options)


def _equal(first, second) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", grid(), ids=str)
def test_grid(isa, case):
    """Every option in every dtype: results and gradients are the reference's."""
    sru_cases.check(OPS, case)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("O", [1, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129, 258])
def test_odd_sizes(isa, dtype, O):  # noqa: E741
    """Tails of every register width, on both sides of the boundary between directions."""
    sru_cases.check(OPS, Case(L=3, B=2, O=O, dtype=dtype))
    sru_cases.check(OPS, replace(FULL, L=3, B=2, O=2 * O, dtype=dtype, skip="u"))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "case",
    [
        Case(L=9, B=13, O=200, dtype=F32),
        Case(L=40, B=1, O=1000, dtype=F32, D=2),  # units are split, a direction each
        Case(L=40, B=1, O=1025, dtype=F32),
        Case(L=30, B=3, O=330, dtype=F32, D=2, skip="u", pad=True),
        Case(O=130, dtype=F32, D=2, sizes=(60, 60, 41, 17, 17, 3, 1, 1), v=True),
        Case(L=400, B=2, O=70, dtype=F32, skip="none"),  # sums move to double
        Case(L=3, B=140, O=1030, dtype=F32),  # rows in several turns
    ],
    ids=str,
)
def test_threads(threads, case, count):
    """However the columns are shared out, the result is right, and the same bits in every run."""
    threads(count)
    p = problem(case)
    got = fused(OPS, case, p)
    ratio, what = worst(case, got, expected(case, p))
    assert ratio <= 1, what
    assert all(_equal(got, fused(OPS, case, p)) for _ in range(3))


def test_results_larger_than_the_cache(isa, threads):
    """Stores past the cache, with and without a tail, are seen by whoever reads next."""
    threads(2)
    for dtype, skip, width in ((F32, "x", 512), (BF16, "u", 1024), (F64, "none", 256), (F32, "u", 333)):
        case = Case(L=24, B=600, O=width, dtype=dtype, skip=skip, D=2 if width % 2 == 0 else 1)
        p = problem(case)
        got = fused(OPS, case, p)

        # The reference on a few rows: rows of the batch are independent but for the sums.
        def few(t: Tensor) -> Tensor:
            return t[:, ::199] if t.dim() > 2 else t[::199] if t.size(0) == 600 else t

        want = expected(case, p.map(few))
        for name, a, b in zip(names(case), got, want, strict=True):
            if name not in ("grad weight_c", "grad bias"):
                limit = TOLERANCES[dtype][name.startswith("grad")]
                assert error(few(a), b) <= limit, f"{case} {name}"


def test_long_sums_keep_their_digits():
    """100,000 terms of one sign in float32: a plain float sum would be off by 1e-4 or more."""
    case = Case(L=2000, B=50, O=4, dtype=F32, skip="none")
    p = problem(case)
    p.inputs["u"].abs_()
    p.cotangents = [g.abs() for g in p.cotangents]
    got, want = fused(OPS, case, p), expected(case, p)
    bias = names(case).index("grad bias")
    assert ((got[bias] - want[bias]).abs() / want[bias].abs()).max() < 3e-7


@pytest.mark.parametrize("sizes", [None, PACKED])
@pytest.mark.parametrize("O", [8, 33])
def test_huge_strides(isa, sizes, O):  # noqa: E741
    """Rows of u, x and grad_h further apart than 32 bits can say."""
    try:
        buffer = torch.empty(2**31 + 2**21, dtype=F32)  # of which a few pages are touched
    except RuntimeError as raised:
        pytest.skip(f"this machine promises no memory that it may not have: {raised}")
    case = Case(L=2, B=1, O=O, dtype=F32, sizes=(1, 1) if sizes else None)
    p = problem(case)
    want = expected(case, p)
    far = 2**31 + 2**20
    for name in ("u", "x", "h"):
        q = problem(case)
        tensors = {**q.inputs, "h": q.cotangents[0]}
        t = tensors[name]
        strides = [far, *t.stride()[1:]]
        apart = buffer.as_strided(t.shape, strides).copy_(t)
        if name == "h":
            q.cotangents[0] = apart
        else:
            q.inputs[name] = apart
        ratio, what = worst(case, fused(OPS, case, q), want)
        assert ratio <= 1, f"{name}: {what}"


@pytest.mark.parametrize("scale", [30.0, 1000.0, 60000.0])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
def test_saturated_gates(isa, dtype, scale):
    """Gates of exactly 0 and 1: neither NaN nor infinity, and the reference's results."""
    case = Case(dtype=dtype, O=9)
    p = problem(case)
    u = p.inputs["u"]
    u[..., 1:, :] = u[..., 1:, :].sign() * scale
    ratio, what = worst(case, fused(OPS, case, p), expected(case, p))
    assert ratio <= 1, what


@pytest.mark.parametrize("D", [1, 2])
def test_a_bad_row_stays_alone(isa, D):
    """NaN in one row of the batch, and in pads: the others' results are what they were, bit for bit."""
    case = Case(L=4, B=3, O=34, D=D, dtype=F32, pad=True)
    p = problem(case)
    clean = fused(OPS, case, p)
    p.inputs["u"][:, 1] = float("nan")
    dirty = fused(OPS, case, p)
    for name, a, b in zip(names(case), clean, dirty, strict=True):
        if name not in ("grad weight_c", "grad bias"):  # sums over the rows
            rows = a.dim() - 2 if name in ("h", "c", "grad x", "grad c0") else 1
            assert torch.equal(a.select(rows, 0), b.select(rows, 0)), name
            assert torch.equal(a.select(rows, 2), b.select(rows, 2)), name
    q = problem(case)
    q.inputs["u"][q.mask_pad] = float("nan")
    q.inputs["x"][q.mask_pad] = float("nan")
    assert _equal(clean, fused(OPS, case, q))


def test_a_row_of_pads():
    """c passes through unchanged, h and the gradients of its steps are zeros, c0's gradient is c's."""
    case = Case(dtype=F32, D=2, pad=True)
    p = problem(case)
    p.mask_pad.zero_()[:, 1] = True
    h, c, du, dx, _, _, dc0 = fused(OPS, case, p)
    assert not h[:, 1].any()
    assert not du[:, 1].any()
    assert not dx[:, 1].any()
    assert torch.equal(c[1], p.inputs["c0"][1])
    assert torch.equal(dc0[1], p.cotangents[1][1])


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("skip", ["x", "u", "none"])
@pytest.mark.parametrize(("L", "B"), [(4, 0), (0, 3), (0, 0)])
def test_nothing_to_do(L, B, D, skip):
    """No rows or no steps: shapes as always, c is c0, the sums are zeros."""
    case = Case(L=L, B=B, D=D, skip=skip, v=True, pad=True, drop=True, dtype=F32)
    p = problem(case)
    got = dict(zip(names(case), fused(OPS, case, p), strict=True))
    shapes = {"h": p.cotangents[0].shape, "c": p.inputs["c0"].shape}
    for name, t in got.items():
        assert t.shape == shapes.get(name) or t.shape == p.inputs[name.removeprefix("grad ")].shape, name
    assert torch.equal(got["c"], p.inputs["c0"])
    assert torch.equal(got["grad c0"], p.cotangents[1])
    assert not got["grad weight_c"].any()
    assert not got["grad bias"].any()


# ---- the operators' contracts ---------------------------------------------------------------------------


@pytest.mark.parametrize("needs", [0, 1, 2, 4, 8, 16, 5])
@pytest.mark.parametrize("case", [FULL, Case(skip="u", sizes=PACKED, dtype=F32)], ids=str)
def test_only_what_is_needed(case, needs):
    """What is not asked for comes back empty, and what is, unchanged by it."""
    p = problem(case)
    cells = forward(OPS, case, p)[2]
    everything, some = backward(OPS, case, p, cells), backward(OPS, case, p, cells, needs)
    for bit, name, got, all_of_it in zip((1, 2, 4, 4, 8, 16), INPUTS, some, everything, strict=True):
        wanted = needs & bit and p.inputs[name] is not None
        assert torch.equal(got, all_of_it) if wanted else got.shape == (0,), name


@pytest.mark.parametrize("absent", [{0}, {1}, {0, 1}])
def test_absent_gradients_are_zero(absent):
    p = problem(FULL)
    cells = forward(OPS, FULL, p)[2]
    p.cotangents = [torch.zeros_like(g) if i in absent else g for i, g in enumerate(p.cotangents)]
    want = backward(OPS, FULL, p, cells)
    p.cotangents = [None if i in absent else g for i, g in enumerate(p.cotangents)]
    assert _equal(backward(OPS, FULL, p, cells), want)


def test_saving_changes_nothing_and_saved_tensors_are_left_alone():
    p = problem(FULL)
    h, c, cells = forward(OPS, FULL, p)
    nothing = forward(OPS, FULL, p, save=False)
    assert _equal((h, c), nothing[:2])
    assert nothing[2].shape == (0,)
    held = [cells, *(t for t in p.arguments if t is not None), *p.cotangents]
    before = [t.clone() for t in held]
    first, second = backward(OPS, FULL, p, cells), backward(OPS, FULL, p, cells)
    assert _equal(first, second)
    assert _equal(held, before)


@pytest.mark.parametrize("case", [Case(dtype=F32), replace(FULL, skip="u"), Case(sizes=PACKED, D=2)], ids=str)
def test_opcheck(case):
    """Schemas, fake implementations and dispatch, as torch.compile and export need them."""
    p = problem(case)
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        OPS.sru_forward.default, (*p.arguments, *case.options.values(), True), test_utils=utilities
    )
    cells = forward(OPS, case, p)[2]
    arguments = (*p.cotangents, *p.arguments, cells, *case.options.values())
    for needs in (ALL, 5):
        torch.library.opcheck(OPS.sru_backward.default, (*arguments, needs), test_utils=utilities)


# ---- autograd -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [Case(), FULL, replace(FULL, skip="none"), Case(skip="u", sizes=PACKED, D=2)], ids=str
)
def test_gradcheck(case):
    """First and second derivatives against differences, in float64."""
    small = replace(case, O=2, L=3, B=2)
    p = problem(small)
    leaves = _leaves(p)
    present = [n for n, t in leaves.items() if t is not None]

    def call(*tensors):
        return _scan(small, p, {**leaves, **dict(zip(present, tensors, strict=True))})

    tensors = [leaves[n] for n in present]
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize(
    "case", [Case(dtype=F32), FULL, Case(sizes=PACKED, D=2, skip="u", dtype=BF16)], ids=str
)
def test_scan(case):
    """The differentiable function, and that gradients that can be differentiated again are the same."""
    p = problem(case)
    leaves = _leaves(p)
    present = [t for t in leaves.values() if t is not None]
    outputs = _scan(case, p, leaves)
    grads = torch.autograd.grad(outputs, present, p.cotangents, retain_graph=True)
    ratio, what = worst(case, [*(t.detach() for t in outputs), *grads], expected(case, p))
    assert ratio <= 1, what
    again = torch.autograd.grad(outputs, present, p.cotangents, create_graph=True)
    ratio, what = worst(
        case, [*(t.detach() for t in outputs), *(g.detach() for g in again)], expected(case, p)
    )
    assert ratio <= 1, what
    assert all(g.requires_grad for g in again[:1])


@pytest.mark.parametrize("name", INPUTS)
def test_one_gradient(name):
    """Each input alone asks for its gradient, through h alone and through c alone."""
    p = problem(FULL)
    everything = _leaves(p)
    for which in (0, 1):
        want = torch.autograd.grad(_scan(FULL, p, everything)[which], everything[name], p.cotangents[which])
        leaves = {n: t.detach() for n, t in everything.items()}
        leaves[name].requires_grad_()
        got = torch.autograd.grad(_scan(FULL, p, leaves)[which], leaves[name], p.cotangents[which])
        assert _equal(got, want)


def test_inference_builds_no_graph():
    p = problem(FULL)
    h, c = _scan(FULL, p, p.inputs)
    assert not h.requires_grad
    with torch.no_grad():
        quiet = _scan(FULL, p, _leaves(p))
    assert _equal((h, c), quiet)
    assert not quiet[0].requires_grad


def test_the_reference_takes_the_same_arguments():
    """scan and reference.sru_scan are one function in two implementations."""
    p = problem(FULL)
    masks = {"mask_pad": p.mask_pad, "drop_mask": p.drop_mask}
    ours, theirs = (f(**p.inputs, **masks, **FULL.options) for f in (scan, reference.sru_scan))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


# ---- errors ---------------------------------------------------------------------------------------------

ERRORS = {
    "u a matrix": (Case(), {"u": lambda t: t[0, 0]}, r"u: expected shape \(L, B, K, O\), got \(3, 6\)"),
    "u K = 2": (Case(), {"u": lambda t: t[:, :, :2]}, r"u: expected K = 3 or 4 .*, got 2"),
    "u without features": (
        Case(),
        {"u": lambda t: t[..., :0]},
        "u: expected a positive number of features O, got 0",
    ),
    "u odd": (
        Case(D=2),
        {"u": lambda t: t[..., :5]},
        "u: expected an even, positive number of features O, got 5",
    ),
    "u integers": (
        Case(),
        {"u": lambda t: t.long()},
        "u: expected dtype float32, float64, bfloat16 or float16",
    ),
    "u not packed": (
        Case(sizes=PACKED),
        {"u": lambda t: t[None]},
        r"u: expected packed data of shape \(N, K, O\)",
    ),
    "x shape": (Case(), {"x": lambda t: t[:, :2]}, r"x: expected shape \(5, 3, 6\), got \(5, 2, 6\)"),
    "x dtype": (
        Case(),
        {"x": lambda t: t.float()},
        "x: expected the dtype and device of u, float64 on cpu, got float32",
    ),
    "x with K = 4": (Case(skip="u"), {"x": lambda _: torch.zeros(5, 3, 6)}, "x: expected none with K = 4"),
    "weight_c": (
        Case(),
        {"weight_c": lambda t: t.flatten()},
        r"weight_c: expected shape \(2, 6\), got \(12\)",
    ),
    "weight_c dtype": (
        Case(),
        {"weight_c": lambda t: t.float()},
        "weight_c: expected the dtype and device of u",
    ),
    "bias": (Case(), {"bias": lambda t: t[:1]}, r"bias: expected shape \(2, 6\), got \(1, 6\)"),
    "bias dtype": (Case(), {"bias": lambda t: t.half()}, "bias: expected the dtype .*, got float16"),
    "c0": (Case(), {"c0": lambda t: t[:2]}, r"c0: expected shape \(3, 6\), got \(2, 6\)"),
    "c0 device": (Case(), {"c0": lambda t: t.to("meta")}, "c0|device"),
    "v": (
        Case(v=True),
        {"v": lambda t: t[:, :, :1]},
        r"v: expected shape \(5, 3, 2, 6\), got \(5, 3, 1, 6\)",
    ),
    "v dtype": (Case(v=True), {"v": lambda t: t.float()}, "v: expected the dtype and device of u"),
    "mask_pad": (
        Case(pad=True),
        {"mask_pad": lambda t: t.T},
        r"mask_pad: expected shape \(5, 3\), got \(3, 5\)",
    ),
    "mask_pad dtype": (
        Case(pad=True),
        {"mask_pad": lambda t: t.byte()},
        "mask_pad: expected dtype bool .*, got uint8",
    ),
    "mask_pad packed": (
        Case(sizes=PACKED),
        {"mask_pad": lambda _: torch.zeros(6, 5, dtype=torch.bool)},
        "mask_pad: expected none with batch_sizes",
    ),
    "drop_mask": (
        Case(drop=True),
        {"drop_mask": lambda t: t[0]},
        r"drop_mask: expected shape \(3, 6\), got \(6\)",
    ),
    "batch_sizes dtype": (
        Case(sizes=PACKED),
        {"batch_sizes": lambda t: t.int()},
        "batch_sizes: expected a 1-D int64",
    ),
    "batch_sizes rising": (
        Case(sizes=PACKED),
        {"batch_sizes": lambda t: t.flip(0)},
        "batch_sizes: expected positive, non-increasing numbers",
    ),
    "batch_sizes sum": (
        Case(sizes=PACKED),
        {"batch_sizes": lambda t: t[:-1]},
        "batch_sizes: expected a sum of 17",
    ),
    "batch_sizes none": (
        Case(sizes=PACKED),
        {"batch_sizes": lambda t: t[:0]},
        "batch_sizes: expected at least one",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_name_the_argument(what):
    """One clear error before any kernel: the argument, what was expected, what came. In backward too."""
    case, changes, message = ERRORS[what]
    p = problem(case)
    cells = forward(OPS, case, p)[2]
    for name, change in changes.items():
        if name in p.inputs:
            p.inputs[name] = change(p.inputs[name])
        else:
            setattr(p, name, change(getattr(p, name)))
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        forward(OPS, case, p)
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        backward(OPS, case, p, cells)


def test_errors_of_backward():
    case = Case()
    p = problem(case)
    cells = forward(OPS, case, p)[2]
    for wrong in (cells[1:], cells.float(), cells.T.contiguous().T):
        with pytest.raises(RuntimeError, match="cells: expected"):
            backward(OPS, case, p, wrong)
    with pytest.raises(RuntimeError, match="needs: expected 0 to 31, got 32"):
        backward(OPS, case, p, cells, 32)
    for i, name in enumerate(("grad_h", "grad_c")):
        q = problem(case)
        q.cotangents[i] = q.cotangents[i][..., :-1]
        with pytest.raises(RuntimeError, match=f"{name}: expected shape"):
            backward(OPS, case, q, cells)


def test_drop_mask_is_a_constant():
    p = problem(FULL)
    p.drop_mask.requires_grad_()
    with pytest.raises(RuntimeError, match="drop_mask: expected a constant"):
        _scan(FULL, p, p.inputs)
