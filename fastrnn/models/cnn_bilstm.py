"""Convolutions, a bidirectional recurrent layer, and a head: labels along the way (CTC) or one for it all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks, modules
from . import _inputs

_NAME = "CNNBiLSTM"


class CNNBiLSTM(nn.Module):
    r"""A convolutional recurrent network.

    After B. Shi, X. Bai and C. Yao, "An End-to-End Trainable Neural Network for Image-Based Sequence
    Recognition and Its Application to Scene Text Recognition", TPAMI 2017 (arXiv:1507.05717), whose pooling
    is done here by the convolutions' strides. With the mask m of the steps that a row has:

    .. math::
        x^{(l)} &= m^{(l)} \odot \mathrm{relu}(\mathrm{conv}^{(l)}(x^{(l-1)})), \qquad l = 1 ... L \\
        [\overrightarrow{h}_t; \overleftarrow{h}_t] &= \mathrm{BiLSTM}(x^{(L)})_t \\
        \log p_t &= \mathrm{logsoftmax}(W [\overrightarrow{h}_t; \overleftarrow{h}_t] + b)
            \quad \text{("ctc")}, \qquad
        s = W [\overrightarrow{h}_{T'}; \overleftarrow{h}_1] + b \quad \text{("classify")}

    Convolutions are padded by (kernel - 1) / 2 zeros, so a stride s turns a row's n steps into ceil(n / s).
    Nothing beyond a row's length reaches it: a padded row gives what it gives alone. The first class is CTC's
    blank (A. Graves et al., "Connectionist Temporal Classification", ICML 2006).

    Args:
        input_size: F, features of a sequence, or channels of an image.
        classes: K; for "ctc" with the blank, which is class 0.
        height: of the images whose columns are the steps; None for sequences (a 1-D front end).
        channels: of each convolution. strides: of each one, an integer for sequences, (vertical, horizontal)
            for images. kernel_size: odd.
        hidden_size, num_layers, dropout: of the recurrent layer. cell: "LSTM" or "GRU".
        head: "ctc" or "classify".

    Raises:
        ValueError: sizes below 1, an even kernel, strides that are not as many as channels, an unknown name.
    """

    def __init__(
        self,
        input_size: int,
        classes: int,
        *,
        height: int | None = None,
        channels: Sequence[int] = (16, 32),
        strides: Sequence[int] | Sequence[tuple[int, int]] | None = None,
        kernel_size: int = 3,
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
        cell: str = "LSTM",
        head: str = "ctc",
    ) -> None:
        super().__init__()
        self.input_size = _inputs.size(_NAME, "input_size", input_size)
        self.classes = _inputs.size(_NAME, "classes", classes, least=2)
        self.height = None if height is None else _inputs.size(_NAME, "height", height)
        if _inputs.size(_NAME, "kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"{_NAME}: kernel_size should be odd, got {kernel_size}")
        _checks.one_of(_NAME, "cell", cell, ("LSTM", "GRU"))
        _checks.one_of(_NAME, "head", head, ("ctc", "classify"))
        _inputs.size(_NAME, "hidden_size", hidden_size)
        _inputs.size(_NAME, "num_layers", num_layers)
        _inputs.number(_NAME, "dropout", dropout, 0, 1)
        channels = _inputs.sizes(_NAME, "channels", channels)
        if strides is None:
            strides = [1 if height is None else (2, 1)] * len(channels)
        if not isinstance(strides, (tuple, list)) or len(strides) != len(channels):
            raise ValueError(
                f"{_NAME}: strides should be as many as channels, {len(channels)}, got {strides!r}"
            )
        for i, stride in enumerate(strides):
            if height is None:
                _inputs.size(_NAME, f"strides[{i}]", stride)
            elif len(_inputs.sizes(_NAME, f"strides[{i}]", stride)) != 2:
                raise ValueError(f"{_NAME}: strides[{i}] should be (vertical, horizontal), got {stride!r}")
        self.head = head
        conv, before = (nn.Conv1d if height is None else nn.Conv2d), input_size
        self.convolutions = nn.ModuleList()
        for width, stride in zip(channels, strides, strict=True):
            self.convolutions.append(conv(before, width, kernel_size, stride, kernel_size // 2))
            nn.init.kaiming_normal_(self.convolutions[-1].weight)
            nn.init.zeros_(self.convolutions[-1].bias)
            before = width
        for stride, *_ in (c.stride for c in self.convolutions if height is not None):
            height = _ceil_divide(height, stride)
        self.rnn = getattr(modules, cell)(
            before * (height or 1), hidden_size, num_layers, dropout=dropout, bidirectional=True
        )
        self.output = nn.Linear(2 * hidden_size, classes)

    def forward(
        self, x: Tensor, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Class probabilities of every step, or scores of the whole.

        Args:
            x: (T, B, F) or, with ``height``, (B, F, height, T): images whose columns are the steps.
            lengths: (B,), 1 to T, how many steps of each row there are; what lies beyond is ignored.

        Returns:
            "ctc": logarithms of probabilities, (T', B, K), and how many steps of each row there are, (B,);
            those beyond are to be ignored. "classify": scores (B, K).

        Raises:
            ValueError: sizes or lengths that do not fit, an empty batch. TypeError: lengths of another type.
        """
        weight = self.convolutions[0].weight
        if self.height is None:
            _inputs.features(_NAME, "x", x, weight, "T", "B", self.input_size)
            x = x.permute(1, 2, 0)
        else:
            _inputs.features(_NAME, "x", x, weight, "B", self.input_size, self.height, "T")
        B, T = x.size(0), x.size(-1)
        if lengths is None:
            n = torch.full((B,), T, device=x.device)
        else:
            n = _inputs.row_lengths(_NAME, lengths, B, T).to(x.device)
            x = self._mask(x, n)
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
            n = _ceil_divide(n, convolution.stride[-1])
            if lengths is not None:
                x = self._mask(x, n)
        steps = x.flatten(1, -2).permute(2, 0, 1)
        y, state = self.rnn(steps) if lengths is None else self.rnn(steps, lengths=n)
        if self.head == "ctc":
            return self.output(y).log_softmax(-1), n
        h = state[0] if isinstance(state, tuple) else state
        return self.output(torch.cat((h[-2], h[-1]), dim=-1))

    @staticmethod
    def _mask(x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, ..., T) with zeros from each row's length on, whatever was there."""
        beyond = torch.arange(x.size(-1), device=x.device) >= lengths[:, None]
        return x.masked_fill(beyond.view(len(x), *[1] * (x.dim() - 2), -1), 0.0)

    def loss(
        self,
        log_probs: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor | Sequence[int],
    ) -> Tensor:
        """CTC's loss in nats, divided by the length of the targets and averaged over the rows.

        Args:
            log_probs, lengths: what ``forward`` returns. targets: (B, S), labels 1 to K - 1, padded with
                anything. target_lengths: (B,), 1 to S.

        Raises:
            ValueError: a label out of range, a target that needs more steps than its row has (a label each,
                and a blank between equal ones).
        """
        _inputs.shaped(_NAME, "log_probs", log_probs, "T'", "B", self.classes)
        lengths = _inputs.row_lengths(_NAME, lengths, log_probs.size(1), log_probs.size(0))
        lengths = lengths.to(log_probs.device)
        _inputs.shaped(_NAME, "targets", targets, log_probs.size(1), "S")
        n = _inputs.row_lengths(_NAME, target_lengths, *targets.shape).to(targets.device)
        used = torch.arange(targets.size(1), device=targets.device) < n[:, None]
        labels = targets.masked_fill(~used, 1)
        _inputs.tokens(_NAME, "targets", labels, self.classes, ("B", "S"))
        if labels.is_cpu:
            if int(labels.min()) == 0:
                raise ValueError(f"{_NAME}: targets should be from 1 to {self.classes - 1}, 0 is the blank")
            needed = n + ((labels[:, 1:] == labels[:, :-1]) & used[:, 1:]).sum(1)
            if bool((needed > lengths.cpu()).any()):
                row = int((needed > lengths.cpu()).nonzero()[0])
                raise ValueError(
                    f"{_NAME}: targets[{row}] needs {int(needed[row])} steps, the row has {int(lengths[row])}"
                )
        return nn.functional.ctc_loss(log_probs, labels, lengths, n)


def best_path(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    """The labels of each row by CTC's best path: the best class of every step, repeats and blanks dropped."""
    rows = []
    for classes, n in zip(log_probs.argmax(-1).t().tolist(), lengths.tolist(), strict=True):
        path = classes[:n]
        rows.append([c for c, before in zip(path, [0, *path], strict=False) if c not in (0, before)])
    return rows


def _ceil_divide(n, stride: int):
    return (n + stride - 1) // stride
