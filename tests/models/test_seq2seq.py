"""Seq2Seq against its equations written out for one row, searches, graphs and errors."""

from __future__ import annotations

import _demo
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

import fastrnn
from fastrnn.models import Seq2Seq

BOS, EOS, SOURCE, TARGET, H = 5, 6, 9, 7, 6
LENGTHS = torch.tensor([4, 7, 1])


def _model(**options) -> Seq2Seq:
    torch.manual_seed(3)
    model = Seq2Seq(SOURCE, TARGET, H, bos=BOS, eos=EOS, embedding_size=4, **options)
    for p in model.parameters():  # larger than at the beginning, so that tokens differ
        p.data.mul_(3)
    return model.double().eval()


def _batch(steps: int = 5, rows: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(SOURCE, (7, rows), generator=generator)
    return source, torch.randint(TARGET, (steps, rows), generator=generator)


def _layer(recurrence):
    """torch.nn's layer with the same weights, or SRU's reference."""
    ours = recurrence.layers
    if isinstance(ours, fastrnn.SRU):
        layer = fastrnn.SRU(
            ours.input_size, ours.hidden_size, ours.num_layers, bidirectional=ours.bidirectional,
            backend="reference",
        )  # fmt: skip
    else:
        layer = getattr(nn, type(ours).__name__)(
            ours.input_size, ours.hidden_size, ours.num_layers, bidirectional=ours.bidirectional
        )
    layer.double().load_state_dict(ours.state_dict())
    return layer


def _reference(model: Seq2Seq, source, target):
    """Scores (T, V) and attention (T, S) of one row, (S,) and (T,), a step at a time."""
    encoder, decoder = _layer(model.encoder), _layer(model.decoder)
    memory, state = encoder(model.source_embedding.weight[source].unsqueeze(1))
    if isinstance(encoder, fastrnn.SRU):  # c has both directions side by side already
        join = lambda s: s  # noqa: E731
    else:
        directions = 2 if encoder.bidirectional else 1
        join = lambda s: torch.stack([torch.cat(list(d), 1) for d in s.split(directions)])  # noqa: E731
    state = tuple(map(join, state)) if isinstance(state, tuple) else join(state)
    rows, attention = [], []
    for token in [BOS, *target.tolist()][:-1]:
        s, state = decoder(model.target_embedding.weight[token].view(1, 1, -1), state)
        s = s.view(-1)
        if model.attention is not None:
            scores = []
            for m in memory[:, 0]:
                if model.attention.additive:
                    w, u, v = model.attention.query.weight, model.attention.memory, model.attention.v.weight
                    scores.append(v[0] @ torch.tanh(w @ s + u.weight @ m + u.bias))
                else:
                    scores.append(s @ model.attention.memory.weight @ m)
            alpha = torch.stack(scores).softmax(0)
            attention.append(alpha)
            context = sum(a * m for a, m in zip(alpha, memory[:, 0], strict=True))
            s = torch.tanh(model.combine.weight @ torch.cat([context, s]))
        rows.append(model.output.weight @ s + model.output.bias)
    return torch.stack(rows), attention


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "gru", "attention": "multiplicative", "num_layers": 2},
        {"cell": "sru", "num_layers": 2},
        {"cell": "lstm", "attention": None, "bidirectional": False, "num_layers": 2},
        {"cell": "gru", "bidirectional": False},
        {"cell": "sru", "bidirectional": False, "attention": "multiplicative"},
    ],
    ids=str,
)
def test_teacher_forcing(options):
    """One fused call gives what the equations give a step and a row at a time, without padding."""
    model, (source, target) = _model(**options), _batch()
    scores, attention = model(source, target, LENGTHS, return_attention=True)
    for b, n in enumerate(LENGTHS.tolist()):
        expected, weights = _reference(model, source[:n, b], target[:, b])
        torch.testing.assert_close(scores[:, b], expected)
        if weights:
            torch.testing.assert_close(attention[:, b, :n], torch.stack(weights))
            assert (attention[:, b, n:] == 0).all()


@pytest.mark.parametrize("attention", ["additive", "multiplicative"])
def test_gradients(attention):
    """The derivatives of log P(target) with respect to every parameter, by differences, and log_prob's are
    those: it counts each row up to its first end."""
    model, (source, target) = _model(attention=attention), _batch(3)
    target[1, 0] = EOS
    names = [n for n, _ in model.named_parameters()]
    values = [p.detach().requires_grad_() for p in model.parameters()]
    counts = torch.ones(target.shape, dtype=torch.float64)
    for b, row in enumerate(target.t().tolist()):
        if EOS in row:
            counts[row.index(EOS) + 1 :, b] = 0

    def log_prob(*values):
        named = dict(zip(names, values, strict=True))
        scores = torch.func.functional_call(model, named, (source, target, LENGTHS))
        return (counts * scores.log_softmax(2).gather(2, target.unsqueeze(2)).squeeze(2)).sum(0)

    assert torch.autograd.gradcheck(log_prob, values, fast_mode=True)
    expected = torch.autograd.grad(log_prob(*values).sum(), values)
    got = torch.autograd.grad(model.log_prob(source, target, LENGTHS).sum(), model.parameters())
    for name, a, b in zip(names, got, expected, strict=True):
        torch.testing.assert_close(a, b, msg=name)
        assert a.abs().sum() > 0, name


@pytest.mark.parametrize("cell", ["lstm", "gru", "sru"])
def test_generate(cell):
    """Greedy search takes the most probable token at every step, beams carry the log probability of what they
    found, and a row alone gives what it gives in a batch."""
    model, (source, _) = _model(cell=cell), _batch()
    greedy = model.generate(source, LENGTHS, max_length=6)
    tokens = greedy.tokens[:, :, 0]
    scores = model(source, tokens, LENGTHS)
    for b, n in enumerate(greedy.lengths[:, 0].tolist()):
        assert (scores[: n + 1, b].argmax(1) == tokens[: n + 1, b]).all()
    beam = model.generate(source, LENGTHS, beam_size=3, max_length=6, length_penalty=0.5)
    for k in range(3):
        log_prob = model.log_prob(source, beam.tokens[:, :, k], LENGTHS)
        torch.testing.assert_close(beam.log_probs[:, k], log_prob)
    assert (beam.scores[:, :-1] >= beam.scores[:, 1:]).all()
    for b, n in enumerate(LENGTHS.tolist()):
        alone = model.generate(source[:n, b : b + 1], beam_size=3, max_length=6, length_penalty=0.5)
        assert torch.equal(alone.lengths[0], beam.lengths[b])
        assert torch.equal(alone.tokens[:, 0], beam.tokens[: len(alone.tokens), b])
        torch.testing.assert_close(alone.scores[0], beam.scores[b])


def test_state_dict():
    """Saved weights give the same numbers in a new model."""
    model, batch = _model(num_layers=2), _batch()
    other = Seq2Seq(SOURCE, TARGET, H, bos=BOS, eos=EOS, embedding_size=4, num_layers=2).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(*batch, LENGTHS), model(*batch, LENGTHS))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_revert(cell):
    """With torch.nn's layers in place of fastrnn's the model is the same: what the benchmark compares."""
    model, (source, target) = _model(cell=cell, num_layers=2), _batch()
    expected = model(source, target), model.generate(source, max_length=5).log_probs
    fastrnn.revert(model)
    assert isinstance(model.decoder.layers, (nn.LSTM, nn.GRU))
    torch.testing.assert_close(model(source, target.int()), expected[0])
    torch.testing.assert_close(model.generate(source.int(), max_length=5).log_probs, expected[1])


@pytest.mark.parametrize("options", [{}, {"cell": "sru", "attention": "multiplicative"}], ids=str)
def test_compile(options):
    """Training is one graph for all sizes, with eager mode's gradients. (What AOTAutograd makes of a layer's
    graph is for tests/test_torch_compile.py.)"""
    torch._dynamo.reset()
    model, counter = _model(**options), CompileCounter()
    loss = torch.compile(model.log_prob, fullgraph=True, dynamic=True, backend=counter)
    for steps, rows in ((5, 3), (4, 2), (6, 5)):
        source, target = _batch(steps, rows)
        lengths = torch.arange(1, rows + 1)
        expected = torch.autograd.grad(model.log_prob(source, target, lengths).sum(), model.parameters())
        got = torch.autograd.grad(loss(source, target, lengths).sum(), model.parameters())
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_export():
    """The teacher-forced form exports, with sizes of its own choosing."""
    model = _model(cell="gru")
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes = {"source": sizes, "target": sizes, "lengths": {0: Dim.DYNAMIC}}
    program = torch.export.export(model, (*_batch(), LENGTHS), dynamic_shapes=shapes).module()
    for steps, rows in ((5, 3), (2, 4)):
        batch, lengths = _batch(steps, rows), torch.arange(2, rows + 2)
        torch.testing.assert_close(program(*batch, lengths), model(*batch, lengths))


def test_errors():
    """One clear error for every wrong argument."""
    model, (source, target) = _model(), _batch()
    for call, error, message in (
        (lambda: model(source + 9, target), ValueError, "source should be from 0 to 8, got"),
        (lambda: model(source, target - 9), ValueError, "target should be from 0 to 6, got -"),
        (
            lambda: model(source.double(), target),
            TypeError,
            "source should be int64 or int32, got torch.float64",
        ),
        (
            lambda: model(source, target[:, :2]),
            ValueError,
            r"target should be of size \(T, 3\), got \[5, 2\]",
        ),
        (
            lambda: model(source[:, :0], target),
            ValueError,
            r"source should be of size \(S, B\), none .* 0, got \[7, 0\]",
        ),
        (lambda: model(source[0], target), ValueError, r"source should be of size \(S, B\), got \[3\]"),
        (
            lambda: model(source, target, [1, 2]),
            ValueError,
            r"lengths should be of size \(3,\), got \[2\]",
        ),
        (lambda: model(source, target, [1, 0, 2]), ValueError, "lengths should be from 1 to 7.* got 0"),
        (lambda: model(source, target, [1, 8, 2]), ValueError, "lengths should be from 1 to 7.* got 8"),
        (
            lambda: model.generate(source, beam_size=0),
            ValueError,
            "beam_size should be an integer >= 1, got 0",
        ),
        (
            lambda: model.generate(source, max_length=0),
            ValueError,
            "max_length should be an integer >= 1, got 0",
        ),
        (lambda: model.generate(source, length_penalty=-1), ValueError, "length_penalty should be .* got -1"),
        (lambda: _model(cell="rnn"), ValueError, "cell should be 'lstm', 'gru' or 'sru', got 'rnn'"),
        (lambda: _model(attention="dot"), ValueError, "attention should be .* got 'dot'"),
        (lambda: Seq2Seq(4, 4, 4, bos=4, eos=0), ValueError, "bos should be an integer from 0 to 3, got 4"),
        (lambda: Seq2Seq(0, 4, 4, bos=1, eos=0), ValueError, "source_size should be an integer >= 1, got 0"),
        (lambda: Seq2Seq(4, 4, 5, bos=1, eos=0), ValueError, "hidden_size should be even .* got 5"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_attention_beats_the_fixed_context_vector(request, record_figures):
    """What Bahdanau et al. found: after as many steps on the dates, a decoder that sees the source only
    through the encoder's last state lies far behind."""
    if not request.config.getoption("--full"):
        pytest.skip("trains two models to their ends: make models")
    exact = {}
    for attention in ("additive", None):
        demo = _demo.load("dates")(attention=attention)
        demo.train(demo.steps)
        exact[str(attention)] = demo.score()["exact"]
    gap = exact["additive"] - exact["None"]
    record_figures("dates, with and without attention", {**exact, "gap": gap}, {"gap": (">=", 0.5)})
    assert gap >= 0.5
