"""In the kernels of a layer with stages, and the time loops around them."""

from __future__ import annotations

from ..build import Fault

_COMMON = "stepwise/stages.cuh"
_FORWARD = "stepwise/stages_forward_kernels.cu"
_BACKWARD = "stepwise/stages_backward_kernels.cu"

FAULTS = {
    "race: the next sums do not wait for those before": Fault(
        _COMMON, "__syncthreads()", "void()", "v[k] += __shfl_xor_sync(~0u, v[k], apart);"
    ),
    "race: the sums are read before they are there": Fault(
        _COMMON, "__syncthreads()", "void()", "parts[warp * K + k] = v[k];"
    ),
    "race: the pieces of a row overlap": Fault(
        _COMMON, "chunk * p.threads + threadIdx.x", "chunk * (p.threads - 32) + threadIdx.x"
    ),
    "sums: the last warp is left out": Fault(_COMMON, "w < warps", "w < warps - (warps > 1)"),
    "norm: the squares are not about the mean": Fault(_COMMON, "value(u, g) - mean[0]", "value(u, g)"),
    "heads: every unit is the first one's": Fault(_COMMON, "u / size", "0 * u"),
    "masks: a packed row's lies where a padded one's would": Fault(
        _COMMON, "s.table.row_offsets", "nullptr", "keep_at("
    ),
    "forward: a row that begins anew keeps its c": Fault(
        _FORWARD, "begins ? A(0) : static_cast<const A*>(p.c)[state]", "static_cast<const A*>(p.c)[state]"
    ),
    "forward: a part of the state before a reset stays": Fault(
        _FORWARD, "begins ? A(0) : h_state[state]", "h_state[state]"
    ),
    "forward: the product sees h without its mask": Fault(_FORWARD, "h * mask_at<T>(s, state)", "h"),
    "forward: the recurrent part is normalised as x's": Fault(
        _FORWARD, "normalised(sum, of_h.mean, of_h.scale)", "normalised(sum, of_x.mean, of_x.scale)"
    ),
    "forward: h sees c without its norm": Fault(
        _FORWARD, "normalised(held[u], of_c.mean, of_c.scale)", "held[u]"
    ),
    "forward: the second product multiplies all of h": Fault(_FORWARD, "saved[0] * h_seen", "h_seen"),
    "backward: a row that waits loses its gradient": Fault(
        _BACKWARD, "static_cast<const A*>(p.dh)[first + u]", "A(0)", "if (direct) direct[u] += "
    ),
    "backward: a row that waits is multiplied": Fault(_BACKWARD, "put_operand(u, g, 0)", "void()"),
    "backward: the gradient of c passes a reset": Fault(_BACKWARD, "!ends", "true", "c_prev = c_before(u);"),
    "backward: the norm's mean has no gradient": Fault(
        _BACKWARD, "h_sums[0]", "A(0)", "norm_backward(load(dgh"
    ),
    "race: the norm reads what another thread writes": Fault(
        _BACKWARD, "load(dgh + g * H + u)", "load(dgh + g * H + (u + 1 < H ? u + 1 : u))"
    ),
    "backward: the peephole of o sees the c before": Fault(
        _BACKWARD, "dpre[3] * c", "dpre[3] * c_prev", "terms[(p.at.peephole + 2) * H + u] = "
    ),
    "backward: the first product's mask is forgotten": Fault(_BACKWARD, "mask * dh", "dh"),
    "input: the norm's gain is left out": Fault(
        _BACKWARD, "vector_at<T>(gain, g * H + u)", "A(1)", "dpre = load(dgx + g * H + u);"
    ),
    "operands: the state is the step's own": Fault(_BACKWARD, "d ? t + 1 : t - 1", "t"),
    "operands: a packed row lies where a padded one would": Fault(
        _BACKWARD, "runs ? table.row(t, b) : at.row", "at.row"
    ),
    "host: the first step sees h0 without its mask": Fault(
        "stepwise/stages_forward.cpp", "stages_mask(*staged, false, operand.data_ptr(), layer.stream)", "0"
    ),
    "host: the weights of the heads are as those of one": Fault(
        "stepwise/stages_loop.h", "heads_ == 1", "true", "stack_(layer.stacked_w_hh()) {"
    ),
}
