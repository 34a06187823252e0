"""The search that Seq2Seq and PointerNetwork share, against searches written out for one row."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fastrnn.models._search import beam_search, sequence_log_prob

VOCABULARY, END, START = 4, 0, 1


def _table(rows: int, steps: int, seed: int = 0, sharpness: float = 1.5) -> torch.Tensor:
    """Log probabilities (B, steps, V, V) of the next token given row, step and last token."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, steps, VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    return (sharpness * scores).log_softmax(-1)


def _step(table):
    """The model of such a table. Its state: which row of the table a row of the beam is, and the step."""

    def step(tokens, state):
        row, t = state
        return table[row[0], t[0], tokens], (row, t + 1)

    rows = len(table)
    return step, (torch.arange(rows).unsqueeze(0), torch.zeros(1, rows, dtype=torch.int64))


def _search(table, **options):
    step, state = _step(table)
    return beam_search(step, state, start=START, end=END, max_length=table.size(1), **options)


def _log_prob(table, sequence):
    return sum(table[t, a, b].item() for t, (a, b) in enumerate(itertools.pairwise([START, *sequence])))


def _normalised(log_prob, length, alpha):
    return log_prob / ((5 + length) / 6) ** alpha


def _found(hypotheses, row):
    """Sequences of one row with their ends, scores and log probabilities, those that exist."""
    result = []
    for k in range(hypotheses.tokens.size(2)):
        tokens, length = hypotheses.tokens[:, row, k].tolist(), hypotheses.lengths[row, k].item()
        assert all(token == END for token in tokens[length:])
        ended = [END] if length < len(tokens) else []
        if hypotheses.log_probs[row, k] > -math.inf:
            pair = hypotheses.scores[row, k].item(), hypotheses.log_probs[row, k].item()
            result.append(((*tokens[:length], *ended), *pair))
    return result


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_wide_beam_finds_everything(alpha):
    """A beam as wide as there are sequences has all of them, in the order of their scores: the length
    penalty, ends, sequences that never end and places without a sequence."""
    steps, table = 3, _table(2, 3)
    hypotheses = _search(table, beam_size=50, length_penalty=alpha)
    for row in range(2):
        every = []
        for length in range(1, steps + 1):
            for head in itertools.product(range(1, VOCABULARY), repeat=length - 1):
                lasts = range(VOCABULARY) if length == steps else [END]
                for sequence in [(*head, last) for last in lasts]:
                    log_prob = _log_prob(table[row], sequence)
                    every.append((sequence, _normalised(log_prob, length, alpha), log_prob))
        every.sort(key=lambda found: -found[1])
        found = _found(hypotheses, row)
        assert [f[0] for f in found] == [e[0] for e in every]
        torch.testing.assert_close(torch.tensor([f[1:] for f in found]), torch.tensor([e[1:] for e in every]))


def _plain_beam(table, width, alpha):
    """One row's beam search with Python lists: a sequence that ends takes its place in the beam along."""
    live, done = [((), 0.0)], []
    for t in range(table.size(0)):
        candidates = [
            ((*sequence, token), log_prob + table[t, ([START, *sequence])[-1], token].item())
            for sequence, log_prob in live
            for token in range(VOCABULARY)
        ]
        best = sorted(candidates, key=lambda c: -c[1])[: width - len(done)]
        done += [c for c in best if c[0][-1] == END]
        live = [c for c in best if c[0][-1] != END]
    scored = [(s, _normalised(p, len(s), alpha), p) for s, p in done + live]
    return sorted(scored, key=lambda f: -f[1])


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_beams(width):
    """Batched over rows and beam, the search is that of each row alone, where most sequences are dropped; a
    beam of one is greedy."""
    table = _table(12, 6, seed=width)
    hypotheses = _search(table, beam_size=width, length_penalty=0.6)
    for row in range(12):
        expected = _plain_beam(table[row], width, 0.6)
        found = _found(hypotheses, row)
        assert [f[0] for f in found] == [e[0] for e in expected]
        assert found[0][1] == pytest.approx(expected[0][1])
    if width == 1:
        token, t = START, 0
        for t in range(6):
            token = table[0, t, token].argmax().item()
            assert hypotheses.tokens[t, 0, 0] == token
            if token == END:
                break


def test_beam_finds_better_than_greedy():
    """What a beam is for: on average it finds more probable sequences, and the rows where it does not are
    few."""
    table = _table(200, 8, sharpness=0.7)
    greedy, beam = _search(table, beam_size=1), _search(table, beam_size=4)
    gain = beam.log_probs[:, 0] - greedy.log_probs[:, 0]
    assert gain.mean() > 0.1
    assert (gain >= 0).float().mean() > 0.9


def test_stops_when_all_rows_have():
    """No step is computed after the last row's end, and forbidden tokens (-inf) never come."""
    calls = []

    def step(tokens, state):
        calls.append(1)
        scores = torch.full((len(tokens), VOCABULARY), -torch.inf)
        scores[:, END if len(calls) == 3 else 2] = 0
        return scores, state

    hypotheses = beam_search(step, (torch.zeros(1, 2, 1),), start=START, end=END, beam_size=3, max_length=20)
    assert len(calls) == 3
    assert hypotheses.tokens[:, :, 0].tolist() == [[2, 2], [2, 2], [END, END]]
    assert hypotheses.lengths[:, 0].tolist() == [2, 2]
    assert hypotheses.log_probs[0].tolist() == [0, -math.inf, -math.inf]


def test_sequence_log_prob():
    """Counts the end symbol and nothing after it."""
    scores = torch.randn(4, 2, VOCABULARY, dtype=torch.float64)
    tokens = torch.tensor([[2, 3], [END, 1], [3, 2], [END, 3]])
    p = scores.log_softmax(2)
    expected = [p[0, 0, 2] + p[1, 0, END], p[0, 1, 3] + p[1, 1, 1] + p[2, 1, 2] + p[3, 1, 3]]
    torch.testing.assert_close(sequence_log_prob(scores, tokens, END), torch.stack(expected))
