"""The cells: one step at a time, for loops written by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from .._cells import PLAIN, WITH_CELL
from .._cells import variant as _variant
from .._checks import tools
from .._run import symbolic
from .._run.rnn import Stack, run
from .._run.step import one_step
from .._run.torchscript import NoVariants, scripts_as
from . import _script_rnn
from ._base import check_forget_bias, initialise

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class RecurrentCell(nn.RNNCellBase):
    """Base of fastrnn's cells. Parameters, initial values and printing are torch.nn.RNNCellBase's."""

    #: What the cell does otherwise than torch's; only those that do something have one of their own.
    variant = PLAIN
    forget_bias = 0.0
    __prepare_scriptable__ = NoVariants()

    def _init(self, cell, input_size, hidden_size, bias, num_chunks, device, dtype, options) -> None:
        for option in options:
            if option not in _variant.OPTIONS and option != "forget_bias":
                name = type(self).__name__
                raise TypeError(f"{name}.__init__() got an unexpected keyword argument {option!r}")
        # Not super(): in fastrnn.compat torch.nn.LSTMCell comes next, whose arguments have no num_chunks.
        nn.RNNCellBase.__init__(self, input_size, hidden_size, bias, num_chunks, device=device, dtype=dtype)
        if options:
            self._begin_variant(cell, options)

    def _begin_variant(self, cell: str, options: dict) -> None:
        name = type(self).__name__
        forget_bias = options.pop("forget_bias", 0.0)
        for option in ("recurrent_dropout", "weight_dropout"):
            if options.get(option):
                raise ValueError(
                    f"{name}: {option} has one mask for a whole sequence, and a cell sees one step of it; "
                    f"use {name.removesuffix('Cell')}, got {option}={options[option]}"
                )
        weight = self.weight_ih
        variant = _variant.read(name, cell, self.hidden_size, 0, weight.dtype, **options)
        if variant is not PLAIN:
            self.variant = variant
            sizes = self.input_size, self.hidden_size
            for role, size in _variant.parameters(cell, variant, *sizes, 0, bool(self.bias)).items():
                own = self._parameters.get(role)
                if own is None or own.shape != size:
                    self.register_parameter(role, nn.Parameter(weight.new_empty(size)))
                    whole = None if own is None else own.detach()
                    initialise(self._parameters[role], role, self.hidden_size**-0.5, whole=whole)
        if forget_bias or not isinstance(forget_bias, (int, float)):
            self.forget_bias = check_forget_bias(name, cell, bool(self.bias), variant, forget_bias)
            self._add_forget_bias()

    @torch.no_grad()
    def _add_forget_bias(self) -> None:
        self.bias_ih[self.hidden_size : 2 * self.hidden_size] += self.forget_bias

    def reset_parameters(self) -> None:
        """torch's, with a variant's parameters after those, and ``forget_bias`` added."""
        if self.variant is PLAIN:
            super().reset_parameters()
        else:
            for name, weight in self.named_parameters():
                role = name.removeprefix("parametrizations.").split(".")[0]
                initialise(weight, role, self.hidden_size**-0.5, self.variant.heads)
        if self.forget_bias:
            self._add_forget_bias()

    def extra_repr(self) -> str:
        """torch's, with the options that are not."""
        text = super().extra_repr()
        if self.forget_bias:
            text += f", forget_bias={self.forget_bias}"
        return text + self.variant.text(isinstance(self, LSTMCell))

    def _step(self, cell: str, input: Tensor, hx) -> tuple[Tensor, Tensor | None]:
        """One step of a variant: that of a layer."""
        name, has_cell = type(self).__name__, cell in WITH_CELL
        x, h, c = _checks.tensor(name, "input", input), None, None
        if hx is not None:
            h, c = _checks.pair(name, hx) if has_cell else (_checks.tensor(name, "hidden", hx), None)
        _checks.cell_dims(name, x, h, c)
        given = [t for t in (h, c) if t is not None]
        batched = x.dim() == 2
        if any(t.dim() != x.dim() for t in given):
            raise ValueError(
                f"{name}: Expected hidden to be {x.dim()}D as the input is, got {given[0].dim()}D"
            )
        if not batched:
            x, given = x.unsqueeze(0), [t.unsqueeze(0) for t in given]
        state = tuple(t.unsqueeze(0) for t in given) if given else None
        if state is not None and not has_cell:
            (state,) = state
        bias = self.bias_ih is not None
        roles = _variant.parameters(cell, self.variant, 1, 1, 0, bias)
        layout = False, False, "gates", "auto"
        sizes = self.input_size, self.hidden_size, 0
        stack = Stack(name, cell, *sizes, bias, 1, 0.0, self.training, *layout, self.variant)
        _, h, c = run(stack, x.unsqueeze(0), state, [getattr(self, role) for role in roles])
        h, c = h.squeeze(0), None if c is None else c.squeeze(0)
        return (h, c) if batched else (h.squeeze(0), None if c is None else c.squeeze(0))

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

    Keyword-only options beyond torch's are those of :class:`fastrnn.LSTM`, but for recurrent_dropout and
    weight_dropout, which have one mask for a whole sequence: norm, norm_eps, zoneout, heads, peephole,
    coupled, forget_bias.

    Parameters: ``weight_ih`` (4H, I), ``weight_hh`` (4H, H), ``bias_ih`` and ``bias_hh`` (4H,) or None.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None, **variant
    ) -> None:
        self._init("lstm", input_size, hidden_size, bias, 4, device, dtype, variant)

    @scripts_as(_script_rnn.lstm_cell)
    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(B, I) or (I,) and, optionally, (h, c) of (B, H) or (H,) each, to the next (h, c)."""
        try:
            if "variant" in self.__dict__:
                return self._step("lstm", input, hx)
            return one_step("LSTMCell", "lstm", input, hx, *self._live_weights())
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, LSTMCell.forward, locals())) is None:
                raise
            return node


class GRUCell(RecurrentCell):
    """GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None)

    One step of a GRU, a drop-in for :class:`torch.nn.GRUCell`. The equations are :class:`fastrnn.GRU`'s.

    Keyword-only options beyond torch's are those of :class:`fastrnn.GRU`, but for recurrent_dropout and
    weight_dropout, which have one mask for a whole sequence: norm, norm_eps, zoneout, heads, reset_after.

    Parameters: ``weight_ih`` (3H, I), ``weight_hh`` (3H, H), ``bias_ih`` and ``bias_hh`` (3H,) or None.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None, **variant
    ) -> None:
        self._init("gru", input_size, hidden_size, bias, 3, device, dtype, variant)

    @scripts_as(_script_rnn.gru_cell)
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, I) or (I,) and, optionally, h of (B, H) or (H,), to the next h."""
        try:
            if "variant" in self.__dict__:
                return self._step("gru", input, hx)[0]
            return one_step("GRUCell", "gru", input, hx, *self._live_weights())[0]
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, GRUCell.forward, locals())) is None:
                raise
            return node


class RNNCell(RecurrentCell):
    """RNNCell(input_size, hidden_size, bias=True, nonlinearity="tanh", device=None, dtype=None)

    One step of an Elman network, a drop-in for :class:`torch.nn.RNNCell`; nonlinearity "tanh" or "relu".

    Keyword-only options beyond torch's are those of :class:`fastrnn.RNN`, but for recurrent_dropout and
    weight_dropout, which have one mask for a whole sequence: norm, norm_eps, zoneout, heads.

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
        **variant,
    ) -> None:
        # An unknown nonlinearity is an error of forward(), as torch's.
        cell = "rnn_relu" if nonlinearity == "relu" else "rnn_tanh"
        self._init(cell, input_size, hidden_size, bias, 1, device, dtype, variant)
        self.nonlinearity = nonlinearity

    @scripts_as(_script_rnn.rnn_cell)
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, I) or (I,) and, optionally, h of (B, H) or (H,), to the next h."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        try:
            cell = f"rnn_{self.nonlinearity}"
            if "variant" in self.__dict__:
                return self._step(cell, input, hx)[0]
            return one_step("RNNCell", cell, input, hx, *self._live_weights())[0]
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, RNNCell.forward, locals())) is None:
                raise
            return node
