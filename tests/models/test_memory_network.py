"""The memory network against the paper's equations, word by word."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same, results
from tolerances import assert_close
from torch import nn
from torch._dynamo.testing import CompileCounter

import fastrnn
from fastrnn.models import MemoryNetwork

WORDS = 9
STORY = torch.tensor(
    [
        [[1, 2, 3, 0], [4, 5, 0, 0], [2, 2, 8, 7], [0, 0, 0, 0]],
        [[3, 0, 0, 0], [0, 0, 0, 0], [6, 5, 0, 0], [7, 8, 1, 1]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]
)
QUESTION = torch.tensor([[1, 4, 2], [3, 0, 0], [5, 6, 0]])


def _plain(model: MemoryNetwork, story, question):
    """One row, sentence, word and feature at a time, with torch.nn's GRU."""

    def vector(encoder, words):
        words = [w for w in words.tolist() if w]
        vectors = [encoder.embedding.weight[w] for w in words]
        if encoder.sentence == "gru":
            h = torch.zeros_like(vectors[0])
            for x in vectors:
                h = torch.gru_cell(x[None], h[None], *encoder.gru.parameters())[0]
            return h
        J, d, total = len(words), len(vectors[0]), 0
        for j, x in enumerate(vectors, 1):
            weights = [(1 - j / J) - (k / d) * (1 - 2 * j / J) for k in range(1, d + 1)]
            total = total + (x if encoder.sentence == "bag" else x * torch.tensor(weights, dtype=x.dtype))
        return total

    logits = []
    for sentences, words in zip(story, question, strict=True):
        u = vector(model.encoders[0], words)
        sentences = [s for s in sentences if s.any()]
        for a, c in zip(model.encoders[:-1], model.encoders[1:], strict=True):
            m, o = [], []
            for age, sentence in enumerate(reversed(sentences)):
                times = [0 if encoder.ages is None else encoder.ages[age] for encoder in (a, c)]
                m.append(vector(a, sentence) + times[0])
                o.append(vector(c, sentence) + times[1])
            if m:
                scores = torch.stack([u @ each for each in m])
                p = scores if model.linear else scores.softmax(0)
                u = u + sum(weight * each for weight, each in zip(p, o, strict=True))
        logits.append(torch.stack([u @ w for w in model.encoders[-1].embedding.weight]))
    return torch.stack(logits)


class _FromWeights(nn.Module):
    """A function of one parameter, as `results` asks for an input with a gradient."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, scale):
        return self.call(STORY, QUESTION) * scale


@pytest.mark.parametrize(
    "options",
    [
        {"hops": 3},
        {"hops": 1, "memory_size": None, "sentence": "bag"},
        {"hops": 2, "sentence": "gru"},
        {"hops": 2, "linear": True},
    ],
    ids=str,
)
def test_equations(options):
    """Protects encodings, ages, tying, hops, empty sentences and stories: logits and every gradient in
    float64 equal a plain loop over rows, sentences, words and features."""
    linear = options.pop("linear", False)
    model = MemoryNetwork(WORDS, 5, **options, dtype=torch.float64)
    model.linear = linear
    scale = torch.ones((), dtype=torch.float64)
    got = results(_FromWeights(model, model), scale)
    assert_same(got, results(_FromWeights(model, lambda *a: _plain(model, *a)), scale), torch.float64)


def test_rows_and_attention():
    """Protects a row's independence of its neighbours and of its padding, and what attention says."""
    for sentence in ("position", "gru"):
        model = MemoryNetwork(WORDS, 6, sentence=sentence)
        logits, p = model(STORY, QUESTION, return_attention=True)
        assert p.shape == (3, 3, 4)
        present = (STORY != 0).any(-1)
        assert_close(p.sum(-1), present.any(-1).float()[:, None].expand(-1, 3), torch.float32)
        assert not p.transpose(0, 1)[:, ~present].any()
        alone = model(STORY[:1, :3], QUESTION[:1])
        assert_close(alone, logits[:1], torch.float32)
        wider = nn.functional.pad(STORY[:1], (0, 2, 2, 3))
        assert_close(model(wider, nn.functional.pad(QUESTION[:1], (0, 4))), logits[:1], torch.float32)


def test_padding_has_no_embedding():
    """Protects word 0: its embedding is zero at first and gets no gradient as a word."""
    model = MemoryNetwork(WORDS, 4, hops=2)
    assert not any(encoder.embedding.weight[0].any() for encoder in model.encoders)
    model(STORY, QUESTION)[:, 1:].sum().backward()
    assert not any(encoder.embedding.weight.grad[0].any() for encoder in model.encoders)


def test_gru_is_the_fused_layer():
    """Protects what is said of fused layers: sentence="gru" encodes with fastrnn.GRU."""
    model = MemoryNetwork(WORDS, 4, sentence="gru")
    assert all(type(encoder.gru) is fastrnn.GRU for encoder in model.encoders)


@pytest.mark.parametrize("sentence", ["position", "gru"])
def test_saving_compiling_and_exporting(sentence, tmp_path):
    """Protects save and load, one graph (for any sizes: with one encoder, it takes seconds), torch.export."""
    model = MemoryNetwork(WORDS, 4, hops=1, sentence=sentence)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = MemoryNetwork(WORDS, 4, hops=1, sentence=sentence)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    # Sizes differ from each other, or the compiler takes two of them for one and compiles again.
    small = STORY[:2, :3].contiguous(), torch.cat([QUESTION[:2], QUESTION[:2]], 1)
    large = torch.cat([STORY, STORY], 1), torch.cat([QUESTION, QUESTION, QUESTION], 1)
    assert torch.equal(other(*small), model(*small))

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=sentence == "position", backend=counter)
    any_size = torch.export.Dim.DYNAMIC
    shapes = ({0: any_size, 1: any_size, 2: any_size}, {0: any_size, 1: any_size})
    exported = torch.export.export(model, small, dynamic_shapes=shapes).module()
    graphs = []
    for words in (small, large):
        assert_close(exported(*words), model(*words), torch.float32)
        if sentence == "position" or words is small:
            assert_close(compiled(*words), model(*words), torch.float32)
        graphs.append(counter.frame_count)
    # With dynamic=True torch compiles a first time in vain where it meets a float, nn.Embedding.norm_type.
    assert graphs[0] == graphs[1]
    torch._dynamo.reset()


def _ask(story=STORY, question=QUESTION, **options):
    return MemoryNetwork(WORDS, 4, **options)(story, question)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MemoryNetwork(1), ValueError, "vocabulary should be an integer >= 2, got 1"),
        (lambda: MemoryNetwork(5, hops=0), ValueError, "hops should be an integer >= 1, got 0"),
        (lambda: MemoryNetwork(5, memory_size=0), ValueError, "memory_size should be an integer >= 1, got 0"),
        (lambda: MemoryNetwork(5, sentence="lstm"), ValueError, "sentence should be 'position', 'bag' or"),
        (lambda: _ask(STORY.float()), TypeError, "story should be int64 or int32, got torch.float32"),
        (lambda: _ask(STORY[0]), ValueError, r"story should be of size \(B, N, J\), got \[4, 4\]"),
        (lambda: _ask(STORY[:0], QUESTION[:0]), ValueError, r"none of them 0, got \[0, 4, 4\]"),
        (lambda: _ask(question=QUESTION[:, :0]), ValueError, "question should be of size"),
        (lambda: _ask(question=QUESTION[:2]), ValueError, "as many rows, got 3 and 2"),
        (lambda: _ask(STORY + 2), ValueError, "story should be from 0 to 8, got 10"),
        (lambda: _ask(question=QUESTION - 1), ValueError, "question should be from 0 to 8, got -1"),
        (lambda: _ask(memory_size=3), ValueError, "at most memory_size = 3 sentences, got 4"),
    ],
)
def test_errors(call, error, message):
    """Protects a user with wrong sizes or words: one error that names what was expected and what came."""
    with pytest.raises(error, match=message):
        call()
