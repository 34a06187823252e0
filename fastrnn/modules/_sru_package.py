"""What the ``sru`` package's versions drew for a cell's weights, and how 2.6 saved them."""

from __future__ import annotations

import warnings

import torch
from torch import nn


def reset_transform(module: nn.Module, init: str) -> None:
    """New initial values for a transform module, in the package's order of draws."""
    if isinstance(module, nn.Linear) and init == "3.0":
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()
    elif isinstance(module, nn.Sequential) and init == "3.0":
        for inner in module:
            reset_transform(inner, init)
    elif next(module.parameters(), None) is not None:
        warnings.warn(
            f"the parameters of transform_module {type(module).__name__} keep their values: it has no "
            "reset_parameters()",
            stacklevel=4,
        )


def reset_as_2_6(cell) -> None:
    """sru 2.6's weights, of variance 1 / inputs before they are scaled. They were stored transposed."""
    layers = [cell.transform_module]
    if cell.projection_size:
        layers = [cell.transform_module[1], cell.transform_module[0]]
    for layer in layers:
        drawn = torch.empty_like(layer.weight.t(), memory_format=torch.contiguous_format)
        bound = (3.0 / layer.in_features) ** 0.5
        layer.weight.copy_(drawn.uniform_(-bound, bound).t())
    candidate, forget, reset, *skip = layers[0].weight.unflatten(0, (-1, cell.num_matrices)).unbind(1)
    if cell.dropout > 0:
        candidate.mul_((1 - cell.dropout) ** 0.5)
    if cell.rnn_dropout > 0:
        layers[0].weight.mul_((1 - cell.rnn_dropout) ** 0.5)
    if cell.layer_norm is not None:
        layers[0].weight.mul_(0.1)
    for columns in skip:
        columns.mul_(cell._highway_scale)
    if not cell.v1:
        forget.mul_(0.5**0.5)
        reset.mul_(0.5**0.5)


def translate_2_6(cell, state_dict: dict, prefix: str) -> None:
    """Rename and transpose what sru 2.6 saved, in place."""
    for key in [k for k in state_dict if k.startswith(f"{prefix}custom_m.")]:
        state_dict[f"{prefix}transform_module.{key[len(prefix) + 9 :]}"] = state_dict.pop(key)
    if cell._custom or f"{prefix}weight" not in state_dict:
        return
    weights = [state_dict.pop(f"{prefix}{key}", None) for key in ("weight_proj", "weight")]
    weights = [w.t().contiguous() for w in weights if w is not None]
    if len(weights) == 1 and cell.projection_size:
        # 2.6 ignored a projection that was no narrower than input and output; so does its layer here.
        cell.projection_size = 0
        kind = {"device": cell.weight_c.device, "dtype": cell.weight_c.dtype}
        with torch.random.fork_rng(devices=[]):
            cell.transform_module = cell._linears(kind)
    names = ["transform_module.weight"]
    if len(weights) == 2:
        names = ["transform_module.0.weight", "transform_module.1.weight"]
    state_dict.update((prefix + key, w) for key, w in zip(names, weights, strict=True))
