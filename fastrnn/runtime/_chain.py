"""A module as a chain of layers that the runtime has: what each is, its sizes, its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from .._cells import NAMES, RNN
from .._cells.card import Card
from ..modules import GRU, LSTM, SRU, LayerStack
from ..modules import RNN as ElmanRNN


class Layer(NamedTuple):
    """One entry of a file's description.

    Attributes:
        facts: its type, name and options, as the description has them.
        tensors: by their names in the file, without the layer's.
        inputs, outputs: features; None where any number will do, and what comes in goes out.
    """

    facts: dict
    tensors: dict[str, Tensor]
    inputs: int | None
    outputs: int | None


def chain(module: object) -> list[Layer]:
    """The layers of a module, one after the other, each with a name of its own.

    Raises:
        TypeError, ValueError: a layer that the runtime has not, or not so; layers whose sizes do not fit.
    """
    layers: list[Layer] = []
    features = None
    for name, one in _flat(module, ""):
        layer = _layer(name or "0", one)
        if layer is None:
            continue
        if features is not None and layer.inputs not in (None, features):
            raise ValueError(
                f"save: layer '{layer.facts['name']}' ({_name(one)}) takes {layer.inputs} features, "
                f"but the layer before it gives {features}"
            )
        if layer.inputs is None:
            if features is None:
                raise ValueError(
                    f"save: layer '{layer.facts['name']}' ({_name(one)}) stands before any layer that "
                    "says how many features there are"
                )
            layer.facts["size"] = features
        features = features if layer.outputs is None else layer.outputs
        layers.append(layer)
    if not layers:
        raise ValueError("save: expected at least one layer, got none")
    return layers


def _flat(module: object, name: str) -> Iterator[tuple[str, object]]:
    """The layers inside of containers, with their names as a state_dict has them."""
    if type(module) in (list, tuple):
        inner = [(str(i), one) for i, one in enumerate(module)]
    elif type(module) in (nn.Sequential, nn.ModuleList):
        inner = list(module._modules.items())  # named_children() leaves out a layer that stands there again
    elif type(module) is LayerStack:
        inner = [(f"layers.{i}", one) for i, one in enumerate(module.layers)]
    else:
        yield name, module
        return
    if isinstance(module, nn.Module):
        _refuse_hooks(name, module)
    for own, one in inner:
        yield from _flat(one, f"{name}.{own}" if name else own)


def _name(module: object) -> str:
    return type(module).__name__


def _refuse(name: str, module: object, why: str) -> None:
    raise ValueError(f"save: layer '{name}' ({_name(module)}): {why}")


def _refuse_hooks(name: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        _refuse(name, module, "the runtime would not run its hooks; remove them")


#: Of an activation's constants: what is safely a float32.
_LARGEST = 1e38
#: In evaluation they are not there.
_SKIPPED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
#: Activations, as the description has them.
_ACTIVATIONS: dict[type, Callable[[nn.Module], dict]] = {
    nn.Identity: lambda m: {"type": "identity"},
    nn.ReLU: lambda m: {"type": "relu"},
    nn.ReLU6: lambda m: {"type": "clamp", "min": 0.0, "max": 6.0},
    nn.LeakyReLU: lambda m: {"type": "leaky_relu", "negative_slope": float(m.negative_slope)},
    nn.Hardtanh: lambda m: {"type": "clamp", "min": float(m.min_val), "max": float(m.max_val)},
    nn.Tanh: lambda m: {"type": "tanh"},
    nn.Sigmoid: lambda m: {"type": "sigmoid"},
    nn.SiLU: lambda m: {"type": "silu"},
    nn.ELU: lambda m: {"type": "elu", "alpha": float(m.alpha)},
    nn.Softsign: lambda m: {"type": "softsign"},
    nn.Hardsigmoid: lambda m: {"type": "hard_sigmoid"},
}
#: Recurrent layers whose forward() is what their mode says, not something that a subclass made of it.
_RECURRENT = {kind.forward for kind in (nn.LSTM, nn.GRU, nn.RNN, LSTM, GRU, ElmanRNN)}


def _layer(name: str, module: object) -> Layer | None:
    """One layer; None for one that is not there in evaluation."""
    kind = type(module)
    if isinstance(module, nn.Module):
        _refuse_hooks(name, module)
    if kind in _SKIPPED:
        return None
    if kind in _ACTIVATIONS:
        facts = _ACTIVATIONS[kind](module)
        for option, value in facts.items():
            if isinstance(value, float) and not abs(value) <= _LARGEST:
                _refuse(name, module, f"{option} should be at most {_LARGEST:.0e}, got {value}")
        return Layer(facts | {"name": name}, {}, None, None)
    if isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward:
        tensors = {"weight": module.weight} | ({} if module.bias is None else {"bias": module.bias})
        sizes = {"input_size": module.in_features, "output_size": module.out_features}
        facts = _facts("linear", name, **sizes, bias=module.bias is not None)
        return Layer(facts, _checked(name, module, tensors), *sizes.values())
    if isinstance(module, nn.RNNBase) and kind.forward in _RECURRENT:
        return _rnn(name, module)
    if kind is SRU:
        return _sru(name, module)
    known = "LSTM, GRU, RNN, SRU, Linear, Dropout, Sequential, " + ", ".join(k.__name__ for k in _ACTIVATIONS)
    raise TypeError(
        f"save: layer '{name}' is of a kind that the runtime has not: {_checks.kind(module)}; it has {known}"
    )


def _facts(kind: str, name: str, **options) -> dict:
    return {"type": kind, "name": name, "weights": "float32"} | options


def _checked(name: str, module: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, on the CPU, once they are seen to be finite float32."""
    found = {}
    for role, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            _refuse(
                name,
                module,
                f"{role} should be torch.float32, got {tensor.dtype}; module.float() makes it so",
            )
        value = tensor.detach().cpu().contiguous()
        if not bool(torch.isfinite(value).all()):
            _refuse(name, module, f"{role} has values that are not finite")
        found[role] = value
    return found


def _rnn(name: str, module: nn.RNNBase) -> Layer:
    if module.bidirectional:
        _refuse(name, module, "bidirectional=True: the reverse direction begins at the end of the sequence")
    cell = RNN[NAMES[module.mode]]
    variant = getattr(module, "variant", None)
    # Both dropouts are not there in evaluation; the other two are a matter of the weights.
    rewritten = ("recurrent_dropout", "weight_dropout", "coupled", "heads")
    for option in variant.words() if variant is not None else ():
        if option not in rewritten:
            _refuse(name, module, f"the runtime has no option {option}={getattr(variant, option)!r}")
    roles = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    if module.proj_size:
        roles.append("weight_hr")
    tensors = {
        f"{role}_l{k}": getattr(module, f"{role}_l{k}") for k in range(module.num_layers) for role in roles
    }
    tensors = _checked(name, module, tensors)
    if variant is not None:
        for role, tensor in tensors.items():
            tensors[role] = _rewritten(role, tensor, cell, variant, module.hidden_size)
    facts = _facts(
        cell.name,
        name,
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        proj_size=module.proj_size,
        num_layers=module.num_layers,
        bias=bool(module.bias),
    )
    return Layer(facts, tensors, module.input_size, module.proj_size or module.hidden_size)


def _rewritten(role: str, tensor: Tensor, cell: Card, variant, hidden: int) -> Tensor:
    """A variant's weight as the plain cell's: blocks of heads among zeros, and f's rows as -i's where
    f = 1 - i, since sigmoid(-x) = 1 - sigmoid(x)."""
    if role.startswith("weight_hr"):
        return tensor
    if variant.heads > 1 and role.startswith("weight_hh"):
        # (G*H, H/heads): the units of a head, in each gate, see that head's.
        gates = tensor.unflatten(0, (cell.gates, variant.heads, -1))
        tensor = torch.stack([torch.block_diag(*gate) for gate in gates]).flatten(0, 1)
    if variant.coupled:
        tensor = tensor.clone()
        tensor[hidden : 2 * hidden] = -tensor[:hidden]
    return tensor


def _sru(name: str, module: SRU) -> Layer:
    if module.bidirectional:
        _refuse(name, module, "bidirectional=True: the reverse direction begins at the end of the sequence")
    if module.input_to_hidden is not None:
        _refuse(
            name, module, "the runtime has no option proj_input_to_hidden_first=True; put a Linear before it"
        )
    tensors, tanh = {}, False
    for k, cell in enumerate(module.rnn_lst):
        inner = f"{name}.rnn_lst.{k}"
        _refuse_hooks(inner, cell)
        if cell.projection_size:
            _refuse(inner, cell, f"the runtime has no option projection_size={cell.projection_size}")
        if cell.layer_norm is not None:
            _refuse(inner, cell, "the runtime has no option layer_norm=True")
        linear = cell.transform_module
        if type(linear) is not nn.Linear or linear.bias is not None:
            _refuse(inner, cell, "the runtime has no option transform_module")
        tanh = cell.activation_type == 1
        tensors |= {
            f"weight_l{k}": linear.weight,
            f"weight_c_l{k}": cell.weight_c,
            f"bias_l{k}": cell.bias,
        }
    scales = {float(cell.scale_x) if cell.rescale else 1.0 for cell in module.rnn_lst}
    if len(scales) > 1:
        _refuse(name, module, f"its layers should have one scale_x, got {sorted(scales)}")
    facts = _facts(
        "sru",
        name,
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        num_layers=module.num_layers,
        use_tanh=tanh,
        has_skip_term=bool(module.has_skip_term),
        scale=scales.pop(),
    )
    return Layer(facts, _checked(name, module, tensors), module.input_size, module.output_size)
