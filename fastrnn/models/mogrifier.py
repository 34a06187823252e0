"""The Mogrifier LSTM: input and state gate each other, in turns, before every step of an LSTM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..modules import LSTMCell
from . import _inputs

_NAME = "MogrifierLSTM"


class MogrifierLSTMCell(nn.Module):
    r"""One step of a Mogrifier LSTM, from (B, I) and (h, c), (B, H) each, to the next (h, c).

    .. math::
        x^{i} &= 2 \sigma(Q^i h^{i-1}) \odot x^{i-2}, \qquad \text{for odd } i = 1 ... r \\
        h^{i} &= 2 \sigma(R^i x^{i-1}) \odot h^{i-2}, \qquad \text{for even } i = 1 ... r \\
        h_t, c_t &= \mathrm{LSTM}(x^{\uparrow}, h^{\uparrow}, c_{t-1})

    from :math:`x^{-1} = x_t, h^0 = h_{t-1}`; the arrow is the highest index. With a rank k each Q is a
    product (I, k) (k, H), and each R one (H, k) (k, I). Arguments as :class:`MogrifierLSTM`'s.

    Parameters: ``gates.{i}`` Q and R in turns, ``gates.{i}.0`` and ``gates.{i}.1`` with a rank, right factor
    first; ``cell`` an LSTMCell's.

    Raises:
        ValueError: sizes that are too small. From a call: ValueError and TypeError, x or hx that do not fit.
    """

    def __init__(self, input_size: int, hidden_size: int, rounds: int = 5, rank: int | None = None) -> None:
        super().__init__()
        self.input_size = _inputs.size(_NAME, "input_size", input_size)
        self.hidden_size = _inputs.size(_NAME, "hidden_size", hidden_size)
        _inputs.size(_NAME, "rounds", rounds, least=0)
        if rank is not None:
            _inputs.size(_NAME, "rank", rank)
        sizes = (hidden_size, input_size)
        self.gates = nn.ModuleList()
        for i in range(rounds):
            before, after = sizes if i % 2 == 0 else sizes[::-1]
            if rank is None:
                self.gates.append(nn.Linear(before, after, bias=False))
            else:
                factors = nn.Linear(before, rank, bias=False), nn.Linear(rank, after, bias=False)
                self.gates.append(nn.Sequential(*factors))
        self.cell = LSTMCell(input_size, hidden_size)

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        _inputs.features("MogrifierLSTMCell", "x", x, self.cell.weight_ih, "B", self.input_size)
        h, c = _inputs.lstm_state("MogrifierLSTMCell", hx, x.size(0), self.hidden_size)
        for i, gate in enumerate(self.gates):
            if i % 2 == 0:
                x = 2 * torch.sigmoid(gate(h)) * x
            else:
                h = 2 * torch.sigmoid(gate(x)) * h
        return self.cell(x, (h, c))


class MogrifierLSTM(nn.Module):
    """Layers of Mogrifier LSTMs, called like ``fastrnn.LSTM``.

    G. Melis, T. Kočiský and P. Blunsom, "Mogrifier LSTM", ICLR 2020 (arXiv:1909.01792). The equations are
    :class:`MogrifierLSTMCell`'s; no rounds make an LSTM. Every step waits for the one before with its whole
    input, so nothing can be computed for all steps in one call: a step costs its r products and one call of
    the fused cell.

    Args:
        input_size: I. hidden_size: H. num_layers: L.
        rounds: r, how often one gates the other, 0 or more; the paper takes 5.
        rank: k, of Q and R; None for full matrices.
        dropout: probability, on the output of each layer but the last, in training mode.

    Parameters: ``cells.{k}.`` and those of :class:`MogrifierLSTMCell`.

    Raises:
        ValueError: sizes that are too small.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        rounds: int = 5,
        rank: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = _inputs.size(_NAME, "input_size", input_size)
        self.hidden_size = _inputs.size(_NAME, "hidden_size", hidden_size)
        self.num_layers = _inputs.size(_NAME, "num_layers", num_layers)
        self.rounds = _inputs.size(_NAME, "rounds", rounds, least=0)
        self.rank = None if rank is None else _inputs.size(_NAME, "rank", rank)
        self.drop = nn.Dropout(_inputs.number(_NAME, "dropout", dropout, 0, 1))
        self.cells = nn.ModuleList(
            MogrifierLSTMCell(hidden_size if k else input_size, hidden_size, rounds, rank)
            for k in range(num_layers)
        )

    def forward(
        self,
        x: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the layers.

        Args:
            x: (T, B, I). hx: (h_0, c_0), (L, B, H) each; zeros by default.
            lengths: (B,), 1 to T, how many steps of each row there are. The output beyond is zero, h_n and
                c_n are those of a row's last step.

        Returns:
            output (T, B, H) and (h_n, c_n) like hx.

        Raises:
            ValueError: sizes or lengths that do not fit, an empty batch. TypeError: arguments of other types.
        """
        _inputs.features(_NAME, "x", x, self.cells[0].cell.weight_ih, "T", "B", self.input_size)
        T, B, _ = x.shape
        if hx is None:
            h0 = c0 = x.new_zeros(self.num_layers, B, self.hidden_size)
        else:
            h0, c0 = _inputs.lstm_state(_NAME, hx, self.num_layers, B, self.hidden_size)
        valid = None
        if lengths is not None:
            lengths = _inputs.row_lengths(_NAME, lengths, B, T)
            valid = _inputs.steps_within(lengths, T, x.device)[..., None]
            x = x.where(valid, 0)  # whatever the padding is, a gradient of zero times it is zero
        finals = []
        for k, cell in enumerate(self.cells):
            state, outputs = (h0[k], c0[k]), []
            for t, step in enumerate(x.unbind()):
                h, c = cell(step, state)
                outputs.append(h)
                if valid is not None:
                    h, c = (torch.where(valid[t], a, b) for a, b in zip((h, c), state, strict=True))
                state = h, c
            finals.append(state)
            x = torch.stack(outputs)
            if valid is not None:
                x = x.masked_fill(~valid, 0.0)
            if k + 1 < self.num_layers:
                x = self.drop(x)
        h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
        return x, (h_n, c_n)
