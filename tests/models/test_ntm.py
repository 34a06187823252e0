"""The neural Turing machine against a plain reference, row by row and slot by slot."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same, randn, results
from tolerances import assert_close
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from fastrnn.models import NeuralTuringMachine, NTMState

SIZES = {"memory_slots": 5, "memory_width": 3}


def _plain(model: NeuralTuringMachine, x, state: NTMState, lengths):
    """The paper's equations, one row, head and slot at a time, with torch.nn's controller."""
    kind, R, V = model.controller_kind, model.read_heads, model.write_heads
    N, W, S = model.memory_slots, model.memory_width, model.shift_range
    ys = x.new_zeros(*x.shape[:2], model.output.out_features)
    rows = []
    for b in range(x.size(1)):
        controller = tuple(s[b : b + 1] for s in state.controller)
        memory, reads, weightings = state.memory[b], state.reads[b], state.weightings[b]
        for t in range(lengths[b]):
            inputs = torch.cat([x[t, b], reads])[None]
            weights = tuple(model.controller.parameters())
            if kind == "lstm":
                controller = torch.lstm_cell(inputs, controller, *weights)
            elif kind == "gru":
                controller = (torch.gru_cell(inputs, controller[0], *weights),)
            h = controller[0][0] if controller else F.linear(inputs, *weights).tanh()[0]
            found = []
            for raw, before in zip(model.heads(h).chunk(R + V), weightings, strict=True):
                key, strength, gate = raw[:W], F.softplus(raw[W]), raw[W + 1].sigmoid()
                shift, sharpness = raw[W + 2 : W + 3 + 2 * S].softmax(0), 1 + F.softplus(raw[-1])
                cosines = torch.stack(
                    [key @ slot / (((key @ key + 1e-6) * (slot @ slot + 1e-6)).sqrt()) for slot in memory]
                )
                w = gate * (strength * cosines).softmax(0) + (1 - gate) * before
                w = torch.stack(
                    [sum(w[(i - j) % N] * shift[j + S] for j in range(-S, S + 1)) for i in range(N)]
                )
                found.append(w**sharpness / (w**sharpness).sum())
            weightings = torch.stack(found)
            reads = torch.cat([sum(w[i] * memory[i] for i in range(N)) for w in found[:R]])
            slots = []
            for i in range(N):
                keep, added = 1, 0
                for w, raw in zip(found[R:], model.writing(h).chunk(V), strict=True):
                    keep = keep * (1 - w[i] * raw[:W].sigmoid())
                    added = added + w[i] * raw[W:]
                slots.append(memory[i] * keep + added)
            memory = torch.stack(slots)
            ys[t, b] = model.output(torch.cat([h, reads]))
        rows.append((*(s[0] for s in controller), memory, reads, weightings))
    parts = [torch.stack(part) for part in zip(*rows, strict=True)]
    return ys, NTMState(tuple(parts[:-3]), *parts[-3:])


class _Call(nn.Module):
    """A machine or the plain reference as a function of x and all of the state's tensors."""

    def __init__(self, model, lengths, plain=False):
        super().__init__()
        self.model, self.lengths, self.plain = model, lengths, plain

    def forward(self, x, parts):
        state = NTMState(tuple(parts[3:]), *parts[:3])
        if self.plain:
            y, after = _plain(self.model, x, state, self.lengths)
        else:
            y, after = self.model(x, state, lengths=self.lengths)
        return (y, *after[1:], *after.controller)


@pytest.mark.parametrize(
    ("controller", "options"),
    [
        ("lstm", {}),
        ("gru", {"read_heads": 2, "write_heads": 3}),
        ("feedforward", {"read_heads": 2, "shift_range": 2}),
    ],
)
def test_equations(controller, options):
    """Protects addressing, reading, writing, several heads, each controller, and lengths with a zero:
    outputs, the whole state and every gradient in float64 equal a plain loop over rows, heads and slots."""
    model = NeuralTuringMachine(3, 2, 4, controller=controller, **SIZES, **options, dtype=torch.float64)
    first = model.initial_state(3)
    given = [
        randn(3, 5, 3, dtype=torch.float64),
        randn(*first.reads.shape, dtype=torch.float64, seed=2),
        randn(*first.weightings.shape, dtype=torch.float64, seed=3).softmax(-1),
        *(randn(3, 4, dtype=torch.float64, seed=4 + k) for k in range(len(first.controller))),
    ]
    x, lengths = randn(3, 3, 3, dtype=torch.float64, seed=9), [3, 0, 2]
    got = results(_Call(model, lengths), x, given)
    assert_same(got, results(_Call(model, lengths, plain=True), x, given), torch.float64)


def test_derivatives():
    """Protects the derivative of the addressing where it is delicate: empty memory, heads at one slot."""
    model = NeuralTuringMachine(2, 1, 3, controller="feedforward", **SIZES, dtype=torch.float64)
    x = randn(2, 1, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x)[0], (x,))


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_no_nan(scale):
    """Protects long sequences, empty memories and saturated heads: everything stays finite and weightings add
    up to one, gradients included, with weights of any size."""
    model = NeuralTuringMachine(3, 2, 8, memory_slots=16, memory_width=4)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    y, state, weightings = model(randn(60, 2, 3), return_weightings=True)
    (y.square().mean() + state.memory.square().mean()).backward()
    assert weightings.shape == (60, 2, 2, 16)
    assert_close(weightings.sum(-1), torch.ones(60, 2, 2), torch.float32)
    assert all(t.isfinite().all() for t in (y, state.memory, *(w.grad for w in model.parameters())))


def test_continuing_and_rows():
    """Protects carrying the state from piece to piece, batch_first, and a row's independence of its
    neighbours and of its padding, even of NaNs there."""
    model = NeuralTuringMachine(3, 2, 6, **SIZES, batch_first=True)
    x = randn(3, 6, 3)
    y, state = model(x)
    first, middle = model(x[:, :4])
    second, last = model(x[:, 4:], middle)
    assert_close(torch.cat([first, second], 1), y, torch.float32)
    assert_close(last.memory, state.memory, torch.float32)
    padded = torch.cat([torch.cat([x[1:2, :4], torch.full((1, 2, 3), torch.nan)], 1), randn(1, 6, 3)])
    alone, _, weightings = model(padded, lengths=[4, 6], return_weightings=True)
    assert_close(alone[0, :4], y[1, :4], torch.float32)
    assert not alone[0, 4:].any()
    assert weightings.shape == (2, 6, 2, 5)
    alone.sum().backward()
    assert all(w.grad.isfinite().all() for w in model.parameters())


def test_saving_compiling_and_exporting(tmp_path):
    """Protects save and load, one graph for any batch size, and torch.export."""
    model = NeuralTuringMachine(3, 2, 4, **SIZES)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = NeuralTuringMachine(3, 2, 4, **SIZES)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    x, larger = randn(2, 6, 3), randn(2, 7, 3)  # sizes of their own, or the compiler takes two for one
    assert torch.equal(other(x)[0], model(x)[0])

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    exported = torch.export.export(model, (x,), dynamic_shapes=({1: torch.export.Dim.DYNAMIC},)).module()
    for data in (x, larger):
        assert_close(exported(data)[0], model(data)[0], torch.float32)
        y, _ = compiled(data)
        assert_close(y, model(data)[0], torch.float32)
    y.sum().backward()
    got = [w.grad.clone() for w in model.parameters()]
    model.zero_grad()
    model(larger)[0].sum().backward()
    for ours, w in zip(got, model.parameters(), strict=True):
        assert_close(ours, w.grad, torch.float32, gradient=True)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NeuralTuringMachine(3, 2, 0), ValueError, "hidden_size should be an integer >= 1, got 0"),
        (
            lambda: NeuralTuringMachine(3, 2, read_heads=0),
            ValueError,
            "read_heads should be an integer >= 1",
        ),
        (
            lambda: NeuralTuringMachine(3, 2, controller="rnn"),
            ValueError,
            "controller should be 'lstm', 'gru' or",
        ),
        (
            lambda: NeuralTuringMachine(3, 2, memory_slots=4, shift_range=2),
            ValueError,
            "shift_range should be 0 to 1 for 4 slots, got 2",
        ),
        (lambda: NeuralTuringMachine(3, 2, shift_range=-1), ValueError, "shift_range should be 0 to 63"),
        (
            lambda: NeuralTuringMachine(3, 2)(randn(4, 3)),
            ValueError,
            r"x should be of size \(T, B, 3\), got \[4, 3\]",
        ),
        (lambda: NeuralTuringMachine(3, 2)(randn(4, 2, 2)), ValueError, r"got \[4, 2, 2\]"),
        (lambda: NeuralTuringMachine(3, 2)(randn(4, 0, 3)), ValueError, "none of them 0"),
        (
            lambda: NeuralTuringMachine(3, 2)(randn(4, 2, 3), lengths=[4, 5]),
            ValueError,
            "lengths should be from 0 to 4.* got 5",
        ),
        (
            lambda: NeuralTuringMachine(3, 2)(randn(4, 2, 3), NeuralTuringMachine(3, 2).initial_state(3)),
            ValueError,
            r"of sizes \[\[2, 128, 20\], .* got \[\[3, 128, 20\]",
        ),
        (
            lambda: NeuralTuringMachine(3, 2)(
                randn(4, 2, 3), NeuralTuringMachine(3, 2, controller="gru").initial_state(2)
            ),
            ValueError,
            "weightings and controller of sizes",
        ),
    ],
)
def test_errors(call, error, message):
    """Protects a user with wrong sizes: one error that names what was expected and what came."""
    with pytest.raises(error, match=message):
        call()
