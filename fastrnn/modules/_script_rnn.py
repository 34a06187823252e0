"""What torch.jit.script compiles of the layers and cells: torch's own, on the same weights.

See ``_run/torchscript``. ``padded``, ``packed`` and ``step`` are every layer's and cell's; the functions with
``self`` are methods of the modules whose names they bear, and only say what a module gives them and takes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _script_rnn  # itself


def _layer(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: list[Tensor],
    weights: list[Tensor],
    options: tuple[bool, int, float, bool, bool],
    batch_first: bool,
) -> tuple[Tensor, list[Tensor]]:
    """torch's layer of a mode, over padded rows or, with batch_sizes, packed ones: the output and the states.
    options: bias, num_layers, dropout, training, bidirectional."""
    h = states[0]
    if mode == "LSTM":
        if batch_sizes is None:
            y, h, c = torch.lstm(x, states, weights, *options, batch_first)
        else:
            y, h, c = torch.lstm(x, batch_sizes, states, weights, *options)
        return y, [h, c]
    if mode == "GRU":
        if batch_sizes is None:
            y, h = torch.gru(x, h, weights, *options, batch_first)
        else:
            y, h = torch.gru(x, batch_sizes, h, weights, *options)
    elif mode == "RNN_TANH":
        if batch_sizes is None:
            y, h = torch.rnn_tanh(x, h, weights, *options, batch_first)
        else:
            y, h = torch.rnn_tanh(x, batch_sizes, h, weights, *options)
    else:
        if batch_sizes is None:
            y, h = torch.rnn_relu(x, h, weights, *options, batch_first)
        else:
            y, h = torch.rnn_relu(x, batch_sizes, h, weights, *options)
    return y, [h]


def _zeros(
    x: Tensor, rows: int, sizes: list[int], options: tuple[bool, int, float, bool, bool]
) -> list[Tensor]:
    """States (L*D, rows, .) of these sizes."""
    count = options[1] * (2 if options[4] else 1)
    return [x.new_zeros([count, rows, size]) for size in sizes]


def padded(
    name: str,
    mode: str,
    input: Tensor,
    given: list[Tensor],
    sizes: list[int],
    weights: list[Tensor],
    options: tuple[bool, int, float, bool, bool],
    batch_first: bool,
) -> tuple[Tensor, list[Tensor]]:
    """A layer over padded rows or a single sequence; `given` states of `sizes`, or none."""
    dims = input.dim()
    if dims != 2 and dims != 3:
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dims}D instead")
    for h in given:
        if h.dim() != dims:
            raise RuntimeError(f"{name}: For {dims}-D input, hx should also be {dims}-D, got {h.dim()}-D")
    batch = 0 if batch_first else 1
    x, states = input, given
    if dims == 2:
        x, states = input.unsqueeze(batch), [h.unsqueeze(1) for h in given]
    if len(states) == 0:
        states = _zeros(x, x.size(batch), sizes, options)
    y, last = _layer(mode, x, None, states, weights, options, batch_first)
    if dims == 2:
        return y.squeeze(batch), [h.squeeze(1) for h in last]
    return y, last


def packed(
    mode: str,
    input: PackedSequence,
    given: list[Tensor],
    sizes: list[int],
    weights: list[Tensor],
    options: tuple[bool, int, float, bool, bool],
) -> tuple[PackedSequence, list[Tensor]]:
    """The same over packed rows, whose states lie in the rows' own order."""
    data, batch_sizes, sorted_indices, unsorted_indices = input
    states = _zeros(data, int(batch_sizes[0]), sizes, options) if len(given) == 0 else given
    if len(given) > 0 and sorted_indices is not None:
        states = [h.index_select(1, sorted_indices) for h in given]
    y, last = _layer(mode, data, batch_sizes, states, weights, options, False)
    if unsorted_indices is not None:
        last = [h.index_select(1, unsorted_indices) for h in last]
    return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), last


def _listed(hx: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    given: list[Tensor] = []
    if hx is not None:
        given = [hx[0], hx[1]]
    return given


def _alone(hx: Tensor | None) -> list[Tensor]:
    given: list[Tensor] = []
    if hx is not None:
        given = [hx]
    return given


@torch.jit.export
def lstm(
    self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    options = self.bias, self.num_layers, float(self.dropout), self.training, self.bidirectional
    sizes = [self.proj_size if self.proj_size > 0 else self.hidden_size, self.hidden_size]
    y, last = padded(
        "LSTM", self.mode, input, _listed(hx), sizes, self._flat_weights, options, self.batch_first
    )
    return y, (last[0], last[1])


@torch.jit.export
def lstm_packed(
    self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
    options = self.bias, self.num_layers, float(self.dropout), self.training, self.bidirectional
    sizes = [self.proj_size if self.proj_size > 0 else self.hidden_size, self.hidden_size]
    y, last = packed(self.mode, input, _listed(hx), sizes, self._flat_weights, options)
    return y, (last[0], last[1])


@torch.jit.export
def gru(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
    options = self.bias, self.num_layers, float(self.dropout), self.training, self.bidirectional
    sizes, weights = [self.hidden_size], self._flat_weights
    y, last = padded("GRU", self.mode, input, _alone(hx), sizes, weights, options, self.batch_first)
    return y, last[0]


@torch.jit.export
def rnn(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
    options = self.bias, self.num_layers, float(self.dropout), self.training, self.bidirectional
    sizes, weights = [self.hidden_size], self._flat_weights
    y, last = padded("RNN", self.mode, input, _alone(hx), sizes, weights, options, self.batch_first)
    return y, last[0]


@torch.jit.export
def one_state_packed(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]:
    options = self.bias, self.num_layers, float(self.dropout), self.training, self.bidirectional
    y, last = packed(self.mode, input, _alone(hx), [self.hidden_size], self._flat_weights, options)
    return y, last[0]


def step(
    name: str,
    kind: str,
    input: Tensor,
    given: list[Tensor],
    size: int,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> list[Tensor]:
    """One step of a cell of torch's, "lstm", "gru" or an RNN by its nonlinearity: the states. Input (B, I)
    and `given` states (B, H), or none; or a single row's."""
    dims = input.dim()
    if dims != 1 and dims != 2:
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {dims}D instead")
    for h in given:
        if h.dim() != dims:
            raise ValueError(f"{name}: Expected hidden to be {dims}D as the input is, got {h.dim()}D instead")
    x, states = input, given
    if dims == 1:
        x, states = input.unsqueeze(0), [h.unsqueeze(0) for h in given]
    if len(states) == 0:
        zeros = x.new_zeros([x.size(0), size])
        states = [zeros, zeros]
    if kind == "lstm":
        h, c = torch.lstm_cell(x, states, w_ih, w_hh, b_ih, b_hh)
        states = [h, c]
    elif kind == "gru":
        states = [torch.gru_cell(x, states[0], w_ih, w_hh, b_ih, b_hh)]
    elif kind == "tanh":
        states = [torch.rnn_tanh_cell(x, states[0], w_ih, w_hh, b_ih, b_hh)]
    elif kind == "relu":
        states = [torch.rnn_relu_cell(x, states[0], w_ih, w_hh, b_ih, b_hh)]
    else:
        raise RuntimeError(f"Unknown nonlinearity: {kind}")
    return states if dims == 2 else [h.squeeze(0) for h in states]


# TorchScript looks up what these name where forward() is: through this module, which is known there too.


def lstm_cell(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    weights, given = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh), _script_rnn._listed(hx)
    found = _script_rnn.step("LSTMCell", "lstm", input, given, self.hidden_size, *weights)
    return found[0], found[1]


def gru_cell(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
    weights, given = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh), _script_rnn._alone(hx)
    return _script_rnn.step("GRUCell", "gru", input, given, self.hidden_size, *weights)[0]


def rnn_cell(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
    weights, given = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh), _script_rnn._alone(hx)
    return _script_rnn.step("RNNCell", self.nonlinearity, input, given, self.hidden_size, *weights)[0]
