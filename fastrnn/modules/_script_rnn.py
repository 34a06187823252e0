"""What torch.jit.script compiles of the layers and cells: torch's own, on the same weights.

See ``_torchscript``. Each function is a method of the module whose name it bears.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _script_rnn  # itself


def _begin(name: str, input: Tensor, hidden: list[Tensor], batch_first: bool) -> tuple[Tensor, list[Tensor]]:
    """Input and states with a dimension for the batch."""
    dims = input.dim()
    if dims != 2 and dims != 3:
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dims}D instead")
    for h in hidden:
        if h.dim() != dims:
            raise RuntimeError(f"{name}: For {dims}-D input, hx should also be {dims}-D, got {h.dim()}-D")
    if dims == 3:
        return input, hidden
    return input.unsqueeze(0 if batch_first else 1), [h.unsqueeze(1) for h in hidden]


def _reorder(hidden: list[Tensor], order: Tensor | None) -> list[Tensor]:
    """States (L*D, B, .) with their rows in another order."""
    return hidden if order is None else [h.index_select(1, order) for h in hidden]


@torch.jit.export
def lstm(
    self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    given: list[Tensor] = []
    if hx is not None:
        given = [hx[0], hx[1]]
    x, states = _begin("LSTM", input, given, self.batch_first)
    if hx is None:
        rows = x.size(0) if self.batch_first else x.size(1)
        count = self.num_layers * (2 if self.bidirectional else 1)
        size = self.proj_size if self.proj_size > 0 else self.hidden_size
        states = [x.new_zeros([count, rows, size]), x.new_zeros([count, rows, self.hidden_size])]
    y, h, c = torch.lstm(
        x,
        states,
        self._flat_weights,
        self.bias,
        self.num_layers,
        self.dropout,
        self.training,
        self.bidirectional,
        self.batch_first,
    )
    if input.dim() == 2:
        return y.squeeze(0 if self.batch_first else 1), (h.squeeze(1), c.squeeze(1))
    return y, (h, c)


@torch.jit.export
def lstm_packed(
    self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
    data, batch_sizes, sorted_indices, unsorted_indices = input
    if hx is None:
        rows = int(batch_sizes[0])
        count = self.num_layers * (2 if self.bidirectional else 1)
        size = self.proj_size if self.proj_size > 0 else self.hidden_size
        states = [data.new_zeros([count, rows, size]), data.new_zeros([count, rows, self.hidden_size])]
    else:
        states = _reorder([hx[0], hx[1]], sorted_indices)
    y, h, c = torch.lstm(
        data,
        batch_sizes,
        states,
        self._flat_weights,
        self.bias,
        self.num_layers,
        self.dropout,
        self.training,
        self.bidirectional,
    )
    last = _reorder([h, c], unsorted_indices)
    return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), (last[0], last[1])


@torch.jit.export
def gru(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
    given: list[Tensor] = []
    if hx is not None:
        given = [hx]
    x, states = _begin("GRU", input, given, self.batch_first)
    if hx is None:
        rows = x.size(0) if self.batch_first else x.size(1)
        count = self.num_layers * (2 if self.bidirectional else 1)
        states = [x.new_zeros([count, rows, self.hidden_size])]
    y, h = torch.gru(
        x,
        states[0],
        self._flat_weights,
        self.bias,
        self.num_layers,
        self.dropout,
        self.training,
        self.bidirectional,
        self.batch_first,
    )
    if input.dim() == 2:
        return y.squeeze(0 if self.batch_first else 1), h.squeeze(1)
    return y, h


@torch.jit.export
def gru_packed(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]:
    data, batch_sizes, sorted_indices, unsorted_indices = input
    if hx is None:
        count = self.num_layers * (2 if self.bidirectional else 1)
        states = [data.new_zeros([count, int(batch_sizes[0]), self.hidden_size])]
    else:
        states = _reorder([hx], sorted_indices)
    y, h = torch.gru(
        data,
        batch_sizes,
        states[0],
        self._flat_weights,
        self.bias,
        self.num_layers,
        self.dropout,
        self.training,
        self.bidirectional,
    )
    last = _reorder([h], unsorted_indices)
    return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), last[0]


@torch.jit.export
def rnn(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
    given: list[Tensor] = []
    if hx is not None:
        given = [hx]
    x, states = _begin("RNN", input, given, self.batch_first)
    if hx is None:
        rows = x.size(0) if self.batch_first else x.size(1)
        count = self.num_layers * (2 if self.bidirectional else 1)
        states = [x.new_zeros([count, rows, self.hidden_size])]
    if self.mode == "RNN_TANH":
        y, h = torch.rnn_tanh(
            x,
            states[0],
            self._flat_weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
        )
    else:
        y, h = torch.rnn_relu(
            x,
            states[0],
            self._flat_weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
        )
    if input.dim() == 2:
        return y.squeeze(0 if self.batch_first else 1), h.squeeze(1)
    return y, h


@torch.jit.export
def rnn_packed(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]:
    data, batch_sizes, sorted_indices, unsorted_indices = input
    if hx is None:
        count = self.num_layers * (2 if self.bidirectional else 1)
        states = [data.new_zeros([count, int(batch_sizes[0]), self.hidden_size])]
    else:
        states = _reorder([hx], sorted_indices)
    if self.mode == "RNN_TANH":
        y, h = torch.rnn_tanh(
            data,
            batch_sizes,
            states[0],
            self._flat_weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
        )
    else:
        y, h = torch.rnn_relu(
            data,
            batch_sizes,
            states[0],
            self._flat_weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
        )
    last = _reorder([h], unsorted_indices)
    return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), last[0]


def _begin_step(name: str, input: Tensor, hidden: list[Tensor], size: int) -> tuple[Tensor, list[Tensor]]:
    """Input (B, I) and states (B, H) of a cell, zeros where there are none."""
    dims = input.dim()
    if dims != 1 and dims != 2:
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {dims}D instead")
    for h in hidden:
        if h.dim() != dims:
            raise ValueError(f"{name}: Expected hidden to be {dims}D as the input is, got {h.dim()}D instead")
    x = input if dims == 2 else input.unsqueeze(0)
    if len(hidden) == 0:
        zeros = x.new_zeros([x.size(0), size])
        return x, [zeros, zeros]
    return x, hidden if dims == 2 else [h.unsqueeze(0) for h in hidden]


def lstm_step(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    size: int,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    given: list[Tensor] = []
    if hx is not None:
        given = [hx[0], hx[1]]
    x, states = _begin_step("LSTMCell", input, given, size)
    h, c = torch.lstm_cell(x, states, w_ih, w_hh, b_ih, b_hh)
    return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))


def step(
    name: str,
    input: Tensor,
    hx: Tensor | None,
    size: int,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Tensor:
    """One step of a GRU, or of an RNN by the name of its nonlinearity."""
    given: list[Tensor] = []
    if hx is not None:
        given = [hx]
    x, states = _begin_step("GRUCell" if name == "gru" else "RNNCell", input, given, size)
    if name == "gru":
        h = torch.gru_cell(x, states[0], w_ih, w_hh, b_ih, b_hh)
    elif name == "tanh":
        h = torch.rnn_tanh_cell(x, states[0], w_ih, w_hh, b_ih, b_hh)
    elif name == "relu":
        h = torch.rnn_relu_cell(x, states[0], w_ih, w_hh, b_ih, b_hh)
    else:
        raise RuntimeError(f"Unknown nonlinearity: {name}")
    return h if input.dim() == 2 else h.squeeze(0)


# TorchScript looks up what these name where forward() is: through this module, which is known there too.


def lstm_cell(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
    return _script_rnn.lstm_step(input, hx, self.hidden_size, *weights)


def gru_cell(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
    weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
    return _script_rnn.step("gru", input, hx, self.hidden_size, *weights)


def rnn_cell(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
    weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
    return _script_rnn.step(self.nonlinearity, input, hx, self.hidden_size, *weights)
