"""The cells: one step at a time, for loops written by hand."""

from __future__ import annotations

from torch import Tensor, nn

from .._checks import tools
from .._run import symbolic
from .._run.step import one_step
from .._run.torchscript import scripts_as
from . import _script_rnn

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class RecurrentCell(nn.RNNCellBase):
    """Base of fastrnn's cells. Parameters, initial values and printing are torch.nn.RNNCellBase's."""

    def _init(self, input_size, hidden_size, bias, num_chunks, device, dtype) -> None:
        # Not super(): in fastrnn.compat torch.nn.LSTMCell comes next, whose arguments have no num_chunks.
        nn.RNNCellBase.__init__(self, input_size, hidden_size, bias, num_chunks, device=device, dtype=dtype)

    def __setattr__(self, name: str, value) -> None:
        if name in tools.MARKS:
            tools.warn(name, type(self).__name__)
        super().__setattr__(name, value)

    def _live_weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        # The dictionary spares four walks through Module.__getattr__, 2 us a step. Parametrized weights, or
        # those that weight norm recomputes, are not in it.
        parameters = self._parameters
        try:
            return (
                parameters["weight_ih"],
                parameters["weight_hh"],
                parameters["bias_ih"],
                parameters["bias_hh"],
            )
        except KeyError:
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


class LSTMCell(RecurrentCell):
    """LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None)

    One step of an LSTM, a drop-in for :class:`torch.nn.LSTMCell`. The equations are :class:`fastrnn.LSTM`'s.

    Parameters: ``weight_ih`` (4H, I), ``weight_hh`` (4H, H), ``bias_ih`` and ``bias_hh`` (4H,) or None.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        self._init(input_size, hidden_size, bias, 4, device, dtype)

    @scripts_as(_script_rnn.lstm_cell)
    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(B, I) or (I,) and, optionally, (h, c) of (B, H) or (H,) each, to the next (h, c)."""
        try:
            return one_step("LSTMCell", "lstm", input, hx, *self._live_weights())
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, LSTMCell.forward, locals())) is None:
                raise
            return node


class GRUCell(RecurrentCell):
    """GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None)

    One step of a GRU, a drop-in for :class:`torch.nn.GRUCell`. The equations are :class:`fastrnn.GRU`'s.

    Parameters: ``weight_ih`` (3H, I), ``weight_hh`` (3H, H), ``bias_ih`` and ``bias_hh`` (3H,) or None.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        self._init(input_size, hidden_size, bias, 3, device, dtype)

    @scripts_as(_script_rnn.gru_cell)
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, I) or (I,) and, optionally, h of (B, H) or (H,), to the next h."""
        try:
            return one_step("GRUCell", "gru", input, hx, *self._live_weights())[0]
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, GRUCell.forward, locals())) is None:
                raise
            return node


class RNNCell(RecurrentCell):
    """RNNCell(input_size, hidden_size, bias=True, nonlinearity="tanh", device=None, dtype=None)

    One step of an Elman network, a drop-in for :class:`torch.nn.RNNCell`; nonlinearity "tanh" or "relu".

    Parameters: ``weight_ih`` (H, I), ``weight_hh`` (H, H), ``bias_ih`` and ``bias_hh`` (H,) or None.
    """

    __constants__ = (*nn.RNNCellBase.__constants__, "nonlinearity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device=None,
        dtype=None,
    ) -> None:
        self._init(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    @scripts_as(_script_rnn.rnn_cell)
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, I) or (I,) and, optionally, h of (B, H) or (H,), to the next h."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        try:
            cell = f"rnn_{self.nonlinearity}"
            return one_step("RNNCell", cell, input, hx, *self._live_weights())[0]
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, RNNCell.forward, locals())) is None:
                raise
            return node
