"""CNNBiLSTM: lengths through the convolutions, both heads, CTC's loss and best path, errors, export."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from fastrnn.models import CNNBiLSTM
from fastrnn.models.cnn_bilstm import best_path

K = 4
KINDS = {
    "sequence": {"input_size": 3, "strides": (2, 3)},
    "image": {"input_size": 2, "height": 7, "strides": ((2, 1), (3, 2))},
}


def model(kind: str = "sequence", **options) -> CNNBiLSTM:
    options = {"channels": (4, 5), "hidden_size": 6, **KINDS[kind], **options}
    return CNNBiLSTM(options.pop("input_size"), K, **options).double()


def data(kind: str = "sequence", steps: int = 13, rows: int = 3) -> torch.Tensor:
    return torch.randn((steps, rows, 3) if kind == "sequence" else (rows, 2, 7, steps)).double()


def row(kind: str, x: torch.Tensor, b: int, n: int) -> torch.Tensor:
    return x[:n, b : b + 1] if kind == "sequence" else x[b : b + 1, ..., :n]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("head", ["ctc", "classify"])
def test_padded_rows_are_rows_alone(kind, cell, head):
    """Protects lengths: through strides and kernels a padded row gives what it gives alone, gradients too,
    whatever lies in the padding."""
    ours, x, lengths = model(kind, cell=cell, head=head), data(kind), [13, 6, 1]
    for b, n in enumerate(lengths):
        (x[n:, b] if kind == "sequence" else x[b, ..., n:]).fill_(math.nan)
    x.requires_grad_()
    got, total, gradients = ours(x, lengths), 0.0, []
    for b, n in enumerate(lengths):
        single = row(kind, x, b, n).detach().requires_grad_()
        alone = ours(single)
        if head == "ctc":
            steps = int(alone[1])
            strides = (2, 3) if kind == "sequence" else (1, 2)
            assert int(got[1][b]) == steps == math.ceil(math.ceil(n / strides[0]) / strides[1])
            pair = got[0][:steps, b], alone[0][:, 0]
        else:
            pair = got[b], alone[0]
        torch.testing.assert_close(*pair)
        total = total + pair[0].square().sum()
        gradients += torch.autograd.grad(pair[1].square().sum(), single)
    total.backward()
    for b, n in enumerate(lengths):
        torch.testing.assert_close(row(kind, x.grad, b, n), gradients[b])
        beyond = x.grad[n:, b] if kind == "sequence" else x.grad[b, ..., n:]
        assert (beyond == 0).all()
    assert gradients[0].abs().sum() > 0


def test_front_end_by_hand():
    """Protects the equations: convolution, relu, the order of features and steps, both heads."""
    ours, x = model("image"), data("image")
    y = x
    for convolution in ours.convolutions:
        y = nn.functional.conv2d(y, convolution.weight, convolution.bias, convolution.stride, 1).relu()
    steps = torch.stack([y[..., t].flatten(1) for t in range(y.size(-1))])
    features = ours.rnn(steps)[0]
    expected = (features @ ours.output.weight.t() + ours.output.bias).log_softmax(-1)
    got, lengths = ours(x)
    torch.testing.assert_close(got, expected)
    assert lengths.tolist() == [7, 7, 7]
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(7, 3).double())
    classify = model("image", head="classify")
    classify.load_state_dict(ours.state_dict())
    ends = torch.cat((features[-1, :, :6], features[0, :, 6:]), -1)
    torch.testing.assert_close(classify(x), ends @ ours.output.weight.t() + ours.output.bias)


def collapse(path: tuple[int, ...]) -> list[int]:
    return [c for c, _ in itertools.groupby(path) if c]


def test_loss_is_the_sum_over_all_paths():
    """Protects the loss: minus the log of the summed probability of every path that reads as the target."""
    ours = model()
    log_probs = torch.randn(4, 2, K).double().log_softmax(-1)
    targets, counts, lengths = torch.tensor([[1, 1], [3, 0]]), [2, 1], torch.tensor([4, 3])
    expected = 0.0
    for b in range(2):
        paths = itertools.product(range(K), repeat=int(lengths[b]))
        wanted = targets[b, : counts[b]].tolist()
        p = sum(
            math.exp(sum(float(log_probs[t, b, c]) for t, c in enumerate(path)))
            for path in paths
            if collapse(path) == wanted
        )
        expected -= math.log(p) / counts[b] / 2
    assert ours.loss(log_probs, lengths, targets, counts).item() == pytest.approx(expected)


def test_best_path():
    """Protects decoding: repeats merge unless a blank is between; nothing beyond the length counts."""
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 3], [3, 3, 0, 3, 0, 0, 1, 1]]).t()
    log_probs = nn.functional.one_hot(path, K).double()
    assert best_path(log_probs, torch.tensor([8, 6])) == [[1, 1, 2, 3], [3, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_compile_and_export(kind):
    """Protects saving, torch.compile with changing sizes, and torch.export with lengths."""
    ours, x, lengths = model(kind), data(kind), torch.tensor([13, 5, 2])
    again = model(kind)
    again.load_state_dict(ours.state_dict())
    expected = ours(x, lengths)
    torch.testing.assert_close(again(x, lengths), expected, rtol=0, atol=0)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="eager")
    for steps, rows in ((13, 3), (9, 4)):
        x2 = data(kind, steps, rows)
        n2 = torch.randint(1, steps + 1, (rows,))
        (a, m), (b, n) = compiled(x2, n2), ours(x2, n2)
        assert m.tolist() == n.tolist()
        torch.testing.assert_close(a, b)
    program = torch.export.export(ours, (x, lengths))
    torch.testing.assert_close(program.module()(x, lengths), expected)


def test_wrong_input_is_named():
    """Protects the messages for what does not fit, CTC's targets included."""
    ours, x = model(), data()
    log_probs, n = ours(x)
    targets = torch.tensor([[1, 2], [1, 1], [3, 1]])
    for call, error, text in (
        (lambda: ours(x[:0]), ValueError, "none of them 0"),
        (lambda: ours(x[:, :0]), ValueError, r"x should be of size \(T, B, 3\)"),
        (lambda: ours(x[..., :2]), ValueError, "x should"),
        (lambda: ours([1]), TypeError, "x should be a Tensor"),
        (lambda: model("image")(data("image")[:, :, :5]), ValueError, r"\(B, 2, 7, T\)"),
        (lambda: ours(x, [13, 0, 1]), ValueError, "lengths should be from 1 to 13"),
        (lambda: ours(x, [13, 14, 1]), ValueError, "got 14"),
        (lambda: ours(x, [13, 1]), ValueError, r"size \(3,\)"),
        (lambda: ours.loss(log_probs, n, targets + 2, [2, 2, 2]), ValueError, "from 0 to 3, got 5"),
        (lambda: ours.loss(log_probs, n, targets - 1, [2, 2, 2]), ValueError, "0 is the blank"),
        (lambda: ours.loss(log_probs, n, targets, [2, 0, 2]), ValueError, "from 1 to 2"),
        (
            lambda: ours.loss(log_probs, n.clamp(max=2), targets, [2, 2, 2]),
            ValueError,
            r"\[1\] needs 3 steps",
        ),
        (lambda: ours.loss(log_probs, n, targets.double(), [2, 2, 2]), TypeError, "int64"),
        (lambda: model(kernel_size=2), ValueError, "odd"),
        (lambda: model(strides=(1,)), ValueError, "strides should be as many"),
        (lambda: model(head="crf"), ValueError, "head"),
        (lambda: model(cell="RNN"), ValueError, "cell"),
        (lambda: CNNBiLSTM(3, 1), ValueError, "classes"),
    ):
        with pytest.raises(error, match=text):
            call()
