"""Layers whose recurrence has no product: IndRNN, MinGRU and MinLSTM."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._cells import minimal, widen
from .._ops import elementwise, torch_state
from .._ops.indrnn import scan as indrnn_scan
from .._ops.linear_scan import scan as linear_scan
from ..reference import linear as reference
from ._elementwise import ElementwiseLayer

__all__ = ["IndRNN", "MinGRU", "MinLSTM"]


def _for_the_caller(y: Tensor) -> Tensor:
    """An output that may be edited, where backward reads what was computed."""
    return y.clone() if y.requires_grad and not torch_state.tracing() else y


class _Linear(ElementwiseLayer):
    """What MinGRU and MinLSTM share: a recurrence that is linear in its state."""

    def __init__(self, *args, log_space: bool = False, **kwargs) -> None:
        if not isinstance(log_space, bool):
            got = type(log_space).__name__
            raise TypeError(f"{type(self).__name__}: log_space should be of type bool, got: {got}")
        super().__init__(*args, **kwargs)
        self.log_space = log_space

    def extra_repr(self) -> str:
        return super().extra_repr() + (", log_space=True" if self.log_space else "")

    def _direction(self, x, state, suffix, lengths, reset, reverse):
        gates = self._product(x, suffix)
        if elementwise.fused(gates):
            h0 = None if state is None else state[0].to(gates.dtype)
            cell = self._coefficients.__name__ + ("_log" if self.log_space else "")
            options = {"lengths": lengths, "reset": reset, "reverse": reverse}
            y, last = elementwise.scan(cell, gates, h0=h0, **options)
            return y, (last,)
        a, b = self._coefficients(gates, self.log_space)
        a, b, cut = reference.coefficients(a, b, lengths, reset, reverse)
        h0 = None if state is None else state[0].to(a.dtype)
        if torch_state.transformed():
            h = reference.scanned(widen(a), widen(b), h0, cut, reverse).to(a.dtype)
        elif x.size(0) == 1 and not torch_state.tracing():  # a program may be given more
            if h0 is not None and cut is not None:
                h0 = h0.masked_fill(cut[0].unsqueeze(-1), 0)
            h = b if h0 is None else torch.addcmul(b, a, h0.unsqueeze(0))
        else:
            h = linear_scan(a, b, h0, cut, reverse)
        return _for_the_caller(reference.shown(h, lengths)), (h[0 if reverse else -1].clone(),)


class MinGRU(_Linear):
    r"""MinGRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, *, log_space=False)

    The minimal GRU of Feng et al. (2024), whose gates see the input alone:

    .. math::
        z_t = \sigma(W_z x_t + b_z), \quad v_t = W_h x_t + b_h, \quad
        h_t = (1 - z_t) \odot h_{t-1} + z_t \odot v_t

    ``log_space``: the form whose candidate is positive, :math:`g(v_t)` with g(v) = v + 0.5 from 0 on and
    :math:`\sigma(v)` below. Either is one scan over the sequence. Rows of the weights in the order z, h.
    """

    _gates, _cell = 2, "mingru"
    _coefficients = staticmethod(minimal.mingru)


class MinLSTM(_Linear):
    r"""MinLSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, *, log_space=False)

    The minimal LSTM of Feng et al. (2024):

    .. math::
        f_t = \sigma(W_f x_t + b_f), \quad i_t = \sigma(W_i x_t + b_i), \quad v_t = W_h x_t + b_h, \quad
        h_t = \frac{f_t}{f_t + i_t} \odot h_{t-1} + \frac{i_t}{f_t + i_t} \odot v_t

    ``log_space`` as of :class:`MinGRU`. Rows of the weights in the order f, i, h.
    """

    _gates, _cell = 3, "minlstm"
    _coefficients = staticmethod(minimal.minlstm)


class IndRNN(ElementwiseLayer):
    r"""IndRNN(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, *, nonlinearity="relu")

    Independently recurrent network (Li et al., 2018), each unit with a recurrent weight of its own:

    .. math::
        h_t = \mathrm{act}(W_{ih} x_t + b_{ih} + w_{hh} \odot h_{t-1})

    ``nonlinearity``: "relu" or "tanh". Beside ``weight_ih_l{k}`` (H, I or D*H) and ``bias_ih_l{k}`` (H,)
    there is ``weight_hh_l{k}`` (H,).
    """

    _cell = "indrnn"

    def __init__(self, *args, nonlinearity: str = "relu", **kwargs) -> None:
        _checks.one_of(type(self).__name__, "nonlinearity", nonlinearity, _checks.NONLINEARITIES)
        super().__init__(*args, **kwargs)
        self.nonlinearity = nonlinearity

    def _sizes(self, features):
        return super()._sizes(features) | {"weight_hh": (self.hidden_size,)}

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.nonlinearity == "relu" else ", nonlinearity=tanh")

    def _direction(self, x, state, suffix, lengths, reset, reverse):
        gx, relu = self._product(x, suffix), self.nonlinearity == "relu"
        weight = getattr(self, "weight_hh" + suffix).to(gx.dtype)
        h0 = None if state is None else state[0].to(gx.dtype)
        if elementwise.fused(gx):
            options = {"lengths": lengths, "reset": reset, "reverse": reverse}
            y, last = elementwise.scan(f"indrnn_{self.nonlinearity}", gx, None, weight, h0, **options)
            return y, (last,)
        h0 = gx.new_zeros(gx.shape[1:]) if h0 is None else h0
        if torch_state.transformed():
            options = {"relu": relu, "lengths": lengths, "reset": reset, "reverse": reverse}
            y, last = reference.indrnn(gx, weight, h0, **options)
            return y, (last,)
        cut, order = reset, None
        if lengths is not None:
            at = torch.arange(x.size(0), device=x.device).unsqueeze(1)
            last = lengths.to(x.device) - 1
            gx = gx.masked_fill((at > last).unsqueeze(-1), 0)
            if reverse:  # each row's own steps from its end
                order = torch.where(at <= last, last - at, at)
        elif reverse:
            order = torch.arange(x.size(0) - 1, -1, -1, device=x.device).unsqueeze(1).expand(x.shape[:2])
        if order is not None:
            gx = gx.gather(0, order.unsqueeze(-1).expand_as(gx))
            if cut is not None:  # a step is cut off from the one after it in time
                after = torch.cat([cut, torch.zeros_like(cut[:1])])[1:]  # as in reference.scan.cuts
                if lengths is not None:
                    after = after & (at + 1 <= last)
                cut = after.gather(0, order)
        h = indrnn_scan(gx, weight, h0, cut, relu)
        end = h[-1]
        if lengths is not None:
            end = h.gather(0, last.clamp(min=0).view(1, -1, 1).expand(1, *h.shape[1:])).squeeze(0)
            end = torch.where((last < 0).unsqueeze(-1), h0, end)
        y = h if order is None else h.gather(0, order.unsqueeze(-1).expand_as(h))
        return _for_the_caller(reference.shown(y, lengths)), (end.clone(),)
