"""What encoders and decoders are made of: a fused layer with one kind of state, attention, checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks, _masked
from ..modules import GRU, LSTM, SRU

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
            pads = None if lengths is None else ~valid_steps(x, lengths)
            y, c = layers(x, None if state is None else state[0], mask_pad=pads)
            return y, (c,)
        if state is not None and isinstance(layers, GRU):
            state = state[0]
        y, last = layers(x, state, lengths=lengths)
        last = last if isinstance(layers, LSTM) else (last,)
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


def valid_steps(x: Tensor, lengths: Tensor) -> Tensor:
    """(T, B) bool, whether a step of x (T, B, ...) is within its row's length."""
    return torch.arange(x.size(0), device=x.device).unsqueeze(1) < lengths.to(x.device)


def read_lengths(name: str, x: Tensor, lengths: Tensor | Sequence[int] | None) -> Tensor | None:
    """lengths of the rows of x, (T, B) or (T, B, I), 1 to T, as a tensor (B,) on the CPU.

    A graph under torch.compile or torch.export cannot look at the values; the kernels will.
    """
    if lengths is None:
        return None
    lengths = _masked.read(name, x.unsqueeze(2) if x.dim() == 2 else x, lengths, None, False, False).lengths
    if not torch.compiler.is_compiling():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1 or high > x.size(0):
            got = low if low < 1 else high
            raise ValueError(f"{name}: lengths should be 1 to {x.size(0)}, the steps given, got {got}")
    return lengths


def check_tokens(name: str, argument: str, tokens: Tensor, size: int, rows: int | None = None) -> Tensor:
    """Integers (T, B) of 0 to size-1, of a batch of `rows`; as int64.

    Values are looked at on the CPU, outside of graphs: a GPU would have to be waited for.
    """
    _checks.tensor(name, argument, tokens)
    if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
        raise TypeError(f"{name}: {argument} should hold integers, got {tokens.dtype}")
    if tokens.dim() != 2 or (tokens.size(0) == 0 or tokens.size(1) == 0):
        shape = list(tokens.shape)
        raise ValueError(f"{name}: {argument} should be (steps, batch), at least one of each, got {shape}")
    if rows is not None and tokens.size(1) != rows:
        raise ValueError(f"{name}: {argument} should have {rows} rows, got {tokens.size(1)}")
    if tokens.is_cpu and not torch.compiler.is_compiling():
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= size:
            got = low if low < 0 else high
            raise ValueError(f"{name}: {argument} should hold tokens of 0 to {size - 1}, got {got}")
    return tokens.long()
