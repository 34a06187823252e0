"""The data of the demonstrations of ConvLSTM, neural Turing machine and memory network, and their rivals."""

from __future__ import annotations

import random

import _demo
import copying
import frames
import pytest
import stories
import torch


@pytest.mark.parametrize(
    ("name", "rival"), [("copying", copying.LongShortTermMemory), ("frames", frames.FullyConnected)]
)
def test_rivals_are_as_large(name, rival):
    """Protects "of equal size": the LSTM that a model is compared with has at least as many parameters, and
    not a tenth more."""
    size, other = (
        sum(weight.numel() for weight in model.parameters()) for model in (_demo.load(name)().model, rival())
    )
    assert size <= other <= 1.1 * size


def test_films():
    """Protects the films' physics: a blob moves half to one and a half pixels a frame, and never leaves."""
    film = frames.films(200, torch.Generator().manual_seed(0), blobs=1)
    assert film.shape == (frames.SHOWN + frames.AHEAD, 200, 1, frames.SIZE, frames.SIZE)
    pixels = torch.arange(frames.SIZE, dtype=torch.float32)
    light = film.sum((2, 3, 4))
    place = torch.stack([film.sum((2, 3)) @ pixels, film.sum((2, 4)) @ pixels]) / light
    # Where no part of the blob is over the edge its centre of mass is its place.
    inside = ((place > 4) & (place < frames.SIZE - 5)).all(0)
    inside = inside[1:] & inside[:-1]
    moved = (place[:, 1:] - place[:, :-1]).square().sum(0).sqrt()[inside]
    assert inside.sum() > 100
    assert moved.min() > 0.45
    assert moved.max() < 1.55
    assert light.min() > 3  # a quarter of a blob, in a corner, has 4.8


def test_stories():
    """Protects the answers: they are what somebody who reads the sentences one by one would say."""
    rng = random.Random(0)
    for facts in (1, 2):
        answers = set()
        for _ in range(200):
            sentences, question, answer = stories.story(facts, rng)
            place, holder = {}, {}
            for who, did, *_, what in map(str.split, sentences):
                if did == "took":
                    assert what not in holder
                    holder[what] = who
                else:
                    place[who] = what
            subject = question.split()[-1]
            assert (subject in holder) == (facts == 2)
            assert place[holder.get(subject, subject)] == answer
            assert len(sentences) == stories.LONG
            answers.add(answer)
        assert answers == set(stories.PLACES)
    words, question, answer = stories.batch(3, 2, random.Random(5))
    sentences, asked, right = stories.story(2, random.Random(5))
    assert [" ".join(stories.WORDS[w] for w in line if w) for line in words[0]] == sentences
    assert " ".join(stories.WORDS[w] for w in question[0] if w) == asked
    assert stories.WORDS[answer[0]] == right


def test_sequences():
    """Protects the copy task: the bits come first, then the end mark alone, then nothing; all at random."""
    x, bits = copying.sequences(20, 100, torch.Generator().manual_seed(0))
    assert torch.equal(x[:20, :, :-1], bits)
    assert x[20, :, -1].all()
    assert x[:20, :, -1].sum() == x[20:, :, :-1].sum() == x[21:].sum() == 0
    assert abs(bits.mean().item() - 0.5) < 0.02
