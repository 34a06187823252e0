"""The base of the layers that are no torch.nn's: IndRNN, MinGRU, MinLSTM and SLSTM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._ops import torch_state
from .._ops.product import product
from .._run import symbolic, torchscript
from .._run.rnn import first_rows, permute
from .._run.rows import Places, asked
from ..reference import linear as reference


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
    #: For fastrnn.explain: the family of its recurrence, and which one it is.
    _family = "elementwise"
    _cell = ""

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
        done: Tensor | None = None,
        return_all_states: bool = False,
    ) -> tuple:
        """Run the layers.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) for one sequence, or a PackedSequence,
                which is padded for the layers.
            hx: (L*D, B, H), without B for one sequence, or a tuple of states; zeros by default.
            lengths, reset, done: as of :meth:`fastrnn.LSTM.forward`.
            return_all_states: return the states of every step as well; an SLSTM then runs in plain torch.

        Returns:
            output (T, B, D*H), or laid out like the input, and the last states, like hx: of each row's own
            last step. With ``return_all_states`` also those of every layer and step, (L, T, B, D*H) or
            (L, B, T, D*H) with ``batch_first``, zeros beyond a row's length; a tuple where hx is one.

        Raises:
            ValueError, RuntimeError, TypeError: sizes, dtypes and types that do not fit.
        """
        try:
            return self._run(input, hx, lengths, reset, done, return_all_states)
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, ElementwiseLayer.forward, locals())) is None:
                raise
            return node

    def __prepare_scriptable__(self):
        torchscript.refuse(self)

    def _run(self, input, hx, lengths, reset, done=None, keep: bool = False) -> tuple:
        name = type(self).__name__
        if isinstance(input, Tensor) and (input.layout is not torch.strided or input.is_nested):
            input = _checks.dense(name, input)
        rows = asked(name, input, lengths, reset, done, keep, self.batch_first)
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
        found, finals, steps = [], [], []
        for number, (suffix, _) in enumerate(self._directions()):
            if number and number % directions == 0:
                x = torch.cat(found, -1) if directions == 2 else found[0]
                if self.training and self.dropout:
                    x = dropout(x, self.dropout, True)
                found = []
            own = None if states is None else tuple(s[number] for s in states)
            reverse = number % directions == 1
            if keep:
                y, last, every = self._every_state(x, own, suffix, lengths, reset, reverse)
                steps.append(every)
            else:
                y, last = self._direction(x, own, suffix, lengths, reset, reverse)
            if rows is not None and rows.ended is not None and not reverse:
                last = tuple(s.masked_fill(rows.ended.unsqueeze(1), 0) for s in last)
            found.append(y)
            finals.append(last)
        y = torch.cat(found, -1) if directions == 2 else found[0]
        last = [torch.stack(every) for every in zip(*finals, strict=True)]
        if not batched:
            y, last = y.squeeze(1), [s.squeeze(1) for s in last]
        elif self.batch_first:
            y = y.transpose(0, 1)
        last = last[0] if self._states == 1 else tuple(last)
        return (y, last, self._of_layers(steps, directions, batched)) if keep else (y, last)

    def _of_layers(self, steps: list[tuple], directions: int, batched: bool):
        """The states of every step, from each direction's, (T, B, H) each."""
        found = []
        for every in zip(*steps, strict=True):
            layers = [torch.cat(every[k : k + directions], -1) for k in range(0, len(every), directions)]
            s = torch.stack(layers)
            found.append(s.squeeze(2) if not batched else s.transpose(1, 2) if self.batch_first else s)
        return found[0] if self._states == 1 else tuple(found)

    def _every_state(self, x, state, suffix: str, lengths, reset, reverse: bool) -> tuple:
        """What ``_direction`` gives, and the states of every step, (T, B, H) each."""
        y, last = self._direction(x, state, suffix, lengths, reset, reverse)
        return y, last, (y,)

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
