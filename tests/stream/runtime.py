"""The shipped library from Python, and models to run on it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import fastrnn

ERROR_SIZE = 512


@cache
def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(fastrnn.get_library())
    pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    for name, result, arguments in (
        ("load_file", pointer, [text, text, size]),
        ("load_memory", pointer, [text, size, text, size]),
        ("model_free", None, [pointer]),
        ("input_size", size, [pointer]),
        ("output_size", size, [pointer]),
        ("instruction_set", text, [pointer]),
        ("version", text, []),
        ("format_version", ctypes.c_int, []),
        ("stream_new", pointer, [pointer]),
        ("stream_free", None, [pointer]),
        ("reset", ctypes.c_int, [pointer]),
        ("process", ctypes.c_int, [pointer, pointer, pointer, size]),
    ):
        function = getattr(lib, f"fastrnn_{name}")
        function.restype, function.argtypes = result, arguments
    return lib


class Model:
    """A model and one stream on it."""

    def __init__(self, data: bytes | Path) -> None:
        error = ctypes.create_string_buffer(ERROR_SIZE)
        self._model = self._stream = None
        if isinstance(data, Path):
            self._model = library().fastrnn_load_file(str(data).encode(), error, ERROR_SIZE)
        else:
            self._model = library().fastrnn_load_memory(data, len(data), error, ERROR_SIZE)
        if not self._model:
            raise ValueError(error.value.decode())
        assert error.value == b""
        self._stream = library().fastrnn_stream_new(self._model)
        self.inputs = library().fastrnn_input_size(self._model)
        self.outputs = library().fastrnn_output_size(self._model)
        self.isa = library().fastrnn_instruction_set(self._model).decode()

    def __call__(self, x: Tensor, pieces: Sequence[int] = ()) -> Tensor:
        """y (T, outputs) of x (T, inputs) on the state as it is, in calls of so many steps."""
        x = x.contiguous()
        y = torch.full((len(x), self.outputs), float("nan"))
        at = 0
        for steps in pieces or [len(x)]:
            arguments = x[at:].data_ptr(), y[at:].data_ptr(), steps
            assert library().fastrnn_process(self._stream, *arguments) == 0
            at += steps
        assert at == len(x)
        return y

    def reset(self) -> None:
        assert library().fastrnn_reset(self._stream) == 0

    def __del__(self) -> None:
        if self._stream:
            library().fastrnn_stream_free(self._stream)
            library().fastrnn_model_free(self._model)


def load(module, folder: Path) -> Model:
    path = folder / "model.fastrnn"
    fastrnn.runtime.save(module, path)
    return Model(path)


@torch.no_grad()
def steps_of(layer: nn.Module, x: Tensor) -> Tensor:
    """What Python gives a step at a time: the streamer's, the SRU's own."""
    step = layer.step if isinstance(layer, fastrnn.SRU) else layer.streamer().step
    state, rows = None, []
    for row in x:
        y, state = step(row, state)
        rows.append(y)
    return torch.stack(rows)


@torch.no_grad()
def chain_of(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The same of layers one after the other; those that are not recurrent all at once."""
    for layer in layers:
        x = steps_of(layer, x) if isinstance(layer, (nn.RNNBase, fastrnn.SRU)) else layer(x)
    return x
