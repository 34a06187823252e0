"""In the stepwise kernels and the time loop around them."""

from __future__ import annotations

from ..build import Fault

FAULTS = {
    "forward: the recurrent part's gates in reverse order": Fault(
        "stepwise/kernels.cuh", "begins ? A(0) : rec[g * H]", "rec[(G - 1 - g) * H]"
    ),
    "forward: both directions take the first one's bias": Fault(
        "stepwise/kernels.cuh",
        "static_cast<const A*>(p.bias) + d * kRecurrentGates<Cell> * H + u",
        "static_cast<const A*>(p.bias) + u",
    ),
    "backward: the GRU's gradients in another order": Fault(
        "stepwise/kernels.cuh", "g == Cell::kGates - 1 ? 0 : g + 1", "g == 0 ? Cell::kGates - 1 : g - 1"
    ),
    "backward: every row has a previous step": Fault(
        "stepwise/kernels.cuh", "p.table.runs(pick(p.previous.t, at.direction), at.row)", "true"
    ),
    "recompute: a row's last piece runs past its end": Fault(
        "stepwise/kernels.cuh",
        "at.unit >= shape.H || at.row >= shape.N",
        "at.unit > shape.H || at.row >= shape.N",
    ),
    "host: the previous step is this one": Fault(
        "stepwise/backward.cpp", "layer.rows_at(t - 1)", "layer.rows_at(t)"
    ),
    "lengths: a row runs for a step too many": Fault(
        "stepwise/kernels.cuh",
        "!p.table.runs(t, at.row)",
        "t > p.table.length(at.row)",
        "    forward_kernel(const StepShape",
    ),
    "backward: resets are ignored": Fault(
        "stepwise/kernels.cuh", "p.table.ends(t, at.direction, at.row)", "false", "A dh = 0, dc = 0"
    ),
    "backward: a row that waits loses its gradient": Fault(
        "stepwise/kernels.cuh", "static_cast<const A*>(p.dh)[state]", "A(0)", "A* const direct"
    ),
    "race: the pieces of a row overlap": Fault(
        "device/tiling.cuh",
        "static_cast<int64_t>(chunk) * tiling.width",
        "static_cast<int64_t>(chunk) * (tiling.width - 1)",
    ),
}
