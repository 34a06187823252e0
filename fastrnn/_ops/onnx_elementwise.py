"""The recurrences without a product, and the sLSTM, as ``onnx`` has torch.onnx.export see them.

Each is a Scan with the step as its body; a single step is that step's operations.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .._cells import slstm, widen
from ..reference.linear import after_the_end
from ..reference.scan import cuts
from ..reference.slstm import by_head, product
from .onnx import _decomposition, _is_one, _scan


def _each_step(step, state: Sequence[Tensor], by_step: dict, constant: dict, reverse: bool):
    """``onnx._scan`` with tensors by name, half types computed in float32, and the one step of a program
    that has one taken as it is."""
    by_step, constant = ({k: widen(v) for k, v in ts.items() if v is not None} for ts in (by_step, constant))
    state = [widen(s) for s in state]
    named = functools.partial(_by_name, step, len(state), (*by_step, *constant))
    steps = next(iter(by_step.values())).shape[0]
    if _is_one(steps):
        found = named(*state, *(t[0] for t in by_step.values()), *constant.values())
        return found[: len(state)], [t.unsqueeze(0) for t in found[len(state) :]]
    return _scan(named, state, by_step.values(), constant.values(), reverse)


def _by_name(step, states: int, names: tuple[str, ...], *tensors: Tensor) -> list[Tensor]:
    return step(tensors[:states], **dict(zip(names, tensors[states:], strict=True)))


def _linear_step(state, *, a: Tensor, b: Tensor, cut: Tensor | None = None) -> list[Tensor]:
    (h,) = state
    h = a * (h if cut is None else h.masked_fill(cut, 0)) + b
    return [h, h.clone()]  # the results of a Scan may not be one tensor


@_decomposition(torch.ops.fastrnn.linear_scan.default)
def _linear_scan(a, b, h0, cut, reverse):
    h0 = torch.zeros_like(b[0]) if h0 is None else h0
    by_step = {"a": a, "b": b, "cut": None if cut is None else cut.unsqueeze(-1)}
    _, (h,) = _each_step(_linear_step, [h0], by_step, {}, reverse)
    return h.to(a.dtype)


def _indrnn_step(relu: bool, state, *, gx: Tensor, weight: Tensor, cut: Tensor | None = None):
    (h,) = state
    pre = gx + weight * (h if cut is None else h.masked_fill(cut, 0))
    h = torch.relu(pre) if relu else torch.tanh(pre)
    return [h, h.clone()]


@_decomposition(torch.ops.fastrnn.indrnn.default)
def _indrnn(gx, weight, h0, cut, relu):
    by_step = {"gx": gx, "cut": None if cut is None else cut.unsqueeze(-1)}
    step = functools.partial(_indrnn_step, relu)
    _, (h,) = _each_step(step, [h0], by_step, {"weight": weight}, False)
    return h.to(gx.dtype)


def _slstm_step(
    state, *, gx: Tensor, blocks: Tensor, cut: Tensor | None = None, beyond: Tensor | None = None
):
    start = state if cut is None else [s.masked_fill(cut, 0) for s in state]
    new = slstm.step(gx + product(start[0], blocks), start)
    if beyond is None:
        return [*new, new[0].clone()]
    kept = [torch.where(beyond, old, n) for n, old in zip(new, state, strict=True)]
    return [*kept, new[0].masked_fill(beyond, 0)]


@_decomposition(torch.ops.fastrnn.slstm.default)
def _slstm(gx, weight_hh, h0, c0, n0, m0, lengths, reset, reverse):
    beyond = None if lengths is None else after_the_end(gx, lengths)
    cut = None if reset is None else cuts(reset, beyond, reverse).unsqueeze(-1)
    if beyond is not None:
        beyond = beyond.unsqueeze(-1)
        gx = gx.masked_fill(beyond, 0)
    by_step = {"gx": gx, "cut": cut, "beyond": beyond}
    constant = {"blocks": by_head(weight_hh, h0.size(1))}
    state, (y,) = _each_step(_slstm_step, [h0, c0, n0, m0], by_step, constant, reverse)
    return y.to(gx.dtype), *(s.to(gx.dtype) for s in state)
