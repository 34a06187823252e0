"""PointerNetwork against its equations written out for one row, its masks, searches, graphs and errors."""

from __future__ import annotations

import itertools

import hull
import pytest
import torch
from helpers import randn
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

from fastrnn.models import PointerNetwork

S, IN, H = 5, 2, 6
LENGTHS = torch.tensor([3, 5, 1])
TARGETS = torch.tensor([[2, 5, 1], [3, 1, 0], [0, 4, 0], [0, 0, 0]])


def _model(**options) -> PointerNetwork:
    torch.manual_seed(2)
    model = PointerNetwork(IN, H, **options)
    for p in model.parameters():  # larger than at the beginning, and without zeros
        p.data.copy_(3 * p.data + 0.1 * torch.randn_like(p))
    return model.double().eval()


def _points(rows: int = 3, seed: int = 1) -> torch.Tensor:
    return randn(S, rows, IN, dtype=torch.float64, seed=seed)


def _reference(model: PointerNetwork, x, target, length):
    """Scores (T, S+1) of one row, x (S, I) and target (T,), a step at a time, with torch.nn's layers."""
    layers = []
    for ours in (model.encoder.layers, model.decoder.layers):
        layer = getattr(nn, type(ours).__name__)(
            ours.input_size, ours.hidden_size, ours.num_layers, bidirectional=ours.bidirectional
        )
        layer.double().load_state_dict(ours.state_dict())
        layers.append(layer)
    encoder, decoder = layers
    e, state = encoder(x[:length].unsqueeze(1))
    if encoder.bidirectional:  # both directions side by side
        if isinstance(state, tuple):
            state = tuple(torch.cat([s[0::2], s[1::2]], 2) for s in state)
        else:
            state = torch.cat([state[0::2], state[1::2]], 2)
    elements = [model.end, *e[:, 0]]
    inputs = [model.start, *x]
    w1, w2, v = model.pointer.memory, model.pointer.query.weight, model.pointer.v.weight[0]
    rows = []
    for t in range(len(target)):
        before = target[:t].tolist()
        d, state = decoder(inputs[before[-1] if before else 0].view(1, 1, -1), state)
        scores = []
        for j in range(len(x) + 1):
            if j > length or (not model.repeats and j > 0 and j in before):
                scores.append(torch.tensor(-torch.inf, dtype=torch.float64))
            else:
                scores.append(v @ torch.tanh(w1.weight @ elements[j] + w1.bias + w2 @ d.view(-1)))
        rows.append(torch.stack(scores))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "options",
    [{}, {"cell": "gru", "bidirectional": True, "num_layers": 2}, {"bidirectional": True, "repeats": True}],
    ids=str,
)
def test_teacher_forcing(options):
    """One fused call gives what the equations give a step and a row at a time; padding and what was pointed
    to before are masked."""
    model, x = _model(**options), _points()
    scores = model(x, TARGETS, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(scores[:, b], _reference(model, x[:, b], TARGETS[:, b], n))
    probabilities = scores.softmax(2)
    assert (probabilities[:, 0, 4:] == 0).all()
    assert (probabilities[1:, 0, 2] == 0).all() != model.repeats


def test_gradients():
    """log_prob's derivatives with respect to every parameter and the elements, by differences."""
    model, x = _model(), _points().requires_grad_()
    names = [n for n, _ in model.named_parameters()]
    values = [p.detach().requires_grad_() for p in model.parameters()]

    def log_prob(x, *values):
        named = dict(zip(names, values, strict=True))
        scores = torch.func.functional_call(model, named, (x, TARGETS, LENGTHS))
        return scores.log_softmax(2).gather(2, TARGETS.unsqueeze(2)).squeeze(2)

    assert torch.autograd.gradcheck(log_prob, (x, *values), fast_mode=True)


@pytest.mark.parametrize("cell", ["lstm", "gru", "sru"])
def test_generate(cell):
    """Greedy search takes the most probable element at every step, none twice and none of padding; beams
    carry the log probability of what they found, and a row alone gives what it gives in a batch."""
    model, x = _model(cell=cell), _points()
    greedy = model.generate(x, LENGTHS)
    tokens = greedy.tokens[:, :, 0]
    scores = model(x, tokens, LENGTHS)
    for b, n in enumerate(greedy.lengths[:, 0].tolist()):
        assert (scores[: n + 1, b].argmax(1) == tokens[: n + 1, b]).all()
    beam = model.generate(x, LENGTHS, beam_size=3)
    for b, n in enumerate(LENGTHS.tolist()):
        for k, size in enumerate(beam.lengths[b].tolist()):
            if beam.log_probs[b, k] == -torch.inf:
                continue
            found = beam.tokens[:size, b, k]
            assert len(set(found.tolist())) == size
            assert ((found > 0) & (found <= n)).all()
            log_prob = model.log_prob(x[:, b : b + 1], beam.tokens[:, b : b + 1, k], [n])
            torch.testing.assert_close(beam.log_probs[b, k], log_prob[0])
        alone = model.generate(x[:n, b : b + 1], beam_size=3)
        assert torch.equal(alone.tokens[:, 0], beam.tokens[: len(alone.tokens), b])
        torch.testing.assert_close(alone.log_probs[0], beam.log_probs[b])
    assert beam.log_probs[2, 2] == -torch.inf  # one element: only two answers exist


def test_a_wide_beam_finds_the_most_probable_answer():
    """Among all answers without repeats, each scored on its own."""
    model, x = _model(), _points(1)[:3]
    answers = [p for n in range(4) for p in itertools.permutations((1, 2, 3), n)]
    targets = torch.tensor([[*p, 0, 0, 0, 0][:4] for p in answers]).t()
    log_probs = model.log_prob(x.expand(-1, len(answers), -1), targets)
    beam = model.generate(x, beam_size=len(answers))
    assert torch.equal(beam.tokens[:, 0], targets[:, log_probs.argsort(descending=True)])
    torch.testing.assert_close(beam.log_probs[0].exp().sum().item(), 1.0)


def test_allowed_and_repeats():
    """Elements that are not allowed are never pointed to; with repeats some are more than once."""
    model, x = _model(), _points(20)
    allowed = torch.rand(S, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    found = model.generate(x, allowed=allowed, beam_size=2)
    tokens = found.tokens[:, :, 0]
    assert nn.functional.pad(allowed, (0, 0, 1, 0), value=True).gather(0, tokens).all()
    excluded = model(x, tokens, allowed=allowed).softmax(2)[..., 1:][:, ~allowed.t()]
    assert (excluded == 0).all()
    again = _model(repeats=True).generate(x, max_length=8).tokens[:, :, 0].t().tolist()
    assert any(len({*row} - {0}) < len([t for t in row if t]) for row in again)


def test_state_dict():
    """Saved weights give the same numbers in a new model."""
    model, other = _model(bidirectional=True), PointerNetwork(IN, H, bidirectional=True).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(_points(), TARGETS, LENGTHS), model(_points(), TARGETS, LENGTHS))


def test_compile():
    """Training is one graph for all sizes, with eager mode's gradients."""
    torch._dynamo.reset()
    model, counter = _model(bidirectional=True), CompileCounter()
    loss = torch.compile(model.log_prob, fullgraph=True, dynamic=True, backend=counter)
    for rows in (4, 2, 5):  # the first of them with sizes that all differ, which torch takes for a rule
        x, lengths = _points(rows), torch.full((rows,), 4)
        target = torch.arange(1, 4).unsqueeze(1).repeat(1, rows)
        expected = torch.autograd.grad(model.log_prob(x, target, lengths).sum(), model.parameters())
        got = torch.autograd.grad(loss(x, target, lengths).sum(), model.parameters())
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_export():
    """The teacher-forced form exports, with sizes of its own choosing."""
    model, sizes = _model(), {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes = {"x": sizes, "target": sizes, "lengths": {0: Dim.DYNAMIC}}
    program = torch.export.export(model, (_points(), TARGETS, LENGTHS), dynamic_shapes=shapes).module()
    for rows in (3, 4):
        args = _points(rows)[:4], torch.arange(1, 3).unsqueeze(1).expand(-1, rows), torch.full((rows,), 2)
        torch.testing.assert_close(program(*args), model(*args))


def test_errors():
    """One clear error for every wrong argument."""
    model, x = _model(), _points()
    wrong = TARGETS.clone()
    wrong[3, 1] = 4
    for call, error, message in (
        (lambda: model(x, TARGETS + 3), ValueError, "target should be from 0 to 5, got 8"),
        (lambda: model(x, TARGETS.float()), TypeError, "target should be int64 or int32, got torch.float32"),
        (lambda: model(x, TARGETS[:, :2]), ValueError, r"target should be of size \(T, 3\), got \[4, 2\]"),
        (lambda: model(x, TARGETS, [2, 5, 1]), ValueError, r"target\[1, 0\] = 3 points to padding"),
        (lambda: model(x, wrong), ValueError, r"target\[3, 1\] = 4 .* for the second time"),
        (lambda: model(x[0], TARGETS), ValueError, r"x should be of size \(S, B, 2\), got \[3, 2\]"),
        (
            lambda: model(x[:, :0], TARGETS),
            ValueError,
            r"x should be of size \(S, B, 2\), none .* 0, got \[5, 0, 2\]",
        ),
        (lambda: model(x[..., :1], TARGETS), ValueError, r"x should be of size \(S, B, 2\), got \[5, 3, 1\]"),
        (lambda: model(x, TARGETS, [1, 6, 1]), ValueError, "lengths should be from 1 to 5.* got 6"),
        (lambda: model(x, TARGETS, [1, 1]), ValueError, r"lengths should be of size \(3,\), got \[2\]"),
        (
            lambda: model.generate(x, allowed=x > 0),
            ValueError,
            r"allowed should be of size \(5, 3\), got \[5, 3, 2\]",
        ),
        (
            lambda: model.generate(x, allowed=x[..., 0]),
            TypeError,
            "allowed should be bool, got torch.float64",
        ),
        (lambda: model.generate(x, beam_size=0), ValueError, "beam_size should be an integer >= 1, got 0"),
        (lambda: model.generate(x, max_length=0), ValueError, "max_length should be an integer >= 1, got 0"),
        (lambda: _model(cell="rnn"), ValueError, "cell should be 'lstm', 'gru' or 'sru', got 'rnn'"),
        (lambda: PointerNetwork(0, 4), ValueError, "input_size should be an integer >= 1, got 0"),
        (lambda: PointerNetwork(2, 0), ValueError, "hidden_size should be an integer >= 1, got 0"),
        (lambda: PointerNetwork(2, 5, bidirectional=True), ValueError, "hidden_size should be even .* got 5"),
    ):
        with pytest.raises(error, match=message):
            call()


def _monotone_chain(points):
    """Andrew's convex hull of points in a list: their indices, counterclockwise from the leftmost."""
    order = sorted(range(len(points)), key=lambda i: points[i])

    def half(indices):
        chain = []
        for i in indices:
            while len(chain) > 1:
                (ax, ay), (bx, by), (cx, cy) = points[chain[-2]], points[chain[-1]], points[i]
                if (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0:
                    break
                chain.pop()
            chain.append(i)
        return chain[:-1]

    return half(order) + half(order[::-1])


def test_the_hulls_of_the_demo():
    """Its convex hulls are those of another algorithm, and its judgement of polygons is right."""
    points, lengths = hull.Demo._draw(torch.Generator().manual_seed(0), 200)
    corners = hull.convex_hull(points, lengths)
    for b, n in enumerate(lengths.tolist()):
        expected = [i + 1 for i in _monotone_chain(points[:n, b].tolist())]
        assert corners[:, b].tolist() == expected + [0] * (hull.MOST + 1 - len(expected))
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    assert hull.is_polygon(square)
    assert hull.area(square) == 1
    assert not hull.is_polygon(square[[0, 2, 1, 3]])
    assert not hull.is_polygon(square[:2])
