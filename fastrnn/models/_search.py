"""Greedy and beam search, and the log probability of a given sequence, for models that write tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import _inputs


class Hypotheses(NamedTuple):
    """What a search found, for B rows K sequences each, the best first.

    tokens: (T, B, K) int64; the end symbol and everything after it is ``end``.
    lengths: (B, K) int64, tokens before the end symbol; T where it never came.
    scores: (B, K), by which they are sorted: log_probs over the length penalty.
    log_probs: (B, K), natural logarithm, the end symbol's included; -inf, with a length of 0, in the last
        places where there are fewer than K sequences.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    log_probs: Tensor


State = tuple[Tensor, ...]


def check_search(name: str, beam_size: int, max_length: int, length_penalty: float) -> None:
    """ValueError for a search that finds nothing."""
    _inputs.size(name, "beam_size", beam_size)
    _inputs.size(name, "max_length", max_length)
    _inputs.number(name, "length_penalty", length_penalty, 0)


@torch.no_grad()
def beam_search(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    state: State,
    *,
    start: int,
    end: int,
    beam_size: int,
    max_length: int,
    length_penalty: float = 0.0,
) -> Hypotheses:
    r"""The K sequences that are most probable, as far as a beam of K sees.

    Every step extends all live sequences by every token and keeps the best. One that ends leaves the beam and
    takes its place along (Sutskever et al., 2014), so that a beam of 1 is greedy search. Those that live at
    the same step are equally long; lengths count at the end, when all are sorted by

    .. math:: \log P(Y) / ((5 + |Y|) / 6)^\alpha

    with the end symbol in \|Y\| (Wu et al., "Google's Neural Machine Translation System", 2016,
    arXiv:1609.08144). Rows know nothing of each other, except that the search lasts until all are done.

    Args:
        step: the model: from the last tokens (B*K,) and a state to scores (B*K, V), logits or log
            probabilities, -inf for what must not come, and the next state. Rows b*K to b*K + K-1 are those of
            b.
        state: tensors with B rows in dimension 1, as torch.nn has them; at least one.
        start: the token before the first. end: the one that ends a sequence.
        beam_size: K. max_length: most tokens, the end symbol included.
        length_penalty: alpha; 0 sorts by probability, more prefers longer sequences.
    """
    rows, device = state[0].size(1), state[0].device
    state = tuple(s.repeat_interleave(beam_size, 1) for s in state)
    first = torch.arange(rows, device=device).unsqueeze(1) * beam_size
    history = torch.empty(0, rows, beam_size, dtype=torch.int64, device=device)
    token = torch.full((rows, beam_size), start, device=device)
    finished = torch.zeros(rows, beam_size, dtype=torch.bool, device=device)
    lengths = torch.zeros(rows, beam_size, dtype=torch.int64, device=device)
    total = None
    for _ in range(max_length):
        scores, state = step(token.flatten(), state)
        wide = torch.promote_types(scores.dtype, torch.float32)
        scores = scores.log_softmax(-1, dtype=wide).unflatten(0, (rows, beam_size))
        if total is None:  # K copies of the same beginning, of which one counts
            total = scores.new_full((rows, beam_size), -torch.inf)
            total[:, 0] = 0
        live = (~finished & (total > -torch.inf)).unsqueeze(2)
        candidates = torch.where(live, total.unsqueeze(2) + scores, -torch.inf)
        # A finished sequence goes on as itself, before all others.
        candidates[..., end] = torch.where(finished, total, candidates[..., end])
        rank = candidates.clone()
        rank[..., end] = torch.where(finished, torch.inf, rank[..., end])
        best = rank.flatten(1).topk(beam_size).indices
        total = candidates.flatten(1).gather(1, best)
        parent, token = best // scores.size(2), best % scores.size(2)

        history = torch.cat([history.gather(2, parent.expand(len(history), -1, -1)), token.unsqueeze(0)])
        lengths = lengths.gather(1, parent) + (token != end)
        finished = (token == end) & (total > -torch.inf)
        state = tuple(s.index_select(1, (first + parent).flatten()) for s in state)
        if bool((finished | (total == -torch.inf)).all()):
            break
    exists = total > -torch.inf
    lengths = lengths * exists
    history = history.masked_fill(~exists, end)
    scores = total / ((5 + lengths + finished) / 6) ** length_penalty
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    tokens = history.gather(2, order.expand(len(history), -1, -1))
    return Hypotheses(tokens, lengths.gather(1, order), scores, total.gather(1, order))


def sequence_log_prob(scores: Tensor, tokens: Tensor, end: int) -> Tensor:
    """log P of the tokens (T, B) up to their first end symbol, included, under the scores (T, B, V); (B,),
    in float32 at least."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    log_probs = scores.log_softmax(-1, dtype=wide).gather(2, tokens.unsqueeze(2)).squeeze(2)
    is_end = (tokens == end).long()
    return log_probs.masked_fill(is_end.cumsum(0) > is_end, 0).sum(0)
