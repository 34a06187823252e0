"""The weights of a layer as ONNX's LSTM, GRU and RNN nodes want them: gates in their order.

The nodes that arrange them have only constants to work on, so a finished graph need not have them. But the
exporter's optimiser folds such nodes only where the constants are small, up to 8192 numbers. It has a
registry of what to do with a node, and is told there to fold these whatever their size. Without an optimiser,
or with one that has no such registry, they stay, and run where the graph does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .._cells import RNN
from .._cells.variant import Weights

#: Tells the nodes that arrange weights from those of the user's model.
_MARK = ("pkg.fastrnn", "weights")


def node(op: str, inputs, shape, dtype: torch.dtype, mark: dict | None = None, **attributes) -> Tensor:
    """An ONNX node of one result."""
    return torch.onnx.ops.symbolic(op, inputs, attributes, dtype=dtype, shape=shape, metadata_props=mark)


def integers(values: Sequence[int]) -> Tensor:
    """A constant vector."""
    return node("Constant", (), (len(values),), torch.int64, value_ints=list(values))


def arranged(own: Sequence[Weights], cell: str) -> list[Tensor | None]:
    """W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H) or None and P (D, 3*H) or None of each direction's weights,
    without projection."""
    _fold_weights()
    both = [t for w in own for t in (w.bias_ih, w.bias_hh) if t is not None]
    peepholes = [w.weight_peephole for w in own if w.weight_peephole is not None]
    order = RNN[cell].onnx.order
    found = [[w.weight_ih for w in own], [w.weight_hh for w in own], both]
    found = [_stacked(t, len(own), order, RNN[cell].gates) if t else None for t in found]
    # ONNX's are in the order i, o, f.
    return [*found, _stacked(peepholes, len(own), (0, 2, 1), 3) if peepholes else None]


def _stacked(weights: Sequence[Tensor], directions: int, gate_order, gates: int) -> Tensor:
    """Weights (G*H, ...) or pairs of biases, direction by direction, as (D, ...) in ONNX's order of gates."""
    rows, *rest = weights[0].shape
    dtype, total = weights[0].dtype, rows * len(weights)
    mark = dict([_MARK])
    whole = weights[0]
    if len(weights) > 1:
        whole = node("Concat", list(weights), (total, *rest), dtype, mark, axis=0)
    if gate_order is not None:
        hidden = rows // gates
        order = [
            start + gate * hidden + unit
            for start in range(0, total, rows)
            for gate in gate_order
            for unit in range(hidden)
        ]
        whole = node("Gather", (whole, integers(order)), (total, *rest), dtype, mark, axis=0)
    shape = (directions, total // directions, *rest)
    return node("Reshape", (whole, integers(shape)), shape, dtype, mark)


@functools.cache
def _fold_weights() -> None:
    """Have the optimiser of onnxscript, which an export uses, fold the nodes that arrange weights."""
    try:
        import numpy
        import onnx_ir
        from onnxscript.optimizer._constant_folding import registry
    except ImportError:
        return

    compute = {
        "Concat": lambda *parts: numpy.concatenate(parts),
        "Gather": lambda whole, order: whole[order],
        "Reshape": lambda whole, shape: whole.reshape(shape),
    }

    def fold(old, context, state):
        if old.metadata_props.get(_MARK[0]) != _MARK[1] or not isinstance(old.graph, onnx_ir.Graph):
            return None
        constants = [v.const_value for v in old.inputs]
        if any(t is None for t in constants):  # a weight that is computed
            return None
        array = compute[old.op_type](*(t.numpy() for t in constants))
        name = old.outputs[0].name
        value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
        old.graph.register_initializer(value)
        return value

    for op in compute:
        registry.register(op)(fold)
