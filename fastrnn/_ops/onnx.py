"""What torch.onnx.export puts in the place of fastrnn's operators.

The exporter takes a program apart until only operators that it knows are left, and asks torch's table of
decompositions how. There the functions below stand for fastrnn's operators; outside an export to ONNX they
decline. So a model is traced as for ``torch.export``, what that gave can be exported too, and nothing has to
be passed. onnx itself is imported by nobody but the exporter.

A layer becomes one LSTM, GRU or RNN node with both directions in it. What those nodes cannot say becomes one
Scan for each direction, with the step of ``fastrnn.reference`` as its body: resets, projections, every step's
cell state, and float64, which ONNX has and ONNX Runtime does not compute; and of the variants of a cell norms
and zoneout, where peepholes, coupled gates and GRU's reset before the product are attributes and inputs of
the nodes. So does the recurrence of SRU. A layer of a single step, such as a cell, becomes that step's
operations.

Shape letters are those of ``fastrnn.functional``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._decomp import decomposition_table, meta_table
from torch._higher_order_ops.scan import scan_op
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .. import reference
from .._cells import RNN, sru, stages, widen
from .._cells.stages import coupled, dense
from .._cells.variant import Weights, parse, split
from ..reference.scan import cuts
from . import library, onnx_weights
from .onnx_weights import integers, node

_ZEROS = (torch.ops.aten.zeros.default, torch.ops.aten.new_zeros.default)
_NO_PACKED = "ONNX has no packed sequences: pass the padded batch{} in place of the PackedSequence"


class _ForOnnx:
    """An operator's key in torch's table of decompositions, equal to the operator during an export to ONNX.

    At all other times the table must seem not to know the operator: torch.compile refuses operators with a
    decomposition that it does not use, where the environment has CI set.
    """

    def __init__(self, op: torch._ops.OpOverload) -> None:
        self.op = op

    def __hash__(self) -> int:
        return hash(self.op)

    def __eq__(self, other: object) -> bool:
        return self is other or (other is self.op and torch.onnx.is_in_onnx_export())

    def __getattr__(self, name: str):
        if name == "op":  # not there yet
            raise AttributeError(name)
        return getattr(self.op, name)


def _decomposition(op: torch._ops.OpOverload) -> Callable:
    """Register a function as what an operator is for ONNX. It takes the operator's arguments."""

    def register(function: Callable) -> Callable:
        @functools.wraps(function)
        def decomposition(*args, **kwargs):
            if not torch.onnx.is_in_onnx_export():
                return NotImplemented
            return function(*args, **kwargs)

        # Fake tensors of symbolic sizes would ask the same table. They do not for what is listed as having a
        # meta function, and then find the operator's fake implementation.
        meta_table[op] = op
        decomposition_table[_ForOnnx(op)] = decomposition
        return decomposition

    return register


@_decomposition(library.forward)
def _rnn_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode):
    if batch_sizes is not None:
        raise RuntimeError(_NO_PACKED.format(" and lengths="))
    rows = {"lengths": lengths, "reset": reset}
    cells = None
    cell, weights = _without_heads(cell, weights, h0.shape[0])
    card, variant, masks = parse(cell)
    if _is_one(x.shape[0]):
        y, hn, cn, cells = reference.layer(x, h0, c0, weights, cell=cell, bias=bias, keep_cells=True, **rows)
    elif (
        reset is not None
        or x.dtype is torch.float64
        or h0.shape[2] != weights[1].shape[0] // card.gates  # projected
        or (mode and card.has_cell)  # every step's cell state is wanted
        or variant.norm
        or masks
    ):
        y, hn, cn, cells = _scanned_layer(x, h0, c0, weights, cell=cell, bias=bias, **rows)
    else:
        y, hn, cn = _layer(x, h0, c0, weights, lengths, cell, bias)
    # What is not there, the operator gives as an empty tensor.
    nothing = x.new_empty((0,))
    return y, hn, nothing if cn is None else cn, nothing, nothing if cells is None else cells


@_decomposition(library.layer)
def _rnn_layer(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, keep_cells, mode):
    mode = library.SAVE_MODES["recompute"] if keep_cells else 0
    y, hn, cn, _, cells = _rnn_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode)
    return y, hn, cn, cells


def _without_heads(cell: str, weights: Sequence[Tensor], directions: int) -> tuple[str, list[Tensor]]:
    """A layer with heads as one whose recurrent weights are zero between them."""
    card, variant, masks = parse(cell)
    if variant.heads == 1:
        return cell, weights
    weights, each = list(weights), (len(weights) - len(masks)) // directions
    for i in range(1, directions * each, each):
        weights[i] = dense(weights[i], variant.heads, card.gates)
    return "+".join(o for o in cell.split("+") if not o.startswith("heads=")), weights


def _layer(x, h0, c0, weights, lengths, cell, bias):
    """A layer as one node. Returns y, h_n and c_n (None unless LSTM)."""
    card, variant, _ = parse(cell)
    directions, rows, hidden = h0.shape
    dtype, device, steps = x.dtype, x.device, x.shape[0]
    # Without a state the nodes begin with zeros.
    given = not all(_is_zeros(t) for t in (h0, c0) if t is not None)
    own = split(weights, directions, cell, bias)[0]
    if variant.coupled:
        own = [_coupled(o) for o in own]
    *arranged, peepholes = onnx_weights.arranged(own, card.name)
    if dtype is torch.bfloat16:  # ONNX Runtime has no such nodes; float32 is what the kernels compute in
        x, h0, c0, peepholes, *arranged = map(widen, (x, h0, c0, peepholes, *arranged))
    sequence_lens = None if lengths is None else lengths.to(torch.int32)
    states = (h0,) if c0 is None else (h0, c0)
    attributes = {"hidden_size": hidden}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    for name, value in card.onnx.attributes.items():
        attributes[name] = value * directions if isinstance(value, list) else value
    if variant.coupled:  # which not every runtime looks at: the weights say the same
        attributes["input_forget"] = 1
    if not variant.reset_after:
        attributes["linear_before_reset"] = 0
    inputs = [x, *arranged, sequence_lens]
    if given:
        inputs += states
    elif peepholes is not None:
        inputs += [None, None]
    if peepholes is not None:
        inputs.append(peepholes)
    found = torch.onnx.ops.symbolic_multi_out(
        card.onnx.name,
        tuple(inputs),
        attributes,
        dtypes=[x.dtype] * (1 + len(states)),
        shapes=[(steps, directions, rows, hidden), *[(directions, rows, hidden)] * len(states)],
    )
    y, *finals = (t.to(device) for t in found)
    if directions == 1:
        y = node("Squeeze", (y, integers([1])), (steps, rows, hidden), x.dtype)
    else:
        y = y.transpose(1, 2)
        y = node("Reshape", (y, integers([0, 0, -1])), (steps, rows, directions * hidden), x.dtype)
    if given and lengths is not None:
        # A row without a step keeps its state here; ONNX does not say, and ONNX Runtime gives zeros.
        none = (lengths == 0).view(1, -1, 1).to(device)
        finals = [torch.where(none, s, f) for s, f in zip(states, finals, strict=True)]
    y, *finals = (t.to(device, dtype) for t in (y, *finals))
    return y, finals[0], (finals[1] if len(finals) > 1 else None)


def _coupled(own: Weights) -> Weights:
    """A direction whose forget gate 1 - i is in the weights."""
    blocks = {"weight_peephole": 3}
    found = {k: coupled(w, blocks.get(k, 4)) for k, w in own._asdict().items() if w is not None}
    return own._replace(**found)


def _is_one(steps: int | torch.SymInt) -> bool:
    """Whether there is a single step, whatever the program is called with."""
    return isinstance(steps, int) and steps == 1


def _is_zeros(t: Tensor) -> bool:
    """Whether the program that is being taken apart makes t as zeros."""
    mode = get_proxy_mode()
    slot = None if mode is None else mode.tracer.tensor_tracker.get(t)
    if slot is None:
        return False
    made_by = slot.proxy.node
    if made_by.target is torch.ops.aten.full.default:
        return made_by.args[1] == 0
    return made_by.target in _ZEROS


def _scan(step: Callable, state: Sequence[Tensor], xs: Sequence[Tensor], constants, reverse: bool):
    """The states after, and everything of, step(*state, *xs[t], *constants), which gives both in one list."""
    # What asks for a gradient would have scan_op look for a derivative, in passes of the exporter too.
    state, xs, constants = ([t.detach() for t in ts] for ts in (state, xs, constants))
    if reverse:
        xs = [t.flip(0) for t in xs]
    found = scan_op(step, state, xs, tuple(constants))
    outputs = found[len(state) :]
    return found[: len(state)], [t.flip(0) if reverse else t for t in outputs]


def _scanned_layer(x, h0, c0, weights, *, cell, bias, lengths, reset):
    """``reference.layer`` of a padded batch as a Scan for each direction; its arguments, and
    its results with every step's cell state."""
    dtype, directions, steps = x.dtype, h0.size(0), x.size(0)
    x, h0, c0 = map(widen, (x, h0, c0))
    own, masks = split(list(map(widen, weights)), directions, cell, bias)
    running = None
    if lengths is not None:
        running = (torch.arange(steps, device=x.device).unsqueeze(1) < lengths.to(x.device)).unsqueeze(2)
    begins = None if reset is None else reset.to(x.device).unsqueeze(2)

    outputs, cells, finals = [], [], []
    for d in range(directions):
        if d and begins is not None:
            # In reverse a step is cut off from the one after it, if the row has that.
            after = begins if running is None else begins & running
            begins = torch.cat([after[1:], torch.zeros_like(after[:1])])
        w_ih, b_ih = own[d].weight_ih, own[d].bias_ih
        gx = node("MatMul", (x, w_ih.t()), (*x.shape[:2], w_ih.size(0)), x.dtype).to(x.device)
        if own[d].norm_ih is not None:
            gx = stages.norm(gx, own[d].norm_ih, None, parse(cell).variant)
        gx = gx if b_ih is None else gx + b_ih
        by_step = {"gx": gx, "begins": begins, "running": running}
        by_step |= {
            name: None if mask is None else mask.chunk(directions, dim=-1)[d]
            for name, mask in (("zoneout_h", masks.zoneout_h), ("zoneout_c", masks.zoneout_c))
        }
        constant = {k: v for k, v in own[d]._asdict().items() if not k.endswith("_ih")}
        if masks.recurrent_mask is not None:
            constant["recurrent_mask"] = masks.recurrent_mask[d]
        by_step, constant = ({k: v for k, v in ts.items() if v is not None} for ts in (by_step, constant))
        state = (h0[d],) if c0 is None else (h0[d], c0[d])
        step = functools.partial(_masked_step, cell, (*by_step, *constant))
        state, (y, *c) = _scan(step, state, by_step.values(), constant.values(), reverse=d == 1)
        outputs.append(y)
        cells += c
        finals.append(state)
    y = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    h_n, *c_n = (torch.stack(s).to(dtype) for s in zip(*finals, strict=True))
    if not c_n:
        return y.to(dtype), h_n, None, None
    return y.to(dtype), h_n, c_n[0], torch.stack(cells).flatten(1, 2)


def _masked_step(cell: str, names: tuple[str, ...], *tensors: Tensor) -> list[Tensor]:
    """One step: the states, and what else there is by name. Returns the states and what is seen of them in
    the output."""
    card, variant, _ = parse(cell)
    state, given = tensors[: card.states], dict(zip(names, tensors[card.states :], strict=True))
    begins, running = given.get("begins"), given.get("running")
    start = state if begins is None else tuple(s.masked_fill(begins, 0) for s in state)
    if cell in RNN:
        new = card.step(given["gx"], start, given["weight_hh"], given.get("bias_hh"), given.get("weight_hr"))
    else:
        own = Weights(None, **{k: v for k, v in given.items() if k in Weights._fields})
        keep = given.get("zoneout_h"), given.get("zoneout_c")
        new = stages.step(card, variant, given["gx"], start, own, keep, given.get("recurrent_mask"))
    if running is None:
        return [*new, *(n.clone() for n in new)]  # the results of a Scan may not be one tensor
    kept = [torch.where(running, n, s) for n, s in zip(new, state, strict=True)]
    return [*kept, *(n.masked_fill(~running, 0) for n in new)]


@_decomposition(library.sru_forward)
def _sru_forward(
    u,
    x,
    weight_c,
    bias,
    c0,
    v,
    mask_pad,
    drop_mask,
    batch_sizes,
    reset,
    use_tanh,
    scale,
    bidirectional,
    save,
):
    if batch_sizes is not None:
        raise RuntimeError(_NO_PACKED.format(" and mask_pad"))
    nothing = u.new_empty((0,))
    if _is_one(u.shape[0]):
        masks = {"v": v, "mask_pad": mask_pad, "drop_mask": drop_mask}
        options = {"use_tanh": use_tanh, "scale": scale, "bidirectional": bidirectional}
        options |= {"reset": reset, "keep_cells": True}
        return reference.sru_scan(u, x, weight_c, bias, c0, **masks, **options)
    dtype, hidden = u.dtype, u.shape[-1] // (2 if bidirectional else 1)
    by_step = {"u": u, "x": x, "v": v}
    constant = {"weight": weight_c, "bias": bias, "drop": drop_mask}
    outputs, finals, cells = [], [], []
    for d in range(2 if bidirectional else 1):

        def own(t: Tensor, d: int = d) -> Tensor:
            """This direction's part of t."""
            return widen(t.narrow(-1, d * hidden, hidden) if bidirectional else t)

        xs = {k: own(t) for k, t in by_step.items() if t is not None}
        if mask_pad is not None:
            xs["pad"] = mask_pad.unsqueeze(-1)
        if reset is not None:
            xs["begins"] = cuts(reset, mask_pad, reverse=d == 1).unsqueeze(-1)
        constants = {k: own(t) for k, t in constant.items() if t is not None}
        step = functools.partial(_sru_step, (*xs, *constants), use_tanh, scale, save)
        (c,), (h, *every_c) = _scan(step, [own(c0)], xs.values(), constants.values(), reverse=d == 1)
        outputs.append(h)
        finals.append(c)
        cells += every_c
    h, c = (torch.cat(t, dim=-1) if bidirectional else t[0] for t in (outputs, finals))
    return h.to(dtype), c.to(dtype), torch.cat(cells, dim=-1).flatten(0, 1) if save else nothing


@_decomposition(library.sru_scan)
def _sru_scan(*args):
    return _sru_forward(*args)


def _sru_step(names: tuple[str, ...], use_tanh: bool, scale: float, keep: bool, c: Tensor, *tensors: Tensor):
    """One step of SRU: the state, u (B, K, H) and what else there is by name. Returns the state and h, and
    the state once more if it is kept."""
    given = dict(zip(names, tensors, strict=True))
    if "begins" in given:
        c = c.masked_fill(given["begins"], 0)
    u, skip, v = given["u"], given.get("x"), given.get("v")
    if u.size(1) == 4:
        skip = u[:, 3]
    elif skip is not None and scale != 1:
        skip = skip * scale
    weight = given["weight"] if v is None else given["weight"] + v
    gates = u[:, 1:3] + given["bias"]
    h, new = sru.step(u[:, 0], gates, weight, skip, given.get("drop"), given.get("pad"), c, use_tanh)
    return [new, h.clone(), new.clone()] if keep else [new, h.clone()]
