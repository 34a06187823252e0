"""The Elman RNN layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .._run import symbolic
from .._run.torchscript import Overloads
from . import _script_rnn
from ._base import RecurrentLayer

__all__ = ["RNN"]

_MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}


class RNN(RecurrentLayer):
    r"""RNN(input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False,
    dropout=0.0, bidirectional=False, device=None, dtype=None, *, save="gates", backend="auto",
    norm=None, norm_eps=1e-5, zoneout=0.0, recurrent_dropout=0.0, weight_dropout=0.0, heads=1)

    A multi-layer Elman network, a drop-in for :class:`torch.nn.RNN`: the same parameters, initial values,
    checkpoints, numbers and errors. For every element of the sequence each layer computes

    .. math::
        h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    or, with ``nonlinearity="relu"``, ReLU in the place of tanh. The other arguments are those of
    :class:`fastrnn.GRU`; ``save`` makes no difference, since the output is all that backward needs.

    Parameters, for layer k and, with ``_reverse`` appended, its second direction:
        ``weight_ih_l{k}`` (H, I or D*H), ``weight_hh_l{k}`` (H, H), ``bias_ih_l{k}``, ``bias_hh_l{k}`` (H,).
        With options: ``weight_hh_l{k}`` (H, H/heads); ``norm_ih_l{k}`` and ``norm_hh_l{k}`` (H,).
    """

    _name = "RNN"

    def __init__(self, *args, **kwargs) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(_MODES[nonlinearity], *args, **kwargs)
        self.nonlinearity = nonlinearity

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        done: Tensor | None = None,
        return_all_states: bool = False,
    ) -> tuple:
        """Run the layers: as :meth:`fastrnn.GRU.forward`."""
        try:
            if lengths is reset is done is None and return_all_states is False:
                y, h, _ = self._run(input, hx)
                return y, h
            rows = self._rows(input, lengths, reset, done, return_all_states)
            found = self._run(input, hx, rows)
            if return_all_states:
                y, h, _, states = found
                return y, h, states[0]
            y, h, _ = found
            return y, h
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, RNN.forward, locals())) is None:
                raise
            return node

    # What torch.jit.script compiles.
    _script_forward, _script_forward_packed = _script_rnn.rnn, _script_rnn.one_state_packed
    __overloads__ = Overloads("_script_forward", "_script_forward_packed")
