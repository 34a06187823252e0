"""The GRU layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .._run import symbolic
from .._run.torchscript import Overloads
from . import _script_rnn
from ._base import RecurrentLayer, _option

__all__ = ["GRU"]


class GRU(RecurrentLayer):
    r"""GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, *, save="gates", backend="auto", norm=None, norm_eps=1e-5,
    zoneout=0.0, recurrent_dropout=0.0, weight_dropout=0.0, reset_after=True, heads=1)

    A multi-layer gated recurrent unit, a drop-in for :class:`torch.nn.GRU`: the same parameters, initial
    values, checkpoints, numbers and errors. For every element of the sequence each layer computes

    .. math::
        r &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n &= \tanh(W_{in} x_t + b_{in} + r \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z) \odot n + z \odot h_{t-1}

    Arguments are those of :class:`fastrnn.LSTM`, without ``proj_size``.

    Parameters, for layer k and, with ``_reverse`` appended, its second direction:
        ``weight_ih_l{k}`` (3H, I or D*H), ``weight_hh_l{k}`` (3H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}``
        (3H,); rows in the order r, z, n. With options: ``weight_hh_l{k}`` (3H, H/heads);
        ``norm_ih_l{k}`` and ``norm_hh_l{k}`` (3H,).
    """

    _name = "GRU"
    reset_after = _option("reset_after")

    def __init__(self, *args, **kwargs) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

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
        """Run the layers: as :meth:`fastrnn.LSTM.forward`, with one state h (L*D, B, H) in and out."""
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
            if (node := symbolic.module_call(self, GRU.forward, locals())) is None:
                raise
            return node

    # What torch.jit.script compiles.
    _script_forward, _script_forward_packed = _script_rnn.gru, _script_rnn.one_state_packed
    __overloads__ = Overloads("_script_forward", "_script_forward_packed")
