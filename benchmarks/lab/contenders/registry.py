"""Everybody who can be timed, in the order of tables and pictures. A new one is a file and a line here."""

from __future__ import annotations

from fastrnn.proof import machine
from fastrnn.proof.timing import Contender

from ..cases import BESIDE, Case
from ..problem import Problem
from . import compile as compiled
from . import (
    fastrnn,
    flashrnn,
    haste,
    jax,
    log_scan,
    onnxruntime,
    openvino,
    reference,
    sru,
    torch,
    torchrl,
    xlstm,
)
from .contender import Row, Unsupported
from .fastrnn import TIERS

#: The first is what everything else is compared with.
ROWS: tuple[Row, ...] = (
    *fastrnn.ROWS,
    *torch.ROWS,
    *sru.ROWS,
    *log_scan.ROWS,
    *xlstm.ROWS,
    *onnxruntime.ROWS,
    *openvino.ROWS,
    *jax.ROWS,
    *compiled.ROWS,
    *haste.ROWS,
    *torchrl.ROWS,
    *flashrnn.ROWS,
    *reference.ROWS,
)
ROW = {row.key: row for row in ROWS}
KEYS = tuple(ROW)
NAMES = {row.key: row.name for row in ROWS}
#: The other libraries on the CPU, and on a GPU; all of these but haste compile at their first call.
PEERS = tuple(row.key for row in ROWS if row.device == "cpu")
CUDA_PEERS = tuple(row.key for row in ROWS if row.device == "cuda")


def build(key: str, problem: Problem, threads: int) -> Contender:
    """Make a contender for this case. Unsupported where it does not do it, ValueError for another key."""
    if key in TIERS:
        return fastrnn.build(problem, threads, tier=key)
    if key not in ROW:
        raise ValueError(f"unknown contender {key!r}: expected one of {', '.join((*KEYS, *TIERS))}")
    row, case = ROW[key], problem.case
    if case.cell in BESIDE and case.cell not in row.own:
        raise Unsupported("LSTM, GRU and RNN only" if not row.own else f"{' and '.join(row.own)} only")
    if row.alone and case.cell not in row.own:
        raise Unsupported(f"{' and '.join(row.own)} only")
    if case.variant and not row.variants:
        raise Unsupported("plain cells only")
    if row.device == "cuda" and not case.device.startswith("cuda"):
        raise Unsupported("on a GPU only")
    if row.device == "cpu" and (case.path, case.dtype, case.device) != ("layers", "float32", "cpu"):
        raise Unsupported("float32 layers on the CPU only")
    if case.training and not row.training:
        raise Unsupported("inference only")
    return row.build(problem, threads)


def standard(case: Case) -> str:
    """The contender whose results the others must have."""
    return "reference" if case.cell in BESIDE or case.variant else "torch"


def versions() -> dict[str, str]:
    """Those of the contenders' packages that are installed, beside what the machine's record has."""
    return machine.versions() | machine.installed(dict.fromkeys(p for row in ROWS for p in row.packages))
