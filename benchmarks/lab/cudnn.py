"""Which of cuDNN's algorithms torch.nn asks for: three programs, as far apart as the rivals of a library.

The conditions are get_algo() and its heuristics in aten/src/ATen/native/cudnn/RNN.cpp of torch 2.11 to 2.14.
"""

from __future__ import annotations

from .cases import Case

STANDARD = "STANDARD"
PERSISTENT = "PERSIST_STATIC"
SMALL = "PERSIST_STATIC_SMALL_H"

#: Largest H of SMALL by cell, forward and backward.
_SMALL_H = {"lstm": (192, 128), "gru": (192, 128), "rnn": (384, 256)}


def algorithm(case: Case, *, backward: bool = False, capability: int = 90, sms: int = 132) -> str:
    """The algorithm of a case's pass on a GPU of such a compute capability (90 for 9.0) with so many SMs."""
    if case.path in ("proj", "packed"):
        return STANDARD
    small = _SMALL_H[case.cell][backward]
    if case.dtype != "float64" and small >= case.H:
        return SMALL
    if case.dtype == "float16" and _persistent(case, capability, sms):
        return PERSISTENT
    return STANDARD


def _persistent(case: Case, capability: int, sms: int) -> bool:
    """use_persist_common_heuristics() and use_persist_device_heuristics(); below 8.0 they are other ones."""
    if case.layers > 1 or case.directions > 1 or case.H > 1024 or case.H % 128 or case.I % 128:
        return False
    if capability < 80 or capability % 10 == 6 or sms < 98 or case.cell == "gru":
        return False
    small_enough = case.cell == "lstm" or case.B < 96 or case.H < 896
    return case.B % 8 == 0 and case.B <= 128 and small_enough


def regime(case: Case, capability: int = 90, sms: int = 132) -> str:
    """A case's algorithm; of training, that of both passes where they differ."""
    gpu = {"capability": capability, "sms": sms}
    forward, backward = algorithm(case, **gpu), algorithm(case, backward=True, **gpu)
    if not case.training or forward == backward:
        return forward
    return f"{forward}, backward {backward}"
