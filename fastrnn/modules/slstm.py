"""The sLSTM layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import elementwise, torch_state
from .._ops.slstm import run as slstm_operator
from ..reference.slstm import slstm
from ._elementwise import ElementwiseLayer

__all__ = ["SLSTM"]


class SLSTM(ElementwiseLayer):
    r"""SLSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, *, num_heads=1)

    The sLSTM of xLSTM (Beck et al., 2024), with exponential gates, a normaliser n and a stabiliser m:

    .. math::
        (\tilde i, \tilde f, \tilde z, \tilde o) &= W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} \\
        m_t &= \max(\tilde i, \log\sigma(\tilde f) + m_{t-1}), \quad
        i = e^{\tilde i - m_t}, \quad f = e^{\log\sigma(\tilde f) + m_{t-1} - m_t} \\
        c_t &= f \odot c_{t-1} + i \odot \tanh(\tilde z), \quad n_t = f \odot n_{t-1} + i, \quad
        h_t = \sigma(\tilde o) \odot c_t / n_t

    and :math:`m_t = \tilde i` where n is 0, as at the beginning. The numbers are those of the ``xlstm``
    package's sLSTM cell, whose weights go both ways: :meth:`from_xlstm`, :meth:`to_xlstm`. On the CPU it has
    kernels, elsewhere it runs in plain torch.

    ``num_heads``: blocks of the recurrent weights. States are (h, c, n, m), (L*D, B, H) each. Parameters:
    ``weight_ih_l{k}`` (4H, I or D*H), ``weight_hh_l{k}`` (4H, H/num_heads) and ``bias_ih_l{k}`` (4H,); rows
    in the order i, f, z, o, and in them head by head.
    """

    _gates, _states, _cell = 4, 4, "slstm"

    def __init__(self, *args, num_heads: int = 1, **kwargs) -> None:
        name = type(self).__name__
        if isinstance(num_heads, bool) or not isinstance(num_heads, int):
            raise TypeError(f"{name}: num_heads should be of type int, got: {type(num_heads).__name__}")
        hidden = args[1] if len(args) > 1 else kwargs.get("hidden_size")
        if num_heads < 1 or (isinstance(hidden, int) and hidden % num_heads):
            raise ValueError(f"{name}: num_heads should divide hidden_size = {hidden}, got {num_heads}")
        vars(self)["num_heads"] = num_heads  # before torch's constructor, which asks for sizes
        super().__init__(*args, **kwargs)

    def _sizes(self, features):
        return super()._sizes(features) | {
            "weight_hh": (4 * self.hidden_size, self.hidden_size // self.num_heads)
        }

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.num_heads == 1 else f", num_heads={self.num_heads}")

    def _direction(self, x, state, suffix, lengths, reset, reverse):
        gx = self._product(x, suffix)
        weight = getattr(self, "weight_hh" + suffix).to(gx.dtype)
        if elementwise.fused(gx):
            state = None if state is None else tuple(s.to(gx.dtype) for s in state)
            options = {"lengths": lengths, "reset": reset, "reverse": reverse}
            return elementwise.slstm(gx, weight, state, **options)
        if state is None:
            state = (gx.new_zeros(*gx.shape[1:-1], self.hidden_size),) * 4
        state = tuple(s.to(gx.dtype) for s in state)
        if torch_state.exporting() and not torch_state.transformed():  # a loop would hold its number of steps
            y, *last = slstm_operator(gx, weight, *state, lengths, reset, reverse)
            return y, tuple(last)
        return slstm(gx, weight, state, lengths=lengths, reset=reset, reverse=reverse)

    def _every_state(self, x, state, suffix, lengths, reset, reverse):
        gx = self._product(x, suffix)
        weight = getattr(self, "weight_hh" + suffix).to(gx.dtype)
        if state is None:
            state = (gx.new_zeros(*gx.shape[1:-1], self.hidden_size),) * 4
        state = tuple(s.to(gx.dtype) for s in state)
        # The kernel's backward pass has no place for the gradients of c, n and m of a step.
        rows = {"lengths": lengths, "reset": reset, "reverse": reverse}
        return slstm(gx, weight, state, keep_states=True, **rows)

    @classmethod
    def from_xlstm(cls, cell, input_size: int | None = None) -> SLSTM:
        """A layer of the weights of the ``xlstm`` package's sLSTM cell.

        That has no input weights, as the gates' input parts are its input. Here they are, I = input_size to
        4H, initialised as ever; by default I is 4H and the weights are the unit matrix, so that the layer
        takes what the cell takes.
        """
        hidden, heads = cell.config.hidden_size, cell.config.num_heads
        kernel = cell._recurrent_kernel_int2ext(cell._recurrent_kernel.detach())
        made = {"device": kernel.device, "dtype": kernel.dtype}
        layer = cls(4 * hidden if input_size is None else input_size, hidden, num_heads=heads, **made)
        with torch.no_grad():
            if input_size is None:
                layer.weight_ih_l0.copy_(torch.eye(4 * hidden))
            # (heads, H/heads inputs, gates, H/heads units)
            layer.weight_hh_l0.copy_(kernel.permute(2, 0, 3, 1).reshape(4 * hidden, -1))
            bias = cell._bias_int2ext(cell._bias.detach())  # (heads, gates, H/heads)
            layer.bias_ih_l0.copy_(bias.transpose(0, 1).reshape(-1))
        return layer

    @torch.no_grad()
    def to_xlstm(self, cell) -> None:
        """Write the recurrent weights and the bias into the ``xlstm`` package's sLSTM cell, of the same
        size."""
        heads, size = self.num_heads, self.hidden_size // self.num_heads
        if (cell.config.hidden_size, cell.config.num_heads) != (self.hidden_size, heads):
            raise ValueError(
                f"SLSTM: expected a cell of hidden_size={self.hidden_size} and num_heads={heads}, got "
                f"{cell.config.hidden_size} and {cell.config.num_heads}"
            )
        kernel = self.weight_hh_l0.view(4, heads, size, size).permute(1, 3, 0, 2)
        cell._recurrent_kernel.copy_(cell._recurrent_kernel_ext2int(kernel))
        bias = self.bias_ih_l0 if self.bias else Tensor.new_zeros(self.weight_hh_l0, 4 * self.hidden_size)
        cell._bias.copy_(cell._bias_ext2int(bias.view(4, heads, size).transpose(0, 1)))
