"""Keras' recurrent layers as fastrnn's: what ``LSTM.from_keras`` and its siblings read.

Keras keeps a kernel (I, G*H), a recurrent kernel (H, G*H) and a bias; gates of the LSTM in torch's order, of
the
GRU z, r, h. Keras itself is not needed: a layer is read by its attributes, and its weights are arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks

#: Rows of torch's gates in Keras' order, by the cell's name.
_ORDER = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "RNN": (0,)}
#: Those with a reset gate, before or after the recurrent product.
_RESETS = frozenset(("GRU",))
#: What the kernels compute, by the names of a Keras layer's attributes.
_ACTIVATIONS = {
    "LSTM": {"activation": ("tanh",), "recurrent_activation": ("sigmoid",)},
    "GRU": {"activation": ("tanh",), "recurrent_activation": ("sigmoid",)},
    "RNN": {"activation": ("tanh", "relu")},
}


def from_keras(cls: type, name: str, source, options: dict):
    """A layer of class ``cls`` (called ``name``: "LSTM", "GRU" or "RNN") of a Keras layer or its weights.

    Returns the layer. See ``LSTM.from_keras`` for arguments and errors.
    """
    layers, found = [], {}
    if hasattr(source, "forward_layer") and hasattr(source, "backward_layer"):  # keras.layers.Bidirectional
        if getattr(source, "merge_mode", "concat") != "concat":
            raise ValueError(
                f"{name}.from_keras: merge_mode should be 'concat', got {source.merge_mode!r} of the layer"
            )
        layers = [source.forward_layer, source.backward_layer]
        backwards = [bool(getattr(layer, "go_backwards", False)) for layer in layers]
        if backwards != [False, True]:
            raise ValueError(f"{name}.from_keras: go_backwards should be [False, True], got {backwards}")
    elif hasattr(source, "get_weights"):
        layers = [source]
        if getattr(source, "go_backwards", False):
            raise ValueError(
                f"{name}.from_keras: go_backwards=True has no layer here; flip the input, and the output"
            )
    if layers:
        for layer in layers:
            found = _options(name, layer)
        weights = [w for layer in layers for w in layer.get_weights()]
    elif isinstance(source, Sequence) and not isinstance(source, str):
        weights = list(source)
    else:
        raise TypeError(
            f"{name}.from_keras: expected a Keras layer or a list of its weights, got {_checks.kind(source)}"
        )
    weights = [w.detach() if isinstance(w, Tensor) else torch.as_tensor(w) for w in weights]
    bidirectional = len(layers) == 2 or len(weights) in (4, 6)
    directions = 2 if bidirectional else 1
    each = len(weights) // directions
    if len(weights) not in (2 * directions, 3 * directions):
        raise ValueError(
            f"{name}.from_keras: expected kernel, recurrent kernel and perhaps bias, of one direction or "
            f"two, got {len(weights)} arrays"
        )
    gates = len(_ORDER[name])
    kernel, recurrent = weights[:2]
    hidden = recurrent.size(0)
    if kernel.dim() != 2 or recurrent.shape != (hidden, gates * hidden) or kernel.size(1) != gates * hidden:
        raise ValueError(
            f"{name}.from_keras: expected a kernel (I, {gates}*H) and a recurrent kernel (H, {gates}*H), got "
            f"sizes {list(kernel.shape)} and {list(recurrent.shape)}"
        )
    if name in _RESETS:
        two = each < 3 or weights[2].dim() == 2  # of a reset after the product: b_ih and b_hh
        if each == 3:
            found["reset_after"] = two
    options = {"batch_first": True, **found, "bidirectional": bidirectional, "bias": each == 3, **options}
    layer = cls(kernel.size(0), hidden, dtype=options.pop("dtype", kernel.dtype), **options)
    with torch.no_grad():
        for d in range(directions):
            _fill(name, layer, weights[d * each : (d + 1) * each], "_reverse" if d else "")
    return layer


def _options(name: str, layer) -> dict:
    """What a Keras layer says of itself, as options; ValueError for what there is not here."""
    options = {}
    for attribute, allowed in _ACTIVATIONS[name].items():
        value = getattr(layer, attribute, allowed[0])
        given = value if isinstance(value, str) else getattr(value, "__name__", repr(value))
        if given not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise ValueError(
                f"{name}.from_keras: {attribute} should be {expected}, got {given!r} of the layer"
            )
        if "recurrent_activation" not in _ACTIVATIONS[name]:  # the one there is
            options["nonlinearity"] = given
    if getattr(layer, "dropout", 0):
        raise ValueError(
            f"{name}.from_keras: dropout of a layer's own input has no option here, got "
            f"dropout={layer.dropout}; put torch.nn.Dropout in front, and set the layer's to 0"
        )
    if getattr(layer, "recurrent_dropout", 0):
        options["recurrent_dropout"] = layer.recurrent_dropout
    if name in _RESETS:
        options["reset_after"] = bool(layer.reset_after)
    return options


def _fill(name: str, layer, weights: Sequence[Tensor], suffix: str) -> None:
    """One direction's weights."""

    def rows(t: Tensor) -> Tensor:
        blocks = t.unflatten(0, (len(_ORDER[name]), -1))
        return torch.cat([blocks[i] for i in _ORDER[name]])

    kernel, recurrent, *bias = weights
    getattr(layer, f"weight_ih_l0{suffix}").copy_(rows(kernel.t()))
    getattr(layer, f"weight_hh_l0{suffix}").copy_(rows(recurrent.t()))
    if bias:
        both = bias[0] if bias[0].dim() == 2 else torch.stack([bias[0], torch.zeros_like(bias[0])])
        getattr(layer, f"bias_ih_l0{suffix}").copy_(rows(both[0]))
        getattr(layer, f"bias_hh_l0{suffix}").copy_(rows(both[1]))
