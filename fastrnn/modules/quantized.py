"""Layers with weights of bfloat16 or int8, for inference on the CPU, and the way from a model to them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from .. import _cells, _checks
from .._cells import RNN
from .._ops import library, streams, torch_state
from .._ops import quantized as _quantized
from .._run import symbolic, torchscript
from .._run.rnn import Stack, permute
from .._run.rows import read_lengths
from ._base import RecurrentLayer

__all__ = ["QuantizedGRU", "QuantizedLSTM", "QuantizedRNN", "quantize"]


class QuantizedLayer(nn.Module):
    """Base of QuantizedLSTM, QuantizedGRU and QuantizedRNN: what :func:`fastrnn.quantize` puts in place of
    LSTM, GRU and RNN.

    Called like the layer that it was made from: input (T, B, I), (B, T, I) if ``batch_first``, (T, I) or a
    PackedSequence, and hx as there; the same results, without gradients. Input, state and output are float32,
    whatever the weights are. Dropout between layers is off.

    The weights are buffers of bytes, ``packed_l{k}`` and ``packed_l{k}_reverse`` (uint8), the same on every
    machine: they are in ``state_dict``, pickles and exported programs.

    Attributes: ``weights`` ("bfloat16" or "int8"), and those of the layer: ``input_size``, ``hidden_size``,
    ``num_layers``, ``bias``, ``batch_first``, ``bidirectional``, ``proj_size``.
    """

    _name: str

    def __init__(self, layer: nn.RNNBase, weights: str = "int8") -> None:
        """A layer with the weights of ``layer``, a fastrnn or torch.nn layer of the same kind.

        Raises:
            TypeError: a layer of another kind. ValueError: other ``weights``; weights that are not finite, or
                whose scale overflows. RuntimeError: a layer that is not float32 on the CPU, or a variant.
        """
        super().__init__()
        name = type(self).__name__
        kind = getattr(nn, self._name)
        if not isinstance(layer, kind) and not (
            isinstance(layer, nn.RNNBase) and getattr(layer, "_name", None) == self._name
        ):
            raise TypeError(f"{name}: layer should be a {self._name}, got {_checks.kind(layer)}")
        _checks.one_of(name, "weights", weights, _quantized.QUANTIZED)
        missing = _quantized.refusal(layer)
        if missing:
            raise RuntimeError(f"{name}: expected {missing}")
        self.weights, self.mode = weights, layer.mode
        self.nonlinearity = getattr(layer, "nonlinearity", "tanh")
        self.input_size, self.hidden_size = layer.input_size, layer.hidden_size
        self.num_layers, self.bias, self.proj_size = layer.num_layers, bool(layer.bias), layer.proj_size
        self.batch_first, self.bidirectional = layer.batch_first, bool(layer.bidirectional)
        self.training = False
        with torch.no_grad(), torch.inference_mode(False):
            errors = []
            for names in layer._all_weights:
                own = [getattr(layer, one).detach() for one in names]
                packed, error = _quantized.pack(self._name, self._cell, names, own, self.bias, weights)
                self.register_buffer(names[0].replace("weight_ih", "packed"), packed)
                errors.append(error)
        directions = 2 if self.bidirectional else 1
        #: What rounding changed each layer's weights by, over the weights, as root mean squares; empty where
        #: they came from a state_dict.
        self.weight_errors = [max(errors[k : k + directions]) for k in range(0, len(errors), directions)]
        self._quick = None

    @property
    def _cell(self) -> str:
        return _cells.NAMES[self.mode]

    def _packed(self) -> list[Tensor]:
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        return [getattr(self, f"packed_l{k}{s}") for k in range(self.num_layers) for s in suffixes]

    def forward(self, input, hx=None, *, lengths: Tensor | Sequence[int] | None = None):
        """As the layer's: output and the last states.

        Args:
            input, hx: as of :class:`fastrnn.LSTM`, float32.
            lengths: (B,), how many steps each row of a padded batch has, 0 to T; integers on any device, or a
                list.
        """
        if lengths is None and not torch_state.compiling():
            quick = self._quick
            if quick is not None and quick.chunk is not None:
                found = quick.chunk(input, hx)
                if found is not None:
                    return found
        try:
            return self._long(input, hx, lengths)
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, type(self).forward, locals())) is None:
                raise
            return node

    def __prepare_scriptable__(self):
        torchscript.refuse(self)

    def _long(self, input, hx, lengths):
        name, lstm = self._name, RNN[self._cell].has_cell
        batch_sizes = sorted_indices = unsorted_indices = None
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError(
                    f"{name}: lengths belong to padded input, got a PackedSequence; pass what it was packed "
                    "from, and its lengths"
                )
            x, batch_sizes, sorted_indices, unsorted_indices = input
            batched, rows = True, int(batch_sizes[0])
        else:
            x = _checks.tensor(name, "input", input)
            if x.dim() not in (2, 3):
                raise ValueError(f"{name}: Expected input to be 2D or 3D, got {x.dim()}D instead")
            batched = x.dim() == 3
            x = x.unsqueeze(1) if not batched else x.transpose(0, 1) if self.batch_first else x
            rows = x.shape[1]
        x = x.detach()
        if x.dtype != torch.float32:
            _checks.input_dtype(x.dtype, torch.float32)
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        if not x.is_cpu and x.device.type != "meta":
            raise RuntimeError(f"{type(self).__name__} runs on the CPU, got an input on {x.device}")
        states, size = self.num_layers * (2 if self.bidirectional else 1), self.proj_size or self.hidden_size
        if hx is None:
            h = x.new_zeros((states, rows, size))
            c = x.new_zeros((states, rows, self.hidden_size)) if lstm else None
        else:
            h, c = _checks.pair(name, hx) if lstm else (_checks.tensor(name, "hx", hx), None)
            if batch_sizes is None:
                _checks.hidden_dims(h, c, batched)
                if not batched:
                    h, c = h.unsqueeze(1), (None if c is None else c.unsqueeze(1))
            _checks.hidden_size(self._stack(), h, c, rows)
            h, c = h.detach(), (None if c is None else c.detach())
            h, c = permute(h, sorted_indices), permute(c, sorted_indices)
        if lengths is not None:
            lengths = read_lengths(name, lengths, rows, batched)
        packed = self._packed()
        with torch.no_grad():
            y, h, c = library.quantized(x, h, c, packed, batch_sizes, lengths, self.bidirectional)
        if not torch_state.recorded() and not torch_state.tracing():
            self._quicken(packed)
        if batch_sizes is not None:
            output = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
            h, c = permute(h, unsorted_indices), permute(c, unsorted_indices) if lstm else c
        elif not batched:
            output, h, c = y.squeeze(1), h.squeeze(1), c.squeeze(1) if lstm else c
        else:
            output = y.transpose(0, 1) if self.batch_first else y
        return output, ((h, c) if lstm else h)

    def _quicken(self, packed: list[Tensor]) -> None:
        """Prepare the next call, of the buffers as they are: they were just seen to be right."""
        known = self._quick_of if self._quick is not None else ()
        now = [(tensor, None if tensor.is_inference() else tensor._version) for tensor in packed]
        if len(known) == len(now) and all(
            a is b and v == w for (a, v), (b, w) in zip(known, now, strict=True)
        ):
            return
        sources = [
            (self._buffers, name, tensor, version, tensor.data_ptr())
            for (name, tensor), (_, version) in zip(self._buffers.items(), now, strict=True)
        ]
        self._quick_of = now
        self._quick = streams.Quick(self._stack(), packed, torch.float32, self.batch_first, sources)

    def step(self, input: Tensor, hx=None) -> tuple:
        """One step: input (B, I) or (I,); output (B, P) or (P,), and the new state. As the layer's own."""
        quick = self._quick
        one_way = not self.bidirectional
        if quick is not None and quick.step is not None and one_way and not torch_state.compiling():
            found = quick.step(input, hx)
            if found is not None:
                return found
        return RecurrentLayer.step(self, input, hx)

    def _stack(self) -> Stack:
        return Stack(
            self._name,
            self._cell,
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.bias,
            self.num_layers,
            0.0,
            False,
            self.bidirectional,
            self.batch_first,
            "gates",
            "auto",
        )

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.weight_errors = []

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_quick", "_quick_of")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._quick = None

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, weights={self.weights!r}"
        for option, default in (("proj_size", 0), ("num_layers", 1), ("bias", True)):
            if getattr(self, option) != default:
                text += f", {option}={getattr(self, option)}"
        for option in ("batch_first", "bidirectional"):
            if getattr(self, option):
                text += f", {option}=True"
        return text + (", nonlinearity='relu'" if self.nonlinearity == "relu" else "")


class QuantizedLSTM(QuantizedLayer):
    """LSTM with weights of bfloat16 or int8, for inference: see :class:`QuantizedLayer`, its base."""

    _name = "LSTM"


class QuantizedGRU(QuantizedLayer):
    """GRU with weights of bfloat16 or int8, for inference: see :class:`QuantizedLayer`, its base."""

    _name = "GRU"


class QuantizedRNN(QuantizedLayer):
    """RNN with weights of bfloat16 or int8, for inference: see :class:`QuantizedLayer`, its base."""

    _name = "RNN"


_CLASSES = {"LSTM": QuantizedLSTM, "GRU": QuantizedGRU, "RNN": QuantizedRNN}


def quantize(model: nn.Module, weights: str = "int8", *, inplace: bool = False) -> nn.Module:
    """A model for inference on the CPU whose LSTM, GRU and RNN layers have weights of low precision.

    For what torch.ao.quantization.quantize_dynamic does with recurrent layers, in the same place; GRUs and
    RNNs, projections, and layers of torch.nn too. "int8" is symmetric, one scale for each row of a weight,
    with inputs and h quantized at every step; "bfloat16" rounds the weights alone. States and what a cell
    computes are float32.

    Layers of other kinds (cells, SRU, Linear) stay as they are, and so do classes derived from the layers
    with a forward() of their own. The layers' forward hooks go along; dropout between layers is off.

    Args:
        model: any module; it may itself be one of the layers. It stays as it is.
        weights: "int8" or "bfloat16".
        inplace: exchange the layers of the model itself.

    Returns:
        A copy of the model, or with ``inplace`` the model itself (of a layer its replacement).

    Raises:
        TypeError: ``model`` is no module. ValueError: other ``weights``; weights that are not finite, or
            whose scale overflows. RuntimeError: a layer that has no such form: a variant, another dtype, on a
            GPU. Errors name the layer, and nothing has been exchanged then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"quantize: model should be a torch.nn.Module, got {_checks.kind(model)}")
    _checks.one_of("quantize", "weights", weights, _quantized.QUANTIZED)
    found = {id(layer): _replacement(path, layer, weights) for path, layer in model.named_modules()}
    if found[id(model)] is not None:
        return found[id(model)]
    if not inplace:  # what is exchanged need not be copied
        return copy.deepcopy(model, {key: made for key, made in found.items() if made is not None})
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and found.get(id(child)) is not None:
                parent._modules[name] = found[id(child)]
    return model


def _replacement(path: str, layer: nn.Module, weights: str) -> QuantizedLayer | None:
    """A layer's, or None for modules that stay."""
    cls = type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)
    if not isinstance(layer, nn.RNNBase) or "forward" in vars(layer):
        return None
    name = getattr(layer, "_name", None) or next((b.__name__ for b in cls.__mro__ if b in _STOCK), None)
    if name not in _CLASSES:
        return None
    own = next(b for b in cls.__mro__ if "forward" in vars(b))
    if not own.__module__.startswith(("torch.nn.", "fastrnn.")):  # nobody knows what it does there
        return None
    try:
        made = _CLASSES[name](layer, weights)
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"quantize: layer {path!r}: {error}" if path else f"quantize: {error}") from None
    made.training = layer.training
    for hooks in _HOOKS:
        getattr(made, hooks).update(getattr(layer, hooks))
    return made


_STOCK = (nn.LSTM, nn.GRU, nn.RNN)
#: Where torch keeps forward hooks, and which of them want what.
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
