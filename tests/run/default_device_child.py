"""Calls without the dispatcher where torch makes tensors on another device by default, for
test_default_device.py: in a process of its own, since what they ask of torch they look up once.

torch.set_default_tensor_type(torch.cuda.FloatTensor) does this, with a GPU; here torch.empty without a device
gives tensors that are on an accelerator by their own word, in memory that may be neither read nor written.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from pathlib import Path

import torch
from torch.utils.dlpack import from_dlpack

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

MAIA, FLOAT = 17, 2  # DLPack's numbers
made, _kept = [], []


class _Managed(ctypes.Structure):
    """DLManagedTensor, its DLTensor first."""

    _fields_ = [
        *(("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("device_id", ctypes.c_int32)),
        *(("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8)),
        *(("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p)),
        *(("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)),
    ]


def _closed_memory(size: int) -> int:
    map_memory = ctypes.CDLL(None).mmap
    map_memory.restype = ctypes.c_void_p
    map_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
    return map_memory(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)


def elsewhere(*sizes: int, dtype: torch.dtype) -> torch.Tensor:
    assert dtype == torch.float32
    shape = (ctypes.c_int64 * len(sizes))(*sizes)
    managed = _Managed(device=MAIA, ndim=len(sizes), code=FLOAT, bits=32, lanes=1)
    managed.data, managed.shape = _closed_memory(4 * math.prod(sizes)), ctypes.addressof(shape)
    _kept.append((shape, managed))
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    made.append(from_dlpack(new_capsule(ctypes.addressof(managed), b"dltensor", None)))
    return made[-1]


class _Functions:
    """torch's own functions, but for empty()."""

    def __init__(self, own) -> None:
        self._own = own

    def __getattr__(self, name: str):
        return elsewhere if name == "empty" else getattr(self._own, name)


torch._C._VariableFunctions = _Functions(torch._C._VariableFunctions)

import fastrnn  # noqa: E402


def main() -> None:
    x = torch.randn(4, 2, 3)
    for module in (fastrnn.GRU(3, 5), fastrnn.LSTM(3, 5, bidirectional=True)):
        expected = [t.detach() for t in _flat(module(x))]  # through autograd, by the operator
        with torch.no_grad():
            _same(_flat(module(x)), expected)
    stream = fastrnn.GRU(3, 5).streamer()
    with torch.no_grad():
        stream.step(x[0])
        stream(x)
        stream.step(x[0], torch.zeros(1, 2, 5), active=torch.tensor([True, False]))
    if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):  # else every call is the operator's
        assert made
        assert all(t.device.type == "maia" for t in made)


def _flat(results) -> list[torch.Tensor]:
    y, state = results
    return [y, *(state if isinstance(state, tuple) else [state])]


def _same(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for g, e in zip(got, expected, strict=True):
        assert g.device.type == "cpu"
        assert torch.equal(g, e)


if __name__ == "__main__":
    main()
