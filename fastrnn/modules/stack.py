"""Layers of different sizes on top of each other as one module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._run import symbolic, torchscript
from .gru import GRU
from .lstm import LSTM
from .minimal import IndRNN, MinGRU, MinLSTM
from .rnn import RNN
from .slstm import SLSTM

__all__ = ["LayerStack", "stack"]


_KINDS = {kind.__name__: kind for kind in (LSTM, GRU, RNN, IndRNN, MinGRU, MinLSTM, SLSTM)}


class LayerStack(nn.Module):
    """Recurrent layers, each on the output of the one before; made by :func:`stack`.

    Attributes:
        layers: the layers, an nn.ModuleList. dropout: probability, on the output of each but the last, in
            training.
    """

    def __init__(self, layers: Sequence[nn.Module], dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dropout = float(_checks.probability("stack", dropout))

    def forward(
        self, input: Tensor | PackedSequence, hx: Sequence | None = None, **rows
    ) -> tuple[Tensor | PackedSequence, tuple]:
        """Run the layers.

        Args:
            input: the first layer's. hx: a state of each layer, as it takes and gives it; None for zeros.
            rows: lengths, reset and done, for every layer.

        Returns:
            the last layer's output, and the states, a tuple of one for each layer.
        """
        try:
            return self._run(input, hx, rows)
        except (ValueError, *symbolic.ERRORS):  # for a Proxy in the place of hx the first of them
            if (node := symbolic.module_call(self, LayerStack.forward, locals())) is None:
                raise
            return node

    def __prepare_scriptable__(self):
        torchscript.refuse(self)

    def _run(self, input, hx, rows: dict) -> tuple:
        unknown = rows.keys() - {"lengths", "reset", "done"}
        if unknown:
            raise TypeError(f"stack: the layers are told lengths, reset and done, got {min(unknown)!r}")
        if hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != len(self.layers)):
            raise ValueError(
                f"stack: hx should have a state for each of {len(self.layers)} layers, got {_checks.kind(hx)}"
            )
        states, x = [], input
        for number, layer in enumerate(self.layers):
            if number and self.training and self.dropout:
                if isinstance(x, PackedSequence):
                    x = x._replace(data=dropout(x.data, self.dropout, True))
                else:
                    x = dropout(x, self.dropout, True)
            x, state = layer(x, None if hx is None else hx[number], **rows)
            states.append(state)
        return x, tuple(states)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}" if self.dropout else ""


def stack(
    kind: str | type[nn.Module],
    input_size: int,
    hidden_size: Sequence[int],
    *,
    dropout: float = 0.0,
    **options,
) -> LayerStack:
    """One module of recurrent layers, one for each hidden size.

        model = fastrnn.stack("LSTM", 40, [256, 128], norm="layer")
        y, ((h0, c0), (h1, c1)) = model(x)

    Args:
        kind: a layer's class, or its name in fastrnn: "LSTM", "GRU", "RNN", "MinGRU" and so on.
        input_size: of the first layer. hidden_size: of each layer.
        dropout: probability, between the layers. options: of each layer's constructor.

    Raises:
        ValueError: an unknown kind, no sizes, num_layers among the options. TypeError: sizes that are no
            list.
    """
    if isinstance(kind, str):
        if kind not in _KINDS:
            raise ValueError(f"stack: kind should be a class or one of {', '.join(_KINDS)}, got {kind!r}")
        kind = _KINDS[kind]
    elif not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(
            f"stack: kind should be a class or one of {', '.join(_KINDS)}, got {_checks.kind(kind)}"
        )
    if isinstance(hidden_size, (str, int)) or not isinstance(hidden_size, Sequence):
        raise TypeError(f"stack: hidden_size should be a list of sizes, got {_checks.kind(hidden_size)}")
    if not hidden_size or "num_layers" in options:
        raise ValueError("stack: there is one layer for each hidden size, got none, or num_layers too")
    layers, features = [], input_size
    for size in hidden_size:
        layers.append(kind(features, size, **options))
        features = (options.get("proj_size") or size) * (2 if options.get("bidirectional") else 1)
    return LayerStack(layers, dropout)
