"""In the SRU's scan."""

from __future__ import annotations

from ..build import Fault

FAULTS = {
    "ring: neighbours' words overlap": Fault(
        "scan/ring.cuh", "memory + threadIdx.x * kWord", "memory + threadIdx.x * 2"
    ),
    "ring: the wrong half of a word": Fault("scan/ring.cuh", "(from & 2)", "(2 - (from & 2))"),
    "ring: the pad of another row": Fault("scan/ring.cuh", "reinterpret_cast<uintptr_t>(from) & 3", "0"),
    "walk: one column too many": Fault("scan/ring.cuh", "i >= s.B * wide", "i > s.B * wide"),
    "walk: both directions run forwards": Fault(
        "scan/ring.cuh", "out.reverse(s) != descending", "descending"
    ),
    "walk: a packed row is as long as the longest": Fault("scan/ring.cuh", "tables.lengths[out.b]", "s.T"),
    "backward: c of the step itself": Fault(
        "scan/kernels.cuh",
        "ring.fetch_cell(slot, 0, cells + row_ahead.at)",
        "ring.fetch_cell(slot, 0, cells + row.at)",
    ),
    "backward: the first step's c before it": Fault(
        "scan/kernels.cuh", "last ? c0[j] : c_prev[j]", "c_prev[j]"
    ),
    "backward: a pad adds to the sums": Fault("scan/kernels.cuh", "pad ? A(0) : grad[k]", "grad[k]"),
    "rows: a step that begins anew takes the state": Fault(
        "scan/kernels.cuh", "begins ? A(0) : c[j]", "c[j]"
    ),
    "rows: its gradient goes to the step before": Fault(
        "scan/kernels.cuh", "begins ? A(0) : pad ? dc[j] : next", "pad ? dc[j] : next"
    ),
    "rows: the flags of the other direction": Fault(
        "scan/ring.cuh", "column.reverse(in.shape) * in.flags_stride", "0"
    ),
    "states: their gradient is the step before's": Fault(
        "scan/kernels.cuh",
        "ring.fetch_cell(slot, 1, grad_cells + row_ahead.at)",
        "ring.fetch_cell(slot, 1, grad_cells + row.at)",
    ),
    "sums: a row is left out": Fault("scan/kernels.cuh", "b += kSumRows", "b += kSumRows + 1"),
    "host: pairs across the directions": Fault("scan/kernels.cu", "s.H() % 2 == 0", "true"),
    "race: the sums are read before they are there": Fault("scan/kernels.cuh", "__syncthreads()", "(void)0"),
}
