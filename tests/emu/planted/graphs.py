"""In the stepwise tier as CUDA graphs: the host's faults, which show in later calls."""

from __future__ import annotations

from ..build import Fault

_GRAPHS = "stepwise/graphs.cpp"

FAULTS = {
    "the graph names the caller's weights": Fault(
        _GRAPHS, "/*own_weights=*/true", "false", "s.c0.reset();\n    buffers"
    ),
    "forward: the weights are not copied": Fault(
        _GRAPHS, "fill_weights(layer, buffers)", "void(0)", "ForwardSequence& from) const {"
    ),
    "backward: the weights are not copied": Fault(
        _GRAPHS, "fill_weights(layer, buffers)", "void(0)", "BackwardSequence& from) const {"
    ),
    "x's part of the gates is not copied": Fault(_GRAPHS, "copy(s.gx, from.gx)", "void(0)"),
    "the states are the first call's": Fault(_GRAPHS, "begin(layer, from, s, buffers)", "void(0)"),
    "backward: the saved gates are not copied": Fault(_GRAPHS, "copy(s.gates, from.gates)", "void(0)"),
    "backward: the gradient of y is not copied": Fault(_GRAPHS, "fill_one(s.grad_y, from.grad_y)", "void(0)"),
    "the rows' lengths are not copied": Fault(
        _GRAPHS, "fill_tables(layer)", "void(0)", "ForwardSequence& from) const {"
    ),
    "backward: what lies beyond a row's length is anything": Fault(
        _GRAPHS, "layer.clear_padding(s.dgates, layer.shape().D)", "void(0)"
    ),
    "the results keep what lies beyond a row's length": Fault(
        _GRAPHS, "layer.clear_padding(to.y, 1)", "void(0)"
    ),
    "packed: rows at a step are not told apart": Fault(_GRAPHS, "s.packed()", "false", "launches; how long"),
    "the launch is on another stream": Fault(
        _GRAPHS, "one.graph.launch(layer.stream)", "one.graph.launch(here.stream)"
    ),
    "two streams share a graph": Fault(_GRAPHS, "layer.stream", "nullptr", "  Kind kind{"),
    "a graph within the caller's": Fault(_GRAPHS, "is_capturing(layer.stream)", "false"),
    "the loop is not captured": Fault(
        _GRAPHS, "run_on(stream)", "run_on(layer.stream)", "one.graph.capture(here.stream"
    ),
    "its memory is of the caller's pool": Fault(_GRAPHS, "std::launch::async", "std::launch::deferred"),
}
