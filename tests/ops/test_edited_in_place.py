"""Programs that change tensors in place between a forward pass and its backward.

Results are the caller's to edit, as after torch's own layers on the CPU, and gradients are those of the pass
that ran. Inputs, states and weights that backward needs cannot be had again: there it is an error that says
so. Never a wrong gradient.
"""

from __future__ import annotations

import pytest
import torch
from helpers import CELLS, LAYERS, flat, kernels_called, pair, randn
from tolerances import assert_close
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn

T, B, IN, H = 5, 3, 4, 6
X = randn(T, B, IN, dtype=torch.float64)


def _add(t):
    t += 1.5


def _mask(t):
    t[t > 0.1] = 0


def _dropout(t):
    torch.manual_seed(5)
    nn.functional.dropout(t, 0.5, training=True, inplace=True)


def _part(t):
    t[..., 0].mul_(3)


EDITS = {"add": _add, "relu": torch.relu_, "mask": _mask, "dropout": _dropout, "part": _part}


def _loss(results) -> torch.Tensor:
    return sum((t.double() * (t.double() + 1)).sum() for t in results)


def _gradients(call, leaves, edit, which: int, copy: bool) -> list[torch.Tensor]:
    """Gradients of the leaves after call()'s result number `which`, or a copy of it, was edited."""
    found = flat(call())
    if copy:
        found[which] = found[which].clone()
    edit(found[which])
    return list(torch.autograd.grad(_loss(found), leaves))


def _check(call, leaves, edit, which: int, dtype: torch.dtype) -> list[torch.Tensor]:
    expected = _gradients(call, leaves, edit, which, copy=True)
    got = _gradients(call, leaves, edit, which, copy=False)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, dtype, gradient=True)
    return got


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("LSTM", {}),
        ("LSTM", {"proj_size": 3}),
        ("GRU", {}),
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu"}),
    ],
)
def test_results_of_layers(name, own, dtype, packed, edit):
    """y, h_n and c_n, edited in every way, of every layer: gradients as after an edit of a copy, and as
    torch's, which allows the same with float64."""
    for options in ({}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"save": "recompute"}):
        ours, theirs = pair(name, IN, H, dtype=dtype, **own, **options)
        x = X.to(dtype).transpose(0, 1) if ours.batch_first else X.to(dtype)
        x = x.clone().requires_grad_()

        def call(module, x=x):
            lengths = [T, 3, 1]
            return module(pack_padded_sequence(x, lengths, module.batch_first) if packed else x)

        for which in range(3 if name == "LSTM" else 2):
            got = _check(lambda m=ours: call(m), (x, *ours.parameters()), EDITS[edit], which, dtype)
            if dtype != torch.float64:
                continue
            leaves = (x, *theirs.parameters())
            expected = _gradients(lambda m=theirs: call(m), leaves, EDITS[edit], which, copy=False)
            for a, b in zip(got, expected, strict=True):
                assert_close(a, b, dtype, gradient=True, slack=2)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("name", LAYERS)
def test_results_with_lengths_and_resets(name, options):
    """Padded batches, with every step's states among the results."""
    ours, _ = pair(name, IN, H, dtype=torch.float64, **options)
    x = X.clone().requires_grad_()
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 1] = True
    for asked in (
        {"lengths": [5, 2, 0], "reset": reset, "return_all_states": True},
        {"done": reset},
        {"lengths": [1, 5, 3]},
    ):
        for which in range(len(flat(ours(x, **asked)))):
            _check(lambda asked=asked: ours(x, **asked), (x, *ours.parameters()), _add, which, torch.float64)


@pytest.mark.parametrize("name", [*CELLS, "SRU", "SRUCell", "SRUpp"])
def test_results_of_cells_and_scans(name):
    kind = {"dtype": torch.float64}
    torch.manual_seed(0)
    module = fastrnn.SRUpp(IN, H, 4, **kind) if name == "SRUpp" else getattr(fastrnn, name)(IN, H, **kind)
    x = (X[0] if name in CELLS else X).clone().requires_grad_()
    leaves = (x, *(p for p in module.parameters() if p.requires_grad))

    def call():
        return [t for t in flat([r for r in _tuple(module(x)) if isinstance(r, torch.Tensor)]) if t.numel()]

    for which in range(len(call())):
        for edit in EDITS.values():
            _check(call, leaves, edit, which, torch.float64)


def _tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", LAYERS)
def test_under_patch(name):
    """torch.nn's own modules keep allowing it where fastrnn computes them."""
    _, theirs = pair(name, IN, H, dtype=torch.float64)
    x = X.clone().requires_grad_()
    with fastrnn.patch():
        assert kernels_called(lambda: theirs(x)) == 1
        _check(lambda: theirs(x), (x, *theirs.parameters()), _add, 0, torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_edits_between_and_before_second_passes(name):
    """retain_graph: the first pass sees the output as it was, the second finds it edited, the third edited
    once more; and gradients of gradients."""
    ours, _ = pair(name, IN, H, dtype=torch.float64)
    x = X.clone().requires_grad_()
    leaves = (x, *ours.parameters())
    y, weight = ours(x)[0], randn(T, B, H, dtype=torch.float64)
    whole = (y * weight).sum()
    expected = torch.autograd.grad(whole, leaves, retain_graph=True)
    for factor in (3, 5):
        with torch.no_grad():  # as a program does that has done with the values
            y.detach().mul_(factor)
        for a, b in zip(torch.autograd.grad(whole, leaves, retain_graph=True), expected, strict=True):
            assert_close(a, b, torch.float64, gradient=True)

    def second(copy):
        y = ours(x)[0]
        y = y.clone() if copy else y
        y += 1
        return torch.autograd.grad(
            sum(g.pow(2).sum() for g in torch.autograd.grad(y.pow(2).sum(), leaves, create_graph=True)),
            leaves,
            allow_unused=True,
        )

    for a, b in zip(second(False), second(True), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, torch.float64, gradient=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_under_hooks_of_saved_tensors(name, masked):
    """autograd counts no versions of tensors that went through hooks: an edited output must not pass for the
    output, in a checkpoint that contains the edit least of all."""
    ours, _ = pair(name, IN, H, dtype=torch.float64)
    x = X.clone().requires_grad_()
    leaves, asked = (x, *ours.parameters()), ({"lengths": [5, 2, 4]} if masked else {})

    def edited(x, copy=False):
        y = ours(x, **asked)[0]
        y = y.clone() if copy else y
        _add(y)
        return y

    expected = torch.autograd.grad(_loss([edited(x, copy=True)]), leaves)

    def hooked(hooks):
        with hooks:
            return edited(x)

    for y in (
        hooked(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)),
        hooked(torch.autograd.graph.save_on_cpu()),
        checkpoint(edited, x, use_reentrant=False),
    ):
        for a, b in zip(torch.autograd.grad(_loss([y]), leaves), expected, strict=True):
            assert_close(a, b, torch.float64, gradient=True)


@pytest.mark.parametrize("name", LAYERS)
def test_only_edits_pay(name):
    """One kernel backward as ever; with an edit the pass forward once more, and not for h_n."""
    ours, _ = pair(name, IN, H)

    def kernels(which):
        results = flat(ours(X.float()))
        if which is not None:
            _add(results[which])
        return kernels_called(lambda: _loss(results).backward())

    assert [kernels(which) for which in (None, 0, 1)] == [1, 2, 1]


def test_edited_output_lets_go_of_nothing_else():
    """What was saved is freed by backward as always, and a third pass says so."""
    ours, _ = pair("GRU", IN, H)
    y, _ = ours(X.float())
    y += 1
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("output_too", [False, True])
def test_inputs_states_and_weights(name, save, output_too):
    """What backward needs and cannot make again: an error that says whose, what it may be and what to do, and
    holds torch's. Every time it is asked, and whether the output was edited too."""
    h = randn(1, B, H, dtype=torch.float64)
    for edit in ("x", "h", "w"):
        ours, _ = pair(name, IN, H, dtype=torch.float64, save=save)
        x, state = X.clone(), h.clone()
        y, _ = ours(x, (state, state) if name == "LSTM" else state)
        with torch.no_grad():
            {"x": x, "h": state, "w": ours.weight_hh_l0}[edit].add_(1)
        if output_too:
            _add(y)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="modified by an inplace operation") as raised:
                y.sum().backward(retain_graph=True)
            assert str(raised.value).startswith(("lstm: ", "gru: ", "rnn_tanh: "))
            assert "clone() it first" in str(raised.value)


def test_inputs_of_cells_and_scans():
    """The same of a cell and of SRU."""
    for module, x in ((fastrnn.LSTMCell(IN, H), X[0]), (fastrnn.SRU(H, H, 1), randn(T, B, H))):
        x = x.float().clone()
        y = module(x)[0]
        x.add_(1)
        with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
            y.sum().backward()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["y", "x", "h"])
@pytest.mark.parametrize("asked", [{}, {"lengths": [5, 2, 4]}], ids=["all steps", "lengths"])
@pytest.mark.parametrize("name", LAYERS)
def test_within_a_compiled_graph(name, asked, what):
    """torch.compile counts no versions for an autograd.Function in a graph: edits in it, of the output and of
    what went in, gave wrong gradients without an error."""
    torch._dynamo.reset()
    ours, _ = pair(name, IN, H, dtype=torch.float64)
    leaf = X.clone().requires_grad_()
    state = randn(1, B, H, dtype=torch.float64).requires_grad_()

    def program(leaf, state, copy):
        x, h = leaf * 1, state * 1
        y = ours(x, (h, h * 2) if name == "LSTM" else h, **asked)[0]
        edited = {"y": y, "x": x, "h": h}[what]
        edited = edited.clone() if copy else edited
        edited += 1.5
        return (edited if what == "y" else y), edited

    leaves = (leaf, state, *ours.parameters())
    expected = torch.autograd.grad(_loss(program(leaf, state, True)), leaves)
    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(_loss(compiled(leaf, state, False)), leaves)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, torch.float64, gradient=True)
