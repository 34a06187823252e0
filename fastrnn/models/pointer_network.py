"""The pointer network: a decoder whose output is a position of its input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import _inputs
from ._blocks import Attention, Recurrence
from ._search import Hypotheses, beam_search, check_search, sequence_log_prob

__all__ = ["PointerNetwork"]


class PointerNetwork(nn.Module):
    r"""Answer with positions of the input, whose number is not fixed: Vinyals, Fortunato and Jaitly, "Pointer
    Networks", NeurIPS 2015, arXiv:1506.03134.

    An encoder reads the elements x_1 to x_S; at every step the decoder reads the element it pointed to
    before, and its attention over the encoder's outputs is the answer:

    .. math::
        e, d_0 &= \mathrm{encoder}(x) \\
        d_t &= \mathrm{decoder}(x_{C_{t-1}}, d_{t-1}) \\
        u_{tj} &= v^\top \tanh(W_1 e_j + W_2 d_t) \\
        P(C_t \mid C_{<t}, x) &= \mathrm{softmax}(u_t)

    Elements are numbered from 1, as in the paper. 0 is the paper's pair of start and end symbols: x_0 and e_0
    are learned, x_0 is the first input of the decoder, and who points to 0 has finished. The score
    of an element that must not be pointed to is -inf: padding, what ``allowed`` excludes, and without
    ``repeats`` every element that was pointed to before. No state depends on a score, so with known targets
    the decoder is one call of a fused layer.

    Args:
        input_size: I, features of an element.
        hidden_size: H, features of the encoder's output, of the decoder's state and of the score function;
            even if ``bidirectional``, where each direction of the encoder has half of them.
        cell: "lstm" (the paper's), "gru" or "sru", of encoder and decoder.
        num_layers: of each. dropout: between layers, in training mode.
        bidirectional: whether the encoder reads the elements in both directions (the paper's does not).
        repeats: whether an element may be pointed to more than once.

    Raises:
        ValueError: an option with another value than these, a size below 1, an odd hidden_size with two
            directions.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        cell: str = "lstm",
        num_layers: int = 1,
        bidirectional: bool = False,
        repeats: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        name = "PointerNetwork"
        self.input_size, self.repeats = _inputs.size(name, "input_size", input_size), repeats
        self.encoder = Recurrence(name, cell, input_size, hidden_size, num_layers, bidirectional, dropout)
        self.decoder = Recurrence(name, cell, input_size, hidden_size, num_layers, False, dropout)
        self.pointer = Attention("additive", hidden_size, hidden_size, hidden_size)
        self.start = nn.Parameter(torch.zeros(input_size))
        self.end = nn.Parameter(torch.zeros(hidden_size))

    def _encode(self, x: Tensor, lengths, allowed) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Elements with x_0 (B, S+1, I), keys with e_0's (B, S+1, H), which may be pointed to, d_0."""
        name = "PointerNetwork"
        _inputs.shaped(name, "x", x, "S", "B", self.input_size)
        steps, rows, _ = x.shape
        open_ = x.new_ones((steps, rows), dtype=torch.bool)
        if lengths is not None:
            lengths = _inputs.row_lengths(name, lengths, rows, steps)
            open_ = _inputs.steps_within(lengths, steps, x.device)
        if allowed is not None:
            _inputs.shaped(name, "allowed", allowed, steps, rows)
            if allowed.dtype != torch.bool:
                raise TypeError(f"{name}: allowed should be bool, got {allowed.dtype}")
            open_ = open_ & allowed
        e, state = self.encoder(x, lengths=lengths)
        e = torch.cat([self.end.expand(1, rows, -1), e])
        x = torch.cat([self.start.expand(1, rows, -1), x])
        open_ = nn.functional.pad(open_.t(), (1, 0), value=True)
        return x.transpose(0, 1), self.pointer.keys(e), open_, state

    def _decode(self, x: Tensor, keys: Tensor, tokens: Tensor, state: tuple[Tensor, ...]):
        """u (T, B, S+1), without masks, of what follows the positions (T, B), and the next state."""
        chosen = x.gather(1, tokens.t().unsqueeze(2).expand(-1, -1, x.size(2)))
        d, state = self.decoder(chosen.transpose(0, 1), state)
        return self.pointer.scores(d, keys), state

    def forward(
        self,
        x: Tensor,
        target: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Score known targets (teacher forcing).

        Args:
            x: (S, B, I). lengths: (B,), elements of each row, 1 to S, in any order; all S by default.
            target: (T, B) integers, positions from 1, 0 at the end; after that only 0 has a meaning.
            allowed: (S, B) bool, which elements may be pointed to; all by default.

        Returns:
            (T, B, S+1), scores before softmax of every position in the place of target[t], given target[:t];
            -inf for those that must not be.

        Raises:
            ValueError: sizes that do not fit, an empty batch, lengths out of range; on the CPU, targets that
                point to padding or to what is not allowed, or repeat themselves without ``repeats``.
            TypeError: targets or lengths that are not integers.
        """
        x, keys, open_, state = self._encode(x, lengths, allowed)
        target = _inputs.tokens("PointerNetwork", "target", target, keys.size(1), ("T", keys.size(0))).long()
        before = nn.functional.pad(target, (0, 0, 1, 0))[:-1]
        scores, _ = self._decode(x, keys, before, state)
        open_ = open_.expand(target.size(0), -1, -1)
        if not self.repeats:
            open_ = open_ & ~(_chosen(before, keys.size(1)).cumsum(0) > 0)
        if target.is_cpu and not torch.compiler.is_compiling():
            wrong = ~open_.gather(2, target.unsqueeze(2)).squeeze(2)
            if wrong.any():
                t, b = wrong.nonzero()[0].tolist()
                raise ValueError(
                    f"PointerNetwork: target[{t}, {b}] = {int(target[t, b])} points to padding, to an "
                    "element that is not allowed, or to one for the second time (repeats=False)"
                )
        return scores.masked_fill(~open_, -torch.inf)

    def log_prob(
        self,
        x: Tensor,
        target: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """log P(target | x) of every row, (B,), up to its first 0, included; arguments as in forward(). The
        negative of its mean is the loss to train with."""
        return sequence_log_prob(self(x, target, lengths, allowed=allowed), target.long(), 0)

    @torch.no_grad()
    def generate(
        self,
        x: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        allowed: Tensor | None = None,
        beam_size: int = 1,
        max_length: int | None = None,
        length_penalty: float = 0.0,
    ) -> Hypotheses:
        """Point: greedy search, or beam search with ``beam_size`` > 1; without
        gradients. Call eval() before if there is dropout.

        Args:
            x, lengths, allowed: as in forward().
            beam_size: K. max_length: most positions, the final 0 included; S+1 by default, enough for all
                elements once.
            length_penalty: alpha of Wu et al., 2016; more prefers longer answers. See beam_search().

        Returns:
            tokens (T, B, K), positions from 1, the best answer first, 0 from the end on; lengths, scores and
            log_probs (B, K).

        Raises:
            ValueError, TypeError: as forward(), and for a beam_size or max_length below 1.
        """
        x, keys, open_, state = self._encode(x, lengths, allowed)
        max_length = keys.size(1) if max_length is None else max_length
        check_search("PointerNetwork", beam_size, max_length, length_penalty)
        x, keys = x.repeat_interleave(beam_size, 0), keys.repeat_interleave(beam_size, 0)

        def step(tokens, state):
            *state, open_ = state
            if not self.repeats:
                open_ = open_ & ~_chosen(tokens, keys.size(1))
            scores, state = self._decode(x, keys, tokens.unsqueeze(0), tuple(state))
            return scores.squeeze(0).masked_fill(~open_[0], -torch.inf), (*state, open_)

        return beam_search(
            step,
            (*state, open_.unsqueeze(0)),
            start=0,
            end=0,
            beam_size=beam_size,
            max_length=max_length,
            length_penalty=length_penalty,
        )


def _chosen(tokens: Tensor, size: int) -> Tensor:
    """(..., size) bool, true at the position that a token (...) names, unless that is 0, which stays open."""
    positions = torch.arange(size, device=tokens.device)
    return (tokens.unsqueeze(-1) == positions) & (positions > 0)
