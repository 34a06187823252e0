"""What torch.utils.flop_counter.FlopCounterMode counts for fastrnn's operators: their matrix products.

A layer counts as torch.nn's does where torch takes it apart into products (it does not where oneDNN computes
an LSTM): two operations a multiply-add, gates and other elementwise work for nothing. With ``lengths`` every
row counts as a full one, as a padded batch does with torch. The recurrences of SRU and of the layers that are
one state a unit have no products. Packed weights (streamers, quantized layers) count nothing, as torch's do.

torch does not import the counter itself, and a quarter of a second is too much for what few ask for: the
formulas wait for somebody's import of it.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import sys

import torch

from .._cells.variant import card_of
from . import slstm  # noqa: F401 - defines an operator that is counted
from .mode import NEEDS

_COUNTER = "torch.utils.flop_counter"


def _products(h0, weights, cell: str) -> tuple[int, int, int]:
    """Operations of one direction's products: of an input row with w_ih, of a state with w_hh, with w_hr."""
    w_ih, w_hh = weights[0], weights[1]
    hidden, out = w_ih[0] // card_of(cell).gates, h0[-1]
    w_hr = (out, hidden) if out != hidden else (0, 0)
    return tuple(2 * math.prod(shape) for shape in (w_ih, w_hh, w_hr))


def _forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, *_, **__) -> int:
    rows, directions = math.prod(x[:-1]), h0[0]
    return directions * rows * sum(_products(h0, weights, cell))


def _backward(
    grad_y,
    grad_hn,
    grad_cn,
    grad_cells,
    x,
    h0,
    c0,
    weights,
    batch_sizes,
    lengths,
    reset,
    y,
    gates,
    cells,
    cell,
    bias,
    mode,
    **_,
) -> int:
    rows, directions = math.prod(x[:-1]), h0[0]
    of_input, of_state, of_projection = _products(h0, weights, cell)
    need_x, need_h0, need_weights = (mode & NEEDS[of] for of in ("x", "h0", "weights"))
    total = 0
    if need_x:
        total += rows * of_input
    if need_weights:
        total += rows * (of_input + of_state + of_projection)
    # Back through the steps. Nobody needs the product that leads from the first step to h0, except h0.
    total += rows * of_projection + (rows if need_h0 else rows - h0[1]) * of_state
    if (card_of(cell).saved or "+" in cell) and len(gates) == 1:  # save="recompute"
        total += rows * (of_input + of_state)
    return directions * total


def _sru_step(x, weight, *_, **__) -> int:
    return 2 * x[0] * math.prod(weight)


def _slstm_forward(gx, weight_hh, *_, **__) -> int:
    return 2 * math.prod(gx[:-1]) * math.prod(weight_hh)


def _slstm_backward(grad_y, grad_h, grad_c, grad_n, grad_m, gx, weight_hh, *_, **__) -> int:
    # Back through the steps; the weight's gradient is torch's own product.
    return _slstm_forward(gx, weight_hh)


def _register(counter) -> None:
    ops = torch.ops.fastrnn
    formulas = {
        _forward: (ops.rnn_forward, ops.rnn_layer),
        _backward: (ops.rnn_backward, ops.rnn_backward_unlisted, ops.rnn_backward_unlisted_variant),
        _sru_step: (ops.sru_step,),
        _slstm_forward: (ops.slstm_forward, ops.slstm),
        _slstm_backward: (ops.slstm_backward,),
    }
    for formula, targets in formulas.items():
        counter.register_flop_formula(list(targets))(formula)


class _AtImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the counter as everybody does, and registers the formulas when it has run; then it goes."""

    _searching = False

    def find_spec(self, name, path=None, target=None):
        if name != _COUNTER or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        sys.meta_path.remove(self)
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module)


if _COUNTER in sys.modules:
    _register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _AtImport())
