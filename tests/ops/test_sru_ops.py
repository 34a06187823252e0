"""The operators of the SRU's scan: their contracts with torch, autograd around them, bad arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from layer_cases import PACKED
from selection import thorough
from sru_cases import ALL, INPUTS, Case, backward, expected, forward, problem, worst
from torch import Tensor

from fastrnn import reference
from fastrnn._ops.autograd import scan

OPS = torch.ops.fastrnn
F32, BF16 = torch.float32, torch.bfloat16
FULL = Case(D=2, v=True, pad=True, drop=True, tanh=True)
ROWS = replace(FULL, reset=True, states=True)


def _leaves(p) -> dict[str, Tensor | None]:
    return {n: t if t is None else t.detach().requires_grad_() for n, t in p.inputs.items()}


def _scan(case: Case, p, leaves) -> tuple[Tensor, Tensor]:
    masks = {"mask_pad": p.mask_pad, "drop_mask": p.drop_mask, "batch_sizes": p.batch_sizes}
    return scan(**leaves, **masks, **case.options, reset=p.reset, keep_cells=case.states)


def _equal(first, second) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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


@pytest.mark.parametrize(
    "case", [Case(dtype=F32), replace(FULL, skip="u"), Case(sizes=PACKED, D=2), ROWS], ids=str
)
def test_opcheck(case):
    """Schemas, fake implementations and dispatch, as torch.compile and export need them."""
    p = problem(case)
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        OPS.sru_forward.default, (*p.arguments, *case.options.values(), True), test_utils=utilities
    )
    cells = forward(OPS, case, p)[2]
    arguments = (*p.cotangents, p.grad_cells, *p.arguments, cells, *case.options.values())
    for needs in (ALL, 5):
        torch.library.opcheck(OPS.sru_backward.default, (*arguments, needs), test_utils=utilities)


# ---- autograd -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        FULL,
        pytest.param(replace(FULL, skip="none"), marks=thorough),
        pytest.param(Case(skip="u", sizes=PACKED, D=2), marks=thorough),
        ROWS,
    ],
    ids=str,
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
