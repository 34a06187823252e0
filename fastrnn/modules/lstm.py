"""The LSTM layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._run import symbolic
from .._run.rnn import permute
from .._run.torchscript import Overloads
from . import _script_rnn
from ._base import RecurrentLayer, _option

__all__ = ["LSTM"]


class LSTM(RecurrentLayer):
    r"""LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, proj_size=0, device=None, dtype=None, *, save="gates", backend="auto", norm=None,
    norm_eps=1e-5, zoneout=0.0, recurrent_dropout=0.0, weight_dropout=0.0, peephole=False, coupled=False,
    forget_bias=0.0, heads=1)

    A multi-layer long short-term memory, a drop-in for :class:`torch.nn.LSTM`: the same parameters, initial
    values, checkpoints, numbers and errors. For every element of the sequence each layer computes

    .. math::
        i &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f \odot c_{t-1} + i \odot g, \qquad h_t = o \odot \tanh(c_t)

    and with ``proj_size`` P > 0 then :math:`h_t \leftarrow W_{hr} h_t` (Sak et al., 2014).

    Args:
        input_size: I, features of the input. hidden_size: H, features of the state.
        num_layers: L, layers on top of each other.
        bias: whether there are b_ih and b_hh.
        batch_first: input and output as (B, T, features); states keep their shape.
        dropout: probability, on the output of each layer but the last, in training mode.
        bidirectional: D = 2 directions, their outputs side by side.
        proj_size: P, the projection's size, below H; 0 for none, and P = H in what follows.
        device, dtype: of the parameters. float32, float64, bfloat16 and float16 have kernels; half types
            compute with float32 sums and state. Complex types run in plain torch.
        save: "gates" or "recompute", what training keeps for backward. backend: "auto", "fused", "cudnn",
            "reference" or a tier of the CUDA kernels. See :class:`RecurrentLayer`.
        norm, norm_eps, zoneout, recurrent_dropout, weight_dropout, peephole, coupled, forget_bias, heads:
            make a variant of the cell, off by default; see :class:`RecurrentLayer` and docs/variants.md.

    Parameters, for layer k and, with ``_reverse`` appended, its second direction:
        ``weight_ih_l{k}`` (4H, I or D*P), ``weight_hh_l{k}`` (4H, P), ``bias_ih_l{k}`` and ``bias_hh_l{k}``
        (4H,), ``weight_hr_l{k}`` (P, H); rows in the order i, f, g, o. With options: ``weight_hh_l{k}`` (4H,
        P/heads); ``weight_peephole_l{k}`` (3H,) in the order i, f, o; ``norm_ih_l{k}`` and ``norm_hh_l{k}``
        (4H,), ``norm_c_l{k}`` and ``norm_c_bias_l{k}`` (H,).
    """

    _name = "LSTM"
    peephole, coupled = _option("peephole"), _option("coupled")

    def __init__(self, *args, **kwargs) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        done: Tensor | None = None,
        return_all_states: bool = False,
    ) -> tuple:
        """Run the layers.

        Args:
            input: (T, B, I), (B, T, I) if ``batch_first``, (T, I) for one sequence, or a PackedSequence.
            hx: (h_0, c_0), (L*D, B, P) and (L*D, B, H), without B for one sequence; zeros by default.
            lengths: (B,), how many steps each row of a padded batch has, 0 to T, in any order; integers on
                any device, or a list. Steps beyond a row's length are not computed, their output is zero, and
                h_n and c_n are those of its last step (hx, for a row without one). What packing gives,
                without sorting or copying.
            reset: (T, B), laid out like the input; bool or integers. Where it is true a new sequence begins,
                with a state of zeros: the state of step t-1 does not reach step t, nor that of t the step
                t-1 in the reverse direction. What reinforcement learning calls "episode starts".
            done: the same from the other side, as environments tell it: (T, B) like reset, and where it is
                true a sequence ends with step t. So done[t] is reset[t+1], and where done is true at a row's
                last step, its h_n and c_n are zeros (in the forward direction), for the next call to begin
                with. Together with reset, either of them cuts.
            return_all_states: return the states of every step as well.

        Returns:
            output, (T, B, D*P) or as the input is laid out, and (h_n, c_n) like hx. With
            ``return_all_states`` also (h, c) of every layer and step, (L, T, B, D*P) and (L, T, B, D*H), or
            (L, B, T, ...) with ``batch_first``; they have gradients like everything else.

        Raises:
            ValueError: an input with the wrong number of dimensions or another dtype than the weights;
                lengths, reset or done of another size, or with a PackedSequence.
            TypeError: lengths, reset or done of another type.
            RuntimeError: sizes that do not fit, T = 0, lengths beyond T, tensors on different devices.
        """
        try:
            if lengths is reset is done is None and return_all_states is False:
                y, h, c = self._run(input, hx)
                return y, (h, c)
            rows = self._rows(input, lengths, reset, done, return_all_states)
            found = self._run(input, hx, rows)
            if return_all_states:
                y, h, c, states = found
                return y, (h, c), states
            y, h, c = found
            return y, (h, c)
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, LSTM.forward, locals())) is None:
                raise
            return node

    # What torch.jit.script compiles.
    _script_forward, _script_forward_packed = _script_rnn.lstm, _script_rnn.lstm_packed
    __overloads__ = Overloads("_script_forward", "_script_forward_packed")

    # torch.nn.LSTM's own versions of RNNBase's helpers. forward() has no use for them unless one is
    # overridden (see _overrides); subclasses with a forward() of their own call them.

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Size of c_0 for this input."""
        # torch's does not ask a subclass's get_expected_hidden_size() either.
        states, rows, _ = nn.RNNBase.get_expected_hidden_size(self, input, batch_sizes)
        return states, rows, self.hidden_size

    def check_forward_args(
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Check the input and both states; RuntimeError or ValueError as in forward()."""
        self.check_input(input, batch_sizes)
        for i, expected in enumerate((self.get_expected_hidden_size, self.get_expected_cell_size)):
            message = f"Expected hidden[{i}] size {{}}, got {{}}"
            self.check_hidden_size(hidden[i], expected(input, batch_sizes), message)

    def permute_hidden(self, hx: tuple[Tensor, Tensor], permutation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Reorder the rows of both states."""
        return hx if permutation is None else (permute(hx[0], permutation), permute(hx[1], permutation))
