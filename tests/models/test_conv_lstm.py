"""ConvLSTM against a plain step-by-step reference, and against LSTM where the two coincide."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same, randn, results
from tolerances import assert_close
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

import fastrnn
from fastrnn.models import ConvLSTM, ConvLSTMCell

SIZES = {1: (7,), 2: (6, 5), 3: (4, 3, 5)}


def _plain(model, x, h_0, c_0, lengths):
    """The equations row by row and step by step, every gate with convolutions of its own."""
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[model.cells[0].dims]
    steps, rows = x.shape[:2]
    h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
    for layer in range(model.num_layers):
        sides = []
        for direction in range(model.directions):
            k = layer * model.directions + direction
            cell = model.cells[k]
            to_gates, from_state = cell.input_conv, cell.state_conv
            y = x.new_zeros(steps, rows, cell.hidden_channels, *x.shape[3:])
            for b in range(rows):
                h, c = h_0[k, b], c_0[k, b]
                order = range(lengths[b])
                for t in reversed(order) if direction else order:
                    gates = []
                    for n in range(4):
                        part = slice(n * cell.hidden_channels, (n + 1) * cell.hidden_channels)
                        bias = None if to_gates.bias is None else to_gates.bias[part]
                        window = {"padding": to_gates.padding, "dilation": to_gates.dilation}
                        gates.append(
                            conv(x[t, b], to_gates.weight[part], bias, **window)
                            + conv(h, from_state.weight[part], None, **window)
                        )
                    peep = x.new_zeros(3, len(h)) if cell.peepholes is None else cell.peepholes
                    w_i, w_f, w_o = (w.view(-1, *[1] * cell.dims) for w in peep)
                    i, f, g = (gates[0] + w_i * c).sigmoid(), (gates[1] + w_f * c).sigmoid(), gates[2].tanh()
                    c = f * c + i * g
                    h = (gates[3] + w_o * c).sigmoid() * c.tanh()
                    y[t, b] = h
                h_n[k, b], c_n[k, b] = h, c
            sides.append(y)
        x = torch.cat(sides, 2)
    return x, (h_n, c_n)


class _Plain(torch.nn.Module):
    def __init__(self, model, lengths):
        super().__init__()
        self.cells, self.model, self.lengths = model.cells, [model], lengths

    def forward(self, x, hx):
        return _plain(self.model[0], x, *hx, self.lengths)


class _WithLengths(torch.nn.Module):
    def __init__(self, model, lengths):
        super().__init__()
        self.cells, self.model, self.lengths = model.cells, [model], lengths

    def forward(self, x, hx):
        return self.model[0](x, hx, lengths=self.lengths)


def _model(dims: int, **options):
    model = ConvLSTM(3, 2, dims=dims, dtype=torch.float64, **options)
    for cell in model.cells:
        if cell.peepholes is not None:
            torch.nn.init.normal_(cell.peepholes)
    return model


@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (1, {"kernel_size": 5, "bias": False, "bidirectional": True}),
        (
            2,
            {
                "kernel_size": (3, 5),
                "dilation": (2, 1),
                "num_layers": 2,
                "bidirectional": True,
                "peephole": True,
            },
        ),
        (3, {"kernel_size": (1, 3, 3), "peephole": True}),
    ],
    ids=["1-D", "2-D", "3-D"],
)
def test_equations(dims, options):
    """Protects the equations, with peepholes, dilation, layers, directions and lengths (one of them zero):
    outputs and every gradient in float64 equal a plain loop over rows and steps."""
    model = _model(dims, **options)
    x = randn(4, 3, 3, *SIZES[dims], dtype=torch.float64)
    states = len(model.cells)
    hx = tuple(randn(states, 3, 2, *SIZES[dims], dtype=torch.float64, seed=s) for s in (2, 3))
    for lengths in ([4, 0, 3], [4, 4, 4]):
        expected = results(_Plain(model, lengths), x, hx)
        assert_same(results(_WithLengths(model, torch.tensor(lengths)), x, hx), expected, torch.float64)
    assert_same(results(_WithLengths(model, None), x, hx), expected, torch.float64)


def test_frame_of_one_pixel_is_an_lstm():
    """Protects the order of the gates and both directions: on frames of one pixel a ConvLSTM with kernel 1 is
    fastrnn.LSTM with the same weights."""
    model = ConvLSTM(3, 4, 1, dims=1, bidirectional=True, num_layers=2)
    lstm = fastrnn.LSTM(3, 4, 2, bidirectional=True)
    with torch.no_grad():
        for k, cell in enumerate(model.cells):
            suffix = f"_l{k // 2}{'_reverse' if k % 2 else ''}"
            getattr(lstm, "weight_ih" + suffix).copy_(cell.input_conv.weight.squeeze(-1))
            getattr(lstm, "weight_hh" + suffix).copy_(cell.state_conv.weight.squeeze(-1))
            getattr(lstm, "bias_ih" + suffix).copy_(cell.input_conv.bias)
            getattr(lstm, "bias_hh" + suffix).zero_()
    x = randn(5, 3, 3)
    y, (h, c) = model(x.unsqueeze(-1), lengths=[5, 2, 4])
    expected, (h_n, c_n) = lstm(x, lengths=[5, 2, 4])
    for got, want in ((y, expected), (h, h_n), (c, c_n)):
        assert_close(got.squeeze(-1), want, torch.float32)


def test_steps_and_rows():
    """Protects stepping with the cell, batch_first, and a row's independence of its neighbours and of
    its padding, even of NaNs there."""
    model = ConvLSTM(2, 3, peephole=True, batch_first=True)
    x = randn(3, 4, 2, 5, 6)
    y, (h, c) = model(x)
    state = None
    for t in range(4):
        state = model.cells[0](x[:, t], state)
        assert_close(state[0], y[:, t], torch.float32)
    assert_close(h[0], state[0], torch.float32)
    assert_close(c[0], state[1], torch.float32)
    padded = torch.cat([x[1:2], torch.full((1, 3, 2, 5, 6), torch.nan)], 1)
    again, _ = model(torch.cat([padded, randn(1, 7, 2, 5, 6)]), lengths=[4, 7])
    assert_close(again[0, :4], y[1], torch.float32)
    assert not again[0, 4:].any()
    again.sum().backward()
    assert all(w.grad.isfinite().all() for w in model.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_is_kept(dims):
    """Protects the memory format: channels-last frames give channels-last outputs and states, whichever
    of batch and time comes first, and the same numbers."""
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    x = randn(2, 3, 4, *SIZES[dims])
    last = x.flatten(0, 1).to(memory_format=layout).unflatten(0, (2, 3))
    for batch_first in (False, True):
        model = ConvLSTM(4, 3, dims=dims, num_layers=2, bidirectional=True, batch_first=batch_first)
        y, (h, c) = model(last)
        frames = (y.transpose(0, 1) if batch_first else y).flatten(0, 1)
        assert all(t.is_contiguous(memory_format=layout) for t in (frames, h[1], c[1]))
        assert_close(y, model(x)[0], torch.float32)


def test_saving_compiling_and_exporting(tmp_path):
    """Protects save and load, one graph for any batch and frame size with its gradients, and torch.export."""
    model = ConvLSTM(2, 3, peephole=True)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = ConvLSTM(2, 3, peephole=True)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    # Sizes differ from each other, or the compiler takes two of them for one and compiles again.
    x, larger = randn(2, 3, 2, 5, 6), randn(2, 4, 2, 7, 8)
    assert torch.equal(other(x)[0], model(x)[0])

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    dynamic = {1: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC, 4: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(model, (x,), dynamic_shapes=(dynamic,)).module()
    for data in (x, larger):
        expected = results(model, data)
        got = {label.replace("_orig_mod.", ""): t for label, t in results(compiled, data).items()}
        assert_same(got, expected, torch.float32)
        assert_close(exported(data)[0], expected["y"], torch.float32)
    assert counter.frame_count == 1
    with_lengths = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    lengths = torch.tensor([2, 0, 1])
    assert_close(with_lengths(x, lengths=lengths)[0], model(x, lengths=lengths)[0], torch.float32)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ConvLSTM(2, 3, 4), ValueError, "kernel_size should be odd"),
        (lambda: ConvLSTM(2, 3, (3, 3, 3)), ValueError, "kernel_size should be 2 positive numbers"),
        (lambda: ConvLSTM(2, 3, dilation=0), ValueError, "dilation should be 2 positive numbers"),
        (lambda: ConvLSTM(2, 3, dims=4), ValueError, "dims should be 1, 2 or 3, got 4"),
        (lambda: ConvLSTM(2, 0), ValueError, "hidden_channels should be an integer >= 1, got 0"),
        (lambda: ConvLSTM(2, 3, num_layers=0), ValueError, "num_layers should be an integer >= 1"),
        (
            lambda: ConvLSTM(2, 3)(randn(3, 2, 5, 5)),
            ValueError,
            r"x should be of size \(T, B, 2, height, width\)",
        ),
        (lambda: ConvLSTM(2, 3)(randn(3, 2, 1, 5, 5)), ValueError, r"got \[3, 2, 1, 5, 5\]"),
        (lambda: ConvLSTM(2, 3)(randn(3, 0, 2, 5, 5)), ValueError, "none of them 0"),
        (lambda: ConvLSTM(2, 3)(randn(0, 3, 2, 5, 5)), ValueError, "none of them 0"),
        (
            lambda: ConvLSTM(2, 3)(randn(3, 1, 2, 5, 5), (randn(1, 1, 3, 5, 5), randn(1, 1, 3, 4, 5))),
            ValueError,
            r"hx\[1\] should be of size \(1, 1, 3, 5, 5\), got \[1, 1, 3, 4, 5\]",
        ),
        (
            lambda: ConvLSTM(2, 3)(randn(3, 1, 2, 5, 5), randn(1, 1, 3, 5, 5)),
            TypeError,
            r"hx should be a tuple \(h_0, c_0\), got a Tensor of size \[1, 1, 3, 5, 5\]",
        ),
        (
            lambda: ConvLSTM(2, 3)(randn(3, 1, 2, 5, 5), lengths=[4]),
            ValueError,
            "lengths should be from 0 .* got 4",
        ),
        (
            lambda: ConvLSTM(2, 3)(randn(3, 1, 2, 5, 5), lengths=[1, 2]),
            ValueError,
            r"lengths should be of size \(1,",
        ),
        (lambda: ConvLSTMCell(2, 3)(randn(1, 3, 5, 5)), ValueError, "ConvLSTMCell: x should be of size"),
        (
            lambda: ConvLSTMCell(2, 3)(randn(1, 2, 5, 5), (randn(1, 3, 5, 5), randn(2, 3, 5, 5))),
            ValueError,
            r"hx\[1\] should be of size \(1, 3, 5, 5\), got \[2, 3, 5, 5\]",
        ),
    ],
)
def test_errors(call, error, message):
    """Protects a user with wrong sizes: one error that names what was expected and what came."""
    with pytest.raises(error, match=message):
        call()
