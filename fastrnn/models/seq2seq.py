"""Sequence to sequence: an encoder, a decoder and attention between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from . import _inputs
from ._blocks import Attention, Recurrence
from ._search import Hypotheses, beam_search, check_search, sequence_log_prob

__all__ = ["Seq2Seq"]


class Seq2Seq(nn.Module):
    r"""Translate a sequence of tokens into another.

    The encoder reads the source x into a memory, m_1 to m_S, and its last state is the decoder's first. The
    decoder reads what was written so far; at every step it looks at the memory and scores the next token:

    .. math::
        m, s_0 &= \mathrm{encoder}(E_x x) \\
        s_t &= \mathrm{decoder}(E_y y_{t-1}, s_{t-1}), \qquad y_0 = \mathrm{bos} \\
        \alpha_{t} &= \mathrm{softmax}_s\, \mathrm{score}(s_t, m_s), \qquad
        c_t = \textstyle\sum_s \alpha_{ts} m_s \\
        \tilde s_t &= \tanh(W_c [c_t; s_t]), \qquad
        P(y_t \mid y_{<t}, x) = \mathrm{softmax}(W_o \tilde s_t + b_o)

    with the score function :math:`v^\top \tanh(W s_t + U m_s)` ("additive", of Bahdanau, Cho and Bengio,
    "Neural Machine Translation by Jointly Learning to Align and Translate", ICLR 2015, arXiv:1409.0473) or
    :math:`s_t^\top W m_s` ("multiplicative", the "general" one of Luong, Pham and Manning, "Effective
    Approaches to Attention-based Neural Machine Translation", EMNLP 2015, arXiv:1508.04025). Attention comes
    after the recurrence, as in Luong et al.: no state depends on a context, so with a known target the
    decoder is one call of a fused layer, and attention and output one product each over all steps. (Bahdanau
    et al. compute c_t from s_{t-1} and feed it to the decoder, which takes a step at a time.)

    Without attention :math:`\tilde s_t = s_t`: all that the decoder knows of the source is s_0, a context
    vector of fixed size (Sutskever, Vinyals and Le, "Sequence to Sequence Learning with Neural Networks",
    NeurIPS 2014, arXiv:1409.3215).

    Args:
        source_size, target_size: tokens of the source and V, those of the target.
        hidden_size: H, features of the decoder's state, of the memory and of the score function; even if
            ``bidirectional``, where each direction of the encoder has half of them.
        bos, eos: tokens of the target, before its first and after its last.
        embedding_size: features of both embeddings; H by default.
        cell: "lstm", "gru" or "sru", of encoder and decoder.
        num_layers: of each. dropout: between layers, in training mode.
        bidirectional: whether the encoder reads the source in both directions.
        attention: "additive", "multiplicative" or None.

    Raises:
        ValueError: an option with another value than these, a size below 1, an odd hidden_size with two
            directions, bos or eos beyond the target's tokens.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        hidden_size: int,
        *,
        bos: int,
        eos: int,
        embedding_size: int | None = None,
        cell: str = "lstm",
        num_layers: int = 1,
        bidirectional: bool = True,
        attention: str | None = "additive",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _inputs.size("Seq2Seq", "source_size", source_size)
        _inputs.size("Seq2Seq", "target_size", target_size)
        if attention is not None:
            _checks.one_of("Seq2Seq", "attention", attention, Attention.KINDS)
        self.bos = _inputs.token("Seq2Seq", "bos", bos, target_size)
        self.eos = _inputs.token("Seq2Seq", "eos", eos, target_size)
        features = _inputs.size("Seq2Seq", "hidden_size", hidden_size)
        if embedding_size is not None:
            features = _inputs.size("Seq2Seq", "embedding_size", embedding_size)
        self.source_embedding = nn.Embedding(source_size, features)
        self.target_embedding = nn.Embedding(target_size, features)
        self.encoder = Recurrence("Seq2Seq", cell, features, hidden_size, num_layers, bidirectional, dropout)
        self.decoder = Recurrence("Seq2Seq", cell, features, hidden_size, num_layers, False, dropout)
        self.attention = self.combine = None
        if attention is not None:
            self.attention = Attention(attention, hidden_size, hidden_size, hidden_size)
            self.combine = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, target_size)

    def _encode(self, source: Tensor, lengths) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The decoder's first state, and what attention reads: memory and keys (B, S, H), and which of the
        steps there are, (B, S)."""
        _inputs.tokens("Seq2Seq", "source", source, self.source_embedding.num_embeddings, ("S", "B"))
        steps, rows = source.shape
        if lengths is not None:
            lengths = _inputs.row_lengths("Seq2Seq", lengths, rows, steps)
        memory, state = self.encoder(self.source_embedding(source), lengths=lengths)
        if self.attention is None:
            return state, ()
        valid = source.new_ones(source.shape, dtype=torch.bool)
        if lengths is not None:
            valid = _inputs.steps_within(lengths, steps, source.device)
        return state, (memory.transpose(0, 1), self.attention.keys(memory), valid.t())

    def _decode(self, tokens: Tensor, state: tuple[Tensor, ...], memory: tuple[Tensor, ...]):
        """Scores (T, B, V) of what follows the tokens (T, B), attention (T, B, S) or None, the next state."""
        s, state = self.decoder(self.target_embedding(tokens), state)
        weights = None
        if self.attention is not None:
            memory, keys, valid = memory
            scores = self.attention.scores(s, keys)
            weights = scores.masked_fill(~valid, torch.finfo(scores.dtype).min).softmax(2)
            context = (weights.transpose(0, 1) @ memory).transpose(0, 1)
            s = torch.tanh(self.combine(torch.cat([context, s], 2)))
        return self.output(s), weights, state

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Score a known target (teacher forcing).

        Args:
            source: (S, B) integers. lengths: (B,), steps of each row of it, 1 to S, in any order; all S by
                default. Steps beyond them are not read.
            target: (T, B) integers, without bos; a row that ends earlier has eos and then anything.
            return_attention: return alpha as well.

        Returns:
            (T, B, V), scores before softmax of every token in the place of target[t], given target[:t]. With
            ``return_attention`` also alpha, (T, B, S), None for a model without.

        Raises:
            ValueError: sizes that do not fit, an empty batch, lengths or (on the CPU) tokens out of range.
            TypeError: tokens or lengths that are not integers.
        """
        state, memory = self._encode(source, lengths)
        _inputs.tokens("Seq2Seq", "target", target, self.output.out_features, ("T", source.size(1)))
        start = target.new_full((1, target.size(1)), self.bos)
        scores, weights, _ = self._decode(torch.cat([start, target])[:-1], state, memory)
        return (scores, weights) if return_attention else scores

    def log_prob(
        self, source: Tensor, target: Tensor, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """log P(target | source) of every row, (B,), up to its first eos, included; arguments as in
        forward(). The negative of its mean is the loss to train with."""
        return sequence_log_prob(self(source, target, lengths), target.long(), self.eos)

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        beam_size: int = 1,
        max_length: int = 100,
        length_penalty: float = 0.0,
    ) -> Hypotheses:
        """Write a target for every source: greedy search, or beam search with ``beam_size`` > 1; without
        gradients. Call eval() before if there is dropout.

        Args:
            source, lengths: as in forward().
            beam_size: K. max_length: most tokens of a target, eos included.
            length_penalty: alpha of Wu et al., 2016; more prefers longer targets. See beam_search().

        Returns:
            tokens (T, B, K), the best first, eos from the end on; lengths, scores and log_probs (B, K).

        Raises:
            ValueError, TypeError: as forward(), and for a beam_size or max_length below 1.
        """
        check_search("Seq2Seq", beam_size, max_length, length_penalty)
        state, memory = self._encode(source, lengths)
        memory = tuple(m.repeat_interleave(beam_size, 0) for m in memory)

        def step(tokens, state):
            scores, _, state = self._decode(tokens.unsqueeze(0), state, memory)
            return scores.squeeze(0), state

        return beam_search(
            step,
            state,
            start=self.bos,
            end=self.eos,
            beam_size=beam_size,
            max_length=max_length,
            length_penalty=length_penalty,
        )
