"""Layers whose recurrence has no product, IndRNN, MinGRU and MinLSTM, and their base, which SLSTM shares."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._cells import minimal, widen
from .._ops import elementwise, torch_state
from .._ops.indrnn import scan as indrnn_scan
from .._ops.linear_scan import scan as linear_scan
from .._ops.product import product
from .._run import symbolic, torchscript
from .._run.rnn import first_rows, permute
from .._run.rows import Places, asked
from ..reference import linear as reference

__all__ = ["IndRNN", "MinGRU", "MinLSTM"]


class ElementwiseLayer(nn.Module):
    """Base of the layers that are no torch.nn's: stacks, directions, rows, checks.

    Args:
        input_size: I. hidden_size: H. num_layers: L. bias: whether there is one.
        batch_first: input and output as (B, T, features).
        dropout: probability, on the output of each layer but the last, in training.
        bidirectional: D = 2 directions, their outputs side by side.
        device, dtype: of the parameters.

    Parameters, for layer k and, with ``_reverse`` appended, its second direction: ``weight_ih_l{k}``
    (G*H, I or D*H) and ``bias_ih_l{k}`` (G*H,), initialised as torch.nn.RNN's.
    """

    #: Blocks of H rows in the weights, and states.
    _gates = _states = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, value in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: {argument} should be of type int, got: {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name}: {argument} must be greater than zero, got {value}")
        for argument, value in (
            ("bias", bias),
            ("batch_first", batch_first),
            ("bidirectional", bidirectional),
        ):
            if not isinstance(value, bool):
                raise TypeError(f"{name}: {argument} should be of type bool, got: {type(value).__name__}")
        if isinstance(dtype, torch.dtype) and dtype.is_complex:
            raise ValueError(f"{name}: expected real numbers, got dtype={dtype}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.dropout = float(_checks.probability(name, dropout))
        made = {"device": device, "dtype": dtype}
        for suffix, features in self._directions():
            for role, size in self._sizes(features).items():
                self.register_parameter(role + suffix, nn.Parameter(torch.empty(size, **made)))
        self.reset_parameters()

    def _directions(self):
        """(suffix, features of the input) of each direction of each layer."""
        for k in range(self.num_layers):
            features = self.hidden_size * (2 if self.bidirectional else 1) if k else self.input_size
            for way in ("", "_reverse") if self.bidirectional else ("",):
                yield f"_l{k}{way}", features

    def _sizes(self, features: int) -> dict[str, tuple[int, ...]]:
        rows = self._gates * self.hidden_size
        return {"weight_ih": (rows, features)} | ({"bias_ih": (rows,)} if self.bias else {})

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        for name, usual in (("num_layers", 1), ("bias", True), ("batch_first", False), ("dropout", 0.0)):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)}"
        return text + (", bidirectional=True" if self.bidirectional else "")

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx=None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
    ) -> tuple:
        """Run the layers.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) for one sequence, or a PackedSequence,
                which is padded for the layers.
            hx: (L*D, B, H), without B for one sequence, or a tuple of states; zeros by default.
            lengths, reset: as of :meth:`fastrnn.LSTM.forward`.

        Returns:
            output (T, B, D*H), or laid out like the input, and the last states, like hx: of each row's own
            last step.

        Raises:
            ValueError, RuntimeError, TypeError: sizes, dtypes and types that do not fit.
        """
        try:
            return self._run(input, hx, lengths, reset)
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, ElementwiseLayer.forward, locals())) is None:
                raise
            return node

    def __prepare_scriptable__(self):
        torchscript.refuse(self)

    def _run(self, input, hx, lengths, reset) -> tuple:
        name = type(self).__name__
        if isinstance(input, Tensor) and (input.layout is not torch.strided or input.is_nested):
            input = _checks.dense(name, input)
        rows = asked(name, input, lengths, reset, None, False, self.batch_first)
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx)
        x = _checks.tensor(name, "input", input)
        if x.dim() not in (2, 3):
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {x.dim()}D instead")
        batched = x.dim() == 3
        x = x.unsqueeze(1) if not batched else x.transpose(0, 1) if self.batch_first else x
        if x.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.size(-1)}"
            )
        if x.size(0) == 0:
            raise RuntimeError(f"Expected sequence length to be larger than 0 in {name}")
        directions = 2 if self.bidirectional else 1
        expected = (self.num_layers * directions, x.size(1), self.hidden_size)
        states = None if hx is None else self._given(name, x, hx, batched, expected)
        lengths, reset = (None, None) if rows is None else (rows.lengths, rows.reset)
        if rows is not None and not torch_state.compiling():
            rows.check_lengths(x.size(0))
        if lengths is not None:  # NaN in the padding too reaches no gradient of the weights
            x = reference.shown(x, lengths)
        found, finals = [], []
        for number, (suffix, _) in enumerate(self._directions()):
            if number and number % directions == 0:
                x = torch.cat(found, -1) if directions == 2 else found[0]
                if self.training and self.dropout:
                    x = dropout(x, self.dropout, True)
                found = []
            own = None if states is None else tuple(s[number] for s in states)
            y, last = self._direction(x, own, suffix, lengths, reset, number % directions == 1)
            found.append(y)
            finals.append(last)
        y = torch.cat(found, -1) if directions == 2 else found[0]
        last = [torch.stack(every) for every in zip(*finals, strict=True)]
        if not batched:
            y, last = y.squeeze(1), [s.squeeze(1) for s in last]
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, (last[0] if self._states == 1 else tuple(last))

    def _run_packed(self, input: PackedSequence, hx) -> tuple:
        data, batch_sizes, order, back = input
        _checks.batch_sizes_form(batch_sizes)
        if data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
        state = hx if self._states == 1 or not isinstance(hx, (tuple, list)) or not hx else hx[0]
        if not torch_state.compiling():
            _checks.batch_sizes_values(batch_sizes, data.size(0))
            rows = first_rows(batch_sizes)
        elif isinstance(state, Tensor) and state.dim() == 3:
            rows = state.size(1)  # a graph cannot compare sizes with values
        else:
            rows = first_rows(batch_sizes) if order is None else order.size(0)
        places = Places.of(batch_sizes, data, rows)
        if hx is not None:
            expected = (self.num_layers * (2 if self.bidirectional else 1), places.rows, self.hidden_size)
            states = [permute(s, order) for s in self._given(type(self).__name__, data, hx, True, expected)]
            hx = states[0] if self._states == 1 else tuple(states)
        x = places.padded(data)
        y, last = self._run(x.transpose(0, 1) if self.batch_first else x, hx, places.lengths, None)
        y = places.packed(y.transpose(0, 1) if self.batch_first else y)
        last = permute(last, back) if self._states == 1 else tuple(permute(s, back) for s in last)
        return PackedSequence(y, batch_sizes, order, back), last

    def _given(
        self, name: str, x: Tensor, hx, batched: bool, expected: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """The states that came, checked, with a dimension for the rows."""
        states = (hx,) if self._states == 1 else hx
        if not isinstance(states, (tuple, list)) or len(states) != self._states:
            raise TypeError(f"{name}: hx should be a tuple of {self._states} states, got {_checks.kind(hx)}")
        states = tuple(_checks.tensor(name, "hx", s) for s in states)
        states = states if batched else tuple(s.unsqueeze(1) for s in states)
        for s in states:
            if s.shape != expected:
                raise RuntimeError(f"Expected hidden size {expected}, got {list(s.shape)}")
        cast = torch_state.autocasting(x)
        _checks.same_kind(x, [("hidden", s.to(x.dtype) if cast else s) for s in states])
        return states

    def _product(self, x: Tensor, suffix: str) -> Tensor:
        weight = getattr(self, "weight_ih" + suffix)
        if x.dtype != weight.dtype and not torch_state.autocasting(x):
            _checks.input_dtype(x.dtype, weight.dtype)
        return product(x, weight, getattr(self, "bias_ih" + suffix) if self.bias else None)

    def _direction(self, x, state, suffix: str, lengths, reset, reverse: bool) -> tuple[Tensor, tuple]:
        """The output of one direction and its last states; state: those it begins with, or None."""
        raise NotImplementedError

    def step(self, input: Tensor, hx=None) -> tuple:
        """One time step, (B, I) or (I,), for loops written by hand; to rounding the numbers of one call.

        Returns the output (B, H) or (H,) and the new state, like hx. RuntimeError for two directions.
        """
        if self.bidirectional:
            raise RuntimeError(f"{type(self).__name__}: step() needs a layer in one direction")
        x = _checks.tensor(type(self).__name__, "input", input)
        if x.dim() not in (1, 2):
            raise ValueError(
                f"{type(self).__name__}: Expected the input of a step to be 1D or 2D, got {x.dim()}D"
            )
        time = 1 if self.batch_first and x.dim() == 2 else 0
        y, h = self(x.unsqueeze(time), hx)
        return y.squeeze(time), h


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

    _gates = 2
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

    _gates = 3
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
                after = torch.cat([cut[1:], torch.zeros_like(cut[:1])])
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
