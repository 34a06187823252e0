"""A layer as one ONNX node, for the runtimes that read it: fixed shapes, and written node by node, so that
nothing depends on an exporter."""

from __future__ import annotations

import torch

from ..cases import GATES
from ..problem import Problem

# ONNX orders the LSTM's gates i, o, f, c and the GRU's z, r, h.
_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def model(problem: Problem):
    """The layer as one ONNX node: x (T, B, I) -> y (T, 1, B, H)."""
    from onnx import TensorProto, helper, numpy_helper

    case = problem.case

    def reorder(w):
        gates = w.cpu().chunk(GATES[case.cell])
        return torch.cat([gates[g] for g in _ORDER[case.cell]])

    w_ih, w_hh, b_ih, b_hh = (reorder(w) for w in problem.weights())
    constants = {"W": w_ih[None], "R": w_hh[None], "B": torch.cat([b_ih, b_hh])[None]}
    attributes = {"hidden_size": case.H}
    if case.cell == "gru":
        attributes["linear_before_reset"] = 1
    node = helper.make_node(case.cell.upper(), ["x", "W", "R", "B"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.T, case.B, case.I])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.T, 1, case.B, case.H])],
        [numpy_helper.from_array(t.numpy(), name) for name, t in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def as_y(array) -> torch.Tensor:
    """The node's output as torch.nn's."""
    return torch.from_numpy(array.copy()).squeeze(1)
