"""Where x's product runs beside the loop: the host's faults between two streams, and between two chunks."""

from __future__ import annotations

from ..build import Fault

_LOOP = "persistent/loop.cpp"

FAULTS = {
    "a loop does not wait for its product": Fault(_LOOP, "side.join()", "int{cudaSuccess}"),
    "the product does not wait for its inputs": Fault(_LOOP, "side.fork()", "int{cudaSuccess}"),
    "a chunk begins with the first one's h": Fault(_LOOP, "h = h_out", "h = h"),
    "a chunk begins with the first one's c": Fault(_LOOP, "c = c_out", "c = c"),
    "the product of the chunk before": Fault(_LOOP, "next * shape.B", "first * shape.B"),
    "a chunk reads the first one's gates": Fault(_LOOP, "behind(p.gx, row * p.gx_stride * element)", "p.gx"),
    "a chunk writes the first one's outputs": Fault(_LOOP, "behind(p.y, row * H * element)", "p.y"),
    "a chunk saves where the first one did": Fault(
        _LOOP, "behind(p.gates, row * saved_of(p.shape.cell) * H * element)", "p.gates"
    ),
    "a chunk saves its cells where the first one did": Fault(
        _LOOP, "behind(p.cells, row * H * int64_t{sizeof(float)})", "p.cells"
    ),
    "a chunk has the first one's resets": Fault(_LOOP, "behind(p.resets, row)", "p.resets"),
    "two streams in the caller's graph": Fault("ops/rnn_forward.cpp", "is_capturing(layer.stream)", "false"),
}
