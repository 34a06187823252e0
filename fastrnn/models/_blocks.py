"""What encoders and decoders are made of: a fused layer with one kind of state, and attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from .._cells import NAMES, WITH_CELL
from ..modules import GRU, LSTM, SRU
from . import _inputs

CELLS = {"lstm": LSTM, "gru": GRU, "sru": SRU}


class Recurrence(nn.Module):
    """fastrnn's LSTM, GRU or SRU, whose state is always a tuple of tensors (L, B, H): h and c of an LSTM, h
    of a GRU, c of an SRU. With two directions each has H/2 features, and the state of a layer is both side by
    side: what an encoder leaves is what a decoder of as many layers begins with.
    """

    def __init__(
        self,
        name: str,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _checks.one_of(name, "cell", cell, tuple(CELLS))
        _inputs.size(name, "hidden_size", hidden_size)
        _inputs.size(name, "num_layers", num_layers)
        _inputs.number(name, "dropout", dropout, 0, 1)
        if bidirectional and hidden_size % 2:
            raise ValueError(f"{name}: hidden_size should be even for two directions, got {hidden_size}")
        self.layers = CELLS[cell](
            input_size,
            hidden_size // 2 if bidirectional else hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,
            bidirectional=bidirectional,
        )

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (T, B, I) to the output (T, B, H), zero beyond a row's length, and the last state."""
        layers = self.layers
        if isinstance(layers, SRU):
            pads = None
            if lengths is not None:
                pads = ~_inputs.steps_within(lengths, x.size(0), x.device)
            y, c = layers(x, None if state is None else state[0], mask_pad=pads)
            return y, (c,)
        alone = NAMES[layers.mode] not in WITH_CELL
        if state is not None and alone:
            state = state[0]
        # torch.nn's layers, which fastrnn.revert() may have put here, know no lengths.
        y, last = layers(x, state) if lengths is None else layers(x, state, lengths=lengths)
        last = (last,) if alone else last
        if layers.bidirectional:
            last = tuple(s.unflatten(0, (layers.num_layers, 2)).transpose(1, 2).flatten(2) for s in last)
        return y, last


class Attention(nn.Module):
    r"""Scores of queries q_t against memories m_s:

    "additive" (Bahdanau et al., 2015): :math:`v^\top \tanh(W q_t + U m_s)`, W and U to A features;
    "multiplicative" (Luong et al., 2015, "general"): :math:`q_t^\top W m_s`.
    """

    KINDS = ("additive", "multiplicative")

    def __init__(self, kind: str, query_size: int, memory_size: int, size: int) -> None:
        super().__init__()
        self.additive = kind == "additive"
        if self.additive:
            self.query = nn.Linear(query_size, size, bias=False)
            self.memory = nn.Linear(memory_size, size)
            self.v = nn.Linear(size, 1, bias=False)
        else:
            self.memory = nn.Linear(memory_size, query_size, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """What scores() needs of the memory (S, B, M), for all its calls: (B, S, A)."""
        return self.memory(memory).transpose(0, 1)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Queries (T, B, Q) and keys (B, S, A) to (T, B, S)."""
        queries = queries.transpose(0, 1)
        if self.additive:
            scores = self.v(torch.tanh(self.query(queries).unsqueeze(2) + keys.unsqueeze(1))).squeeze(3)
        else:
            scores = queries @ keys.transpose(1, 2)
        return scores.transpose(0, 1)
