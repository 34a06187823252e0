"""The file: safetensors, with a description of the layers as JSON in its metadata. Nothing but the standard
library writes it, and anything that reads safetensors can look inside."""

from __future__ import annotations

import ctypes
import json
import os
import sys

import torch

from .._version import __version__
from ._chain import chain

__all__ = ["FORMAT_VERSION", "save"]

#: Of the description. A library reads its own and all before it.
FORMAT_VERSION = 1
_ALIGNMENT = 8  # of the data within the file, which some readers like


def save(module, path: str | os.PathLike) -> None:
    """Write a module for ``libfastrnn_stream``, the runtime without Python.

    Args:
        module: one layer, or several in an ``nn.Sequential``, an ``nn.ModuleList``, a list or a
            ``fastrnn.stack``, one after the other: ``LSTM``, ``GRU`` and ``RNN`` of torch.nn or fastrnn
            (several layers, projections; variants with ``heads``, ``coupled``, and what is only there in
            training), ``fastrnn.SRU``, ``Linear``, and the activations Identity, ReLU, ReLU6, LeakyReLU,
            Hardtanh, Tanh, Sigmoid, SiLU, ELU, Softsign, Hardsigmoid. float32, in one direction. A recurrent
            layer hands its output on, not its state. Dropout is left out, as in evaluation.
        path: of the file, which is replaced.

    Raises:
        TypeError: a layer of a kind that the runtime has not. ValueError: an option that it has not, weights
            that are not float32 or not finite, sizes that do not fit. Both name the layer, and no file is
            written.
    """
    with torch.no_grad():
        layers = chain(module)
    description = {
        "version": FORMAT_VERSION,
        "byteorder": "little",
        "fastrnn": __version__,
        "layers": [layer.facts for layer in layers],
    }
    header: dict[str, dict] = {"__metadata__": {"fastrnn": json.dumps(description, allow_nan=False)}}
    blocks, at = [], 0
    for layer in layers:
        for role, tensor in layer.tensors.items():
            block = _bytes(tensor)
            header[f"{layer.facts['name']}.{role}"] = {
                "dtype": "F32",
                "shape": list(tensor.shape),
                "data_offsets": [at, at + len(block)],
            }
            blocks.append(block)
            at += len(block)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.writelines(blocks)


def _bytes(tensor: torch.Tensor) -> bytes:
    """The elements in little-endian order."""
    raw = tensor.reshape(-1).view(torch.uint8)
    if sys.byteorder == "big":
        raw = raw.view(-1, tensor.element_size()).flip(1).contiguous()
    return ctypes.string_at(raw.data_ptr(), raw.numel())
