"""MogrifierLSTM: the equations step by step, the LSTM it is without rounds, lengths, and a race with one."""

from __future__ import annotations

import _demo
import pytest
import torch

import fastrnn
from fastrnn.models import LanguageModel, MogrifierLSTM

T, B, IN, H = 5, 3, 4, 6


def model(**options) -> MogrifierLSTM:
    return MogrifierLSTM(IN, H, **{"num_layers": 2, **options}).double()


def data(steps: int = T, rows: int = B) -> torch.Tensor:
    return torch.randn(steps, rows, IN).double()


def states(layers: int = 2, rows: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(layers, rows, H).double(), torch.randn(layers, rows, H).double()


def reference(ours: MogrifierLSTM, x: torch.Tensor, h0: torch.Tensor, c0: torch.Tensor):
    """The paper's equations, the LSTM's included, in plain torch."""
    h_n, c_n = [], []
    for layer, cell in enumerate(ours.cells):
        h, c, outputs = h0[layer], c0[layer], []
        for step in x:
            above, below = step, h  # x^-1 and h^0
            for i in range(1, ours.rounds + 1):
                gate = cell.gates[i - 1]
                matrix = gate.weight if ours.rank is None else gate[1].weight @ gate[0].weight
                if i % 2:
                    above = 2 / (1 + torch.exp(-below @ matrix.t())) * above
                else:
                    below = 2 / (1 + torch.exp(-above @ matrix.t())) * below
            w = cell.cell
            i, f, g, o = (above @ w.weight_ih.t() + w.bias_ih + below @ w.weight_hh.t() + w.bias_hh).chunk(
                4, -1
            )
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        x = torch.stack(outputs)
        h_n.append(h)
        c_n.append(c)
    return x, torch.stack(h_n), torch.stack(c_n)


@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
@pytest.mark.parametrize("rank", [None, 2])
def test_the_papers_equations(rounds, rank):
    """Protects the arithmetic: outputs, states and every gradient, for odd and even rounds and low rank."""
    ours, x, hx = model(rounds=rounds, rank=rank), data(), states()
    leaves = [x, *hx, *ours.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    y, (h, c) = ours(x, hx)
    found, expected = (y, h, c), reference(ours, x, *hx)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    scales = [torch.randn_like(t) for t in found]
    gradients = [
        torch.autograd.grad(sum((s * t).sum() for s, t in zip(scales, outputs, strict=True)), leaves)
        for outputs in (found, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_no_rounds_make_an_lstm():
    """Protects the claim: with rounds=0 and the same weights it is fastrnn.LSTM, padded rows included."""
    ours, theirs = model(rounds=0), fastrnn.LSTM(IN, H, 2).double()
    for k, cell in enumerate(ours.cells):
        cell.cell.load_state_dict(
            {n[: -len(f"_l{k}")]: w for n, w in theirs.state_dict().items() if n.endswith(f"_l{k}")}
        )
    x, hx = data(), states()
    for kwargs in ({}, {"lengths": [5, 2, 3]}):
        (y, (h, c)), (y2, (h2, c2)) = ours(x, hx, **kwargs), theirs(x, hx, **kwargs)
        for a, b in ((y, y2), (h, h2), (c, c2)):
            torch.testing.assert_close(a, b)


def test_padded_rows_are_rows_alone():
    """Protects lengths: a row's outputs and states are what it has alone, whatever lies in the padding."""
    ours, x, hx, lengths = model(), data(), states(), [5, 1, 3]
    for b, n in enumerate(lengths):
        x[n:, b] = torch.nan
    y, (h, c) = ours(x, hx, lengths=lengths)
    for b, n in enumerate(lengths):
        alone, (h1, c1) = ours(x[:n, b : b + 1], tuple(t[:, b : b + 1].contiguous() for t in hx))
        torch.testing.assert_close(y[:n, b], alone[:, 0])
        torch.testing.assert_close(h[:, b], h1[:, 0])
        torch.testing.assert_close(c[:, b], c1[:, 0])
        assert (y[n:, b] == 0).all()


def test_dropout_is_between_layers_in_training():
    """Protects dropout: none in eval mode, none after the last layer."""
    ours, x = model(dropout=0.5), data()
    assert not torch.equal(ours(x)[0], ours(x)[0])
    assert (ours(x)[0] != 0).all()
    ours.eval()
    torch.testing.assert_close(ours(x)[0], ours(x)[0], rtol=0, atol=0)
    one = model(dropout=0.5, num_layers=1)
    torch.testing.assert_close(one(x)[0], one(x)[0], rtol=0, atol=0)


def test_in_a_language_model():
    """Protects the pair: state carried from chunk to chunk, greedy generation equal to reading anew."""
    ours, text = LanguageModel(model(), 7).double().eval(), torch.randint(7, (6, 2))
    prompt, whole = text, ours(text)[0]
    first, state = ours(text[:4])
    torch.testing.assert_close(torch.cat((first, ours(text[4:], state)[0])), whole)
    for _ in range(3):
        text = torch.cat((text, ours(text)[0][-1].argmax(-1)[None]))
    assert ours.generate(prompt, 3, temperature=0).tolist() == text[6:].tolist()


def test_state_dict_compile_and_export():
    """Protects saving, torch.compile as one graph for any number of rows, and torch.export."""
    options = {"rank": 2, "rounds": 2, "num_layers": 1}  # every step is in the graph: few make it quick
    ours, again, x = model(**options), model(**options), data(2)
    again.load_state_dict(ours.state_dict())
    expected = ours(x)
    torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="eager")
    for rows in (B, 4):
        x2 = data(2, rows)
        torch.testing.assert_close(compiled(x2), ours(x2))
    program = torch.export.export(ours, (x,))
    torch.testing.assert_close(program.module()(x), expected)


def test_wrong_input_is_named():
    """Protects the messages for what does not fit."""
    ours, x, (h, c) = model(), data(), states()
    for call, error, text in (
        (lambda: ours(x[:0]), ValueError, "none of them 0"),
        (lambda: ours(x[:, :0]), ValueError, r"x should be of size \(T, B, 4\)"),
        (lambda: ours(x[..., :2]), ValueError, "x should"),
        (lambda: ours(x, (h[:1], c)), ValueError, r"hx\[0\] should be of size \(2, 3, 6\), got \[1, 3, 6\]"),
        (lambda: ours(x, (h, c[:, :2])), ValueError, r"hx\[1\]"),
        (lambda: ours(x, h), TypeError, "hx should be a tuple \\(h_0, c_0\\), got a Tensor"),
        (lambda: ours(x, lengths=[5, 6, 1]), ValueError, "lengths should be from 1 to 5"),
        (lambda: model(rounds=-1), ValueError, "rounds"),
        (lambda: model(rank=0), ValueError, "rank"),
        (lambda: model(num_layers=0), ValueError, "num_layers"),
    ):
        with pytest.raises(error, match=text):
            call()


def test_no_worse_than_an_lstm(request, record_figures):
    """Protects what the paper says and the README repeats: after as many steps, with no more weights, no more
    bits a character than an LSTM, in the mean of three seeds."""
    if not request.config.getoption("--full"):
        pytest.skip("two minutes of training: make models")
    bits = {"mogrifier": [], "text": []}
    weights = {}
    for name, found in bits.items():
        for seed in range(3):
            demo = _demo.load(name)(seed=seed)
            demo.train(300)
            found.append(demo.score()["bits"])
            weights[name] = sum(p.numel() for p in demo.model.parameters())
    mean = {name: sum(found) / 3 for name, found in bits.items()}
    figures = {f"{name}, seed {seed}": b for name, found in bits.items() for seed, b in enumerate(found)}
    figures |= {f"{name}, mean": b for name, b in mean.items()}
    record_figures(
        "mogrifier and text, 300 steps", figures, {"mogrifier, mean": ("<=", round(mean["text"], 3))}
    )
    assert 0.98 * weights["text"] <= weights["mogrifier"] <= weights["text"]
    assert mean["mogrifier"] <= mean["text"]
