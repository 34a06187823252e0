"""What callers and autograd hand to a layer and keep: views, gradients that arrive or are asked for alone,
graphs that are walked twice, saved tensors; and that no result hangs on them."""

from __future__ import annotations

from dataclasses import replace

import layer_cases
import pytest
import torch
from layer_cases import CELLS, PACKED, Case, Problem, call, differentiated, equal, leaves_of, names, problem
from tolerances import assert_close

F32 = torch.float32


VIEWS = {
    "expanded steps": lambda x: x[:1].expand_as(x),
    "expanded rows": lambda x: x[:, :1].expand_as(x),
    "expanded features": lambda x: x[..., :1].expand_as(x),
    "one number": lambda x: x[:1, :1, :1].expand_as(x),
    "batch first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "features first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "every other feature": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "an offset": lambda x: torch.cat([x, x])[len(x) :],
    "overlapping rows": lambda x: (
        x.reshape(-1)[: x.shape[0] + x.shape[1] + x.shape[2]].clone().as_strided(x.shape, (1, 1, 1))
    ),
    "a negative bit": lambda x: torch.imag(torch.complex(x, x).conj()),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(6, 5, 4, 18), (1, 3, 20, 9)])
def test_views(view, shape):
    """A view gives what its contiguous copy gives: input, state and arriving gradients."""
    case = Case("gru", *shape, dtype=F32)
    p = problem(case)
    take = VIEWS[view]
    viewed = Problem(take(p.x), take(p.h0), None, p.weights, None, [take(g) for g in p.cotangents])
    plain = Problem(
        *(t.resolve_neg().clone(memory_format=torch.contiguous_format) for t in (viewed.x, viewed.h0)),
        None,
        p.weights,
        None,
        [g.resolve_neg().contiguous() for g in viewed.cotangents],
    )
    assert equal(differentiated(case, viewed), differentiated(case, plain))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("packed", [False, True])
def test_expanded_gradients(cell, packed):
    """sum().backward() hands over one number with strides of 0."""
    case = Case(cell, 5, 4, 3, 18, D=2, dtype=F32, sizes=PACKED if packed else None)
    p = problem(case)
    leaves = leaves_of(p)
    sums = torch.autograd.grad(sum(t.sum() for t in call(case, p, leaves)), leaves)
    outputs = call(case, p, leaves)
    ones = torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs])
    assert equal(sums, ones)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("index", [0, 1, 2], ids=["y", "hn", "cn"])
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_one_gradient_alone(cell, index, save):
    """The others arrive as None."""
    for case in (Case(cell, H=18, D=2, sizes=PACKED, save=save), Case(cell, 1, 3, 4, 9, save=save)):
        p = problem(case)
        results = len(p.cotangents)
        index = min(index, results - 1)
        leaves = leaves_of(p)
        output = call(case, p, leaves)[index]
        got = torch.autograd.grad(output, leaves, p.cotangents[index], materialize_grads=True)
        others_zero = replace(p, cotangents=[g * (i == index) for i, g in enumerate(p.cotangents)])
        want = layer_cases.expected(case, others_zero)[results:]
        for name, a, b in zip(names(case)[results:], got, want, strict=True):
            assert_close(a, b, case.dtype, gradient=True, what=name)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("D", [1, 2])
def test_some_gradients_wanted(cell, D):
    """What is asked for does not depend on what else is asked for."""
    case = Case(cell, H=18, D=D, dtype=F32)
    p = problem(case)
    labels = names(case)[len(p.cotangents) :]
    everything = dict(zip(labels, differentiated(case, p)[len(p.cotangents) :], strict=True))
    states = 3 if cell == "lstm" else 2
    for kept in ({0}, {1}, {states - 1}, {states}, {0, states + 1}, set(range(states))):
        leaves = [t.requires_grad_(i in kept) for i, t in enumerate(t.detach() for t in leaves_of(p))]
        torch.autograd.backward(call(case, p, leaves), p.cotangents)
        for i, (label, leaf) in enumerate(zip(labels, leaves, strict=True)):
            assert (leaf.grad is not None) == (i in kept), label
            if i in kept:
                assert torch.equal(leaf.grad, everything[label]), label


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_a_graph_walked_twice(cell, save):
    """The same gradients both times, and nothing that the caller or the graph holds has changed."""
    case = Case(cell, H=18, D=2, dtype=F32, sizes=PACKED, save=save)
    p = problem(case)
    leaves = leaves_of(p)
    outputs = call(case, p, leaves)
    held = [*leaves, *outputs, *p.cotangents]
    before = [t.detach().clone() for t in held]
    first = torch.autograd.grad(outputs, leaves, p.cotangents, retain_graph=True)
    second = torch.autograd.grad(outputs, leaves, p.cotangents)
    assert equal(first, second)
    assert equal(before, [t.detach() for t in held])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_saved_tensors_are_left_alone(cell, save):
    case = Case(cell, 5, 7, 3, 18, P=5 if cell == "lstm" else 0, D=2, save=save)
    p = problem(case)
    saved = layer_cases.forward(torch.ops.fastrnn, case, p)
    before = [t.clone() for t in saved]
    layer_cases.backward(torch.ops.fastrnn, case, p, saved)
    assert equal(before, list(saved))


def test_outputs_alias_nothing():
    for case in (Case("lstm", 1, 2), Case("gru", 1, 2), Case("lstm", 1, 2, P=3)):
        p = problem(case)
        tensors = [*layer_cases.forward(torch.ops.fastrnn, case, p), p.x, p.h0, *p.weights]
        places = [t.untyped_storage().data_ptr() for t in tensors if t.numel()]
        assert len(set(places)) == len(places)


def test_inference_and_both_ways_of_saving_agree():
    """y, hn and cn do not depend on what is kept for backward."""
    for cell in CELLS:
        case = Case(cell, 6, 5, 3, 18, D=2, dtype=F32)
        p = problem(case)
        nothing, gates, recompute = (
            layer_cases.forward(torch.ops.fastrnn, case, p, save)[:3] for save in layer_cases.SAVES
        )
        assert equal(nothing, gates)
        assert equal(nothing, recompute)
