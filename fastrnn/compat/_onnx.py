"""ONNX's LSTM, GRU and RNN nodes as modules that run fastrnn's kernels: ``fastrnn.from_onnx``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import _checks
from .._cells import RNN
from .._cells.variant import PLAIN
from .._run.rnn import Stack, run
from .._run.rows import Rows

__all__ = ["OnnxLayer", "from_onnx"]

#: The inputs of a node, in ONNX's order. The first three there must be.
_INPUTS = {
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
_OUTPUTS = {"LSTM": ("Y", "Y_h", "Y_c"), "GRU": ("Y", "Y_h"), "RNN": ("Y", "Y_h")}
_WEIGHTS = ("W", "R", "B", "P")
_ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
#: Attributes of one kind of node alone.
_OWN = {"LSTM": ("input_forget",), "GRU": ("linear_before_reset",), "RNN": ()}
_DIRECTIONS = ("forward", "reverse", "bidirectional")


def from_onnx(node_or_file, *, name: str | None = None) -> OnnxLayer:
    """A module of an ONNX LSTM, GRU or RNN node.

    What the model knows of the node's inputs, weights above all, becomes parameters; the others, in ONNX's
    order, are the arguments of the module's forward(), and its results are the node's::

        layer = fastrnn.from_onnx("model.onnx")
        Y, Y_h, Y_c = layer(X)  # or layer(X, initial_h=..., initial_c=...)

    Args:
        node_or_file: a NodeProto, whose inputs are then all arguments; a ModelProto or GraphProto, its bytes,
            or the path of a file, with one such node in its main graph.
        name: which node, by its name or that of an output, where there are several.

    Covered are direction, layout, hidden_size, sequence_lens, initial_h, initial_c, P, input_forget,
    linear_before_reset, clip, and activations of Sigmoid, Tanh and Relu. Where clip or activations ask for
    what the kernels have not, the module runs in plain torch.

    Raises:
        TypeError: something else than a node, model or file.
        ValueError: no such node or more than one; an attribute, or a value of it, that is not covered.
        ImportError: a model without the onnx package.
    """
    node, constants = _find(node_or_file, name)
    return OnnxLayer(node, constants)


class OnnxLayer(nn.Module):
    """An ONNX LSTM, GRU or RNN node; made by :func:`from_onnx`.

    Its weights, if the model holds them, are its parameters, laid out as :class:`fastrnn.LSTM`'s for layer 0.

    Attributes:
        op: "LSTM", "GRU" or "RNN". direction, layout, clip, activations, hidden_size: the node's.
        arguments: names of forward()'s arguments, in order.
    """

    def __init__(self, node, constants: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.op = node.op_type
        self._read(_attributes(node))
        given = dict(zip(_INPUTS[self.op], node.input, strict=False))
        given = {role: tensor for role, tensor in given.items() if tensor}
        known = {role: constants[tensor] for role, tensor in given.items() if tensor in constants}
        bound = [role in known for role in _WEIGHTS if role in given]
        if any(bound) and not all(bound):  # then they are arguments, all of them
            known = {role: t for role, t in known.items() if role not in _WEIGHTS}
        self.arguments = tuple(role for role in given if role not in known)
        if "W" in known:
            weights = {role: known.pop(role) for role in _WEIGHTS if role in known}
            for key, weight in self._arranged(weights).items():
                self.register_parameter(key, nn.Parameter(weight.clone(), weight.is_floating_point()))
        self._constants = tuple(known)
        for role, tensor in known.items():
            self.register_buffer(role, tensor)

    def _read(self, attributes: dict) -> None:
        self.direction = attributes.pop("direction", "forward")
        if self.direction not in _DIRECTIONS:
            raise ValueError(f"from_onnx: direction should be one of {_DIRECTIONS}, got {self.direction!r}")
        self.layout = attributes.pop("layout", 0)
        if self.layout not in (0, 1):
            raise ValueError(f"from_onnx: layout should be 0 or 1, got {self.layout}")
        self.hidden_size = attributes.pop("hidden_size", None)
        self.clip = attributes.pop("clip", None)
        if self.clip is not None and not self.clip >= 0:
            raise ValueError(f"from_onnx: clip should be at least 0, got {self.clip}")
        self.coupled = bool(self._has("input_forget") and attributes.pop("input_forget", 0))
        self.reset_after = not self._has("linear_before_reset") or bool(
            attributes.pop("linear_before_reset", 0)
        )
        default = _DEFAULTS[self.op]
        directions = 2 if self.direction == "bidirectional" else 1
        asked = [a.lower() for a in attributes.pop("activations", ())] or list(default * directions)
        for activation in asked:
            if activation not in _ACTIVATIONS:
                raise ValueError(
                    f"from_onnx: activations: expected of Sigmoid, Tanh and Relu, got {activation.title()}"
                )
        if len(asked) != len(default) * directions:
            raise ValueError(
                f"from_onnx: activations: expected {len(default)} for each of {directions} directions, "
                f"got {len(asked)}"
            )
        self.activations = tuple(asked)
        for attribute, value in attributes.items():
            if attribute in ("activation_alpha", "activation_beta") and not value:
                continue
            raise ValueError(f"from_onnx: {attribute} of {self.op} is not covered, got {value!r}")

    def _has(self, attribute: str) -> bool:
        return attribute in _OWN[self.op]

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def _cell(self) -> str:
        return {"LSTM": "lstm", "GRU": "gru"}.get(self.op) or f"rnn_{self.activations[0]}"

    def _arranged(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W, R, B and P as torch's weights by their names."""
        cell = RNN[{"LSTM": "lstm", "GRU": "gru"}.get(self.op, "rnn_tanh")]
        order = cell.onnx.order or (0,)
        places = [order.index(gate) for gate in range(cell.gates)]
        D, G = self.directions, cell.gates
        W, R = given["W"], given["R"]
        if W.dim() != 3 or R.dim() != 3 or R.shape != (D, G * R.size(-1), R.size(-1)):
            raise ValueError(
                f"from_onnx: expected R of size [{D}, {G}*H, H] and W of [{D}, {G}*H, I], got "
                f"{list(R.shape)} and {list(W.shape)}"
            )
        hidden = R.size(-1)
        if self.hidden_size not in (None, hidden):
            raise ValueError(f"from_onnx: hidden_size {self.hidden_size} is not R's, {hidden}")
        for role, size in (
            ("W", (D, G * hidden, W.size(-1))),
            ("B", (D, 2 * G * hidden)),
            ("P", (D, 3 * hidden)),
        ):
            if given.get(role) is not None and given[role].shape != size:
                raise ValueError(
                    f"from_onnx: expected {role} of size {list(size)}, got {list(given[role].shape)}"
                )

        def rows(t: Tensor) -> Tensor:
            blocks = t.unflatten(0, (G, -1))
            return torch.cat([blocks[place] for place in places])

        found = {}
        for d in range(D):
            suffix = "_l0_reverse" if d else "_l0"
            found["weight_ih" + suffix], found["weight_hh" + suffix] = rows(W[d]), rows(R[d])
            if given.get("B") is not None:
                for key, b in zip(("bias_ih", "bias_hh"), given["B"][d].chunk(2), strict=True):
                    found[key + suffix] = rows(b)
            if given.get("P") is not None:
                i, o, f = given["P"][d].chunk(3)
                found["weight_peephole" + suffix] = torch.cat([i, f, o])
        return found

    def forward(self, *inputs: Tensor | None, **named: Tensor | None) -> tuple[Tensor, ...]:
        """The node's results, Y, Y_h and of an LSTM Y_c, of its inputs that are no constants of the model.

        Arguments go by place, in the order of ``arguments``, or by ONNX's names: X, sequence_lens, initial_h,
        initial_c, and W, R, B, P where the model has no weights. Sizes are ONNX's: X (T, B, I), states (D, B,
        H), Y (T, D, B, H); with layout=1 the batch comes first.
        """
        if len(inputs) > len(self.arguments):
            raise TypeError(
                f"{self.op}: expected at most {len(self.arguments)} inputs ({', '.join(self.arguments)}), "
                f"got {len(inputs)}"
            )
        given = dict(zip(self.arguments, inputs, strict=False))
        for role, tensor in named.items():
            if role not in _INPUTS[self.op] or role in given:
                raise TypeError(f"{self.op}: got an unexpected input {role!r}")
            given[role] = tensor
        for role in self._constants:
            given.setdefault(role, getattr(self, role))
        x = _checks.tensor(self.op, "X", given.get("X"))
        if x.dim() != 3:
            raise ValueError(f"{self.op}: X should have 3 dimensions, got {x.dim()}")
        own = dict(self.named_parameters())
        if not own:
            for role in ("W", "R"):
                _checks.tensor(self.op, role, given.get(role))
            own = self._arranged({role: given.get(role) for role in _WEIGHTS})
        h, c = given.get("initial_h"), given.get("initial_c")
        if self.layout:
            x, h, c = (t if t is None else t.transpose(0, 1) for t in (x, h, c))
        found = self._run(x, h, c, given.get("sequence_lens"), own)
        y, *states = found
        y = y.unflatten(-1, (self.directions, -1)).transpose(1, 2)  # (T, D, B, H)
        if self.layout:
            y, states = y.permute(2, 0, 1, 3), [s.transpose(0, 1) for s in states]
        return (y, *states)

    def _run(self, x: Tensor, h, c, lengths, own: dict[str, Tensor]) -> list[Tensor]:
        """y (T, B, D*H) and the last states (D, B, H)."""
        steps, batch, inputs = x.shape
        hidden, lstm = own["weight_hh_l0"].size(1), "initial_c" in _INPUTS[self.op]
        if lengths is not None:
            lengths = lengths.to("cpu", torch.int64)
            if bool((lengths == steps).all()):
                lengths = None
        h = x.new_zeros(self.directions, batch, hidden) if h is None else h
        if lstm:
            c = x.new_zeros(self.directions, batch, hidden) if c is None else c
        flip = self.direction == "reverse"
        if flip:
            x = _reversed(x, lengths)
        if self._plain():
            variant = PLAIN._replace(
                peephole="weight_peephole_l0" in own, coupled=self.coupled, reset_after=self.reset_after
            )
            sizes = inputs, hidden, 0
            layout = self.directions == 2, False, "gates", "auto"
            bias, variant = "bias_ih_l0" in own, None if variant == PLAIN else variant
            stack = Stack(self.op, self._cell(), *sizes, bias, 1, 0.0, self.training, *layout, variant)
            rows = None if lengths is None else Rows(lengths=lengths)
            y, *states = run(stack, x, (h, c) if lstm else h, list(own.values()), rows)
            states = [s for s in states if s is not None]
        else:
            y, *states = self._loop(x, h, c, lengths, own)
        return [_reversed(y, lengths) if flip else y, *states]

    def _plain(self) -> bool:
        """Whether the kernels have all that the node asks for."""
        if self.clip is not None:
            return False
        if len(_DEFAULTS[self.op]) == 1:
            return len(set(self.activations)) == 1 and self.activations[0] != "sigmoid"
        return self.activations == _DEFAULTS[self.op] * self.directions

    def _loop(self, x: Tensor, h0: Tensor, c0, lengths, own: dict[str, Tensor]) -> list[Tensor]:
        """The layer in plain torch, with any activations and clip."""
        each = len(_DEFAULTS[self.op])
        outputs, last_h, last_c = [], [], []
        for d in range(self.directions):
            suffix = "_l0_reverse" if d else "_l0"
            w = {k.removesuffix(suffix): v for k, v in own.items() if k.endswith(suffix)}
            functions = [self._clipped(a) for a in self.activations[d * each : (d + 1) * each]]
            h, c = h0[d], None if c0 is None else c0[d]
            xs = _reversed(x, lengths) if d else x
            ys = []
            for t, gx in enumerate(nn.functional.linear(xs, w["weight_ih"], w.get("bias_ih")).unbind(0)):
                new_h, new_c = self._step(gx, h, c, w, functions)
                if lengths is not None:
                    on = (t < lengths).unsqueeze(1).to(x.device)
                    ys.append(new_h.masked_fill(~on, 0))
                    h = torch.where(on, new_h, h)
                    c = None if c is None else torch.where(on, new_c, c)
                else:
                    ys.append(new_h)
                    h, c = new_h, new_c
            y = torch.stack(ys)
            outputs.append(_reversed(y, lengths) if d else y)
            last_h.append(h)
            last_c.append(c)
        states = [torch.stack(last_h)] + ([] if c0 is None else [torch.stack(last_c)])
        return [torch.cat(outputs, -1), *states]

    def _clipped(self, activation: str) -> Callable[[Tensor], Tensor]:
        function, clip = _ACTIVATIONS[activation], self.clip
        return function if clip is None else lambda a: function(a.clamp(-clip, clip))

    def _step(
        self, gx: Tensor, h: Tensor, c, w: dict[str, Tensor], functions
    ) -> tuple[Tensor, Tensor | None]:
        gh = nn.functional.linear(h, w["weight_hh"], w.get("bias_hh"))
        if len(functions) == 1:
            return functions[0](gx + gh), None
        if len(functions) == 2:
            f, g = functions
            (x_r, x_z, x_n), (h_r, h_z, h_n) = gx.chunk(3, -1), gh.chunk(3, -1)
            r, z = f(x_r + h_r), f(x_z + h_z)
            if self.reset_after:
                n = g(x_n + r * h_n)
            else:
                own = [None if w.get(k) is None else w[k].chunk(3)[2] for k in ("weight_hh", "bias_hh")]
                n = g(x_n + nn.functional.linear(r * h, *own))
            return (1 - z) * n + z * h, None
        sigma, tanh, out = functions
        i, f, g, o = (gx + gh).chunk(4, -1)
        p_i, p_f, p_o = w["weight_peephole"].chunk(3) if "weight_peephole" in w else (0, 0, 0)
        i = sigma(i + p_i * c)
        f = 1 - i if self.coupled else sigma(f + p_f * c)
        c = f * c + i * tanh(g)
        # ONNX Runtime clips what goes into the gates alone.
        shown = _ACTIVATIONS[self.activations[2]](c) if self.clip is not None else out(c)
        return sigma(o + p_o * c) * shown, c

    def extra_repr(self) -> str:
        text = f"{self.op}, direction={self.direction}, inputs=({', '.join(self.arguments)})"
        for name in ("layout", "clip", "coupled"):
            if getattr(self, name):
                text += f", {name}={getattr(self, name)}"
        return text


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, .) with each row's own steps in the reverse order."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.size(0)).unsqueeze(1)
    place = torch.where(steps < lengths, lengths - 1 - steps, steps).to(x.device)
    return x.gather(0, place.unsqueeze(-1).expand_as(x))


def _attributes(node) -> dict:
    """A node's attributes by name, as Python's values."""
    if node.op_type not in _INPUTS:
        raise ValueError(f"from_onnx: expected an LSTM, GRU or RNN node, got {node.op_type}")
    found = {}
    for attribute in node.attribute:
        kind = attribute.type  # AttributeProto's numbers: 1 f, 2 i, 3 s, 6 floats, 7 ints, 8 strings
        value = {1: attribute.f, 2: attribute.i, 3: attribute.s, 6: list(attribute.floats)}.get(kind)
        value = {7: list(attribute.ints), 8: list(attribute.strings)}.get(kind, value)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, list):
            value = [v.decode() if isinstance(v, bytes) else v for v in value]
        found[attribute.name] = value
    return found


def _find(source, name: str | None):
    """The node, and the tensors by name that the model holds."""
    kind = type(source).__name__
    if kind == "NodeProto":
        return source, {}
    if isinstance(source, (str, Path, bytes)):
        import onnx

        source = onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load(str(source))
        kind = "ModelProto"
    if kind not in ("ModelProto", "GraphProto"):
        raise TypeError(
            f"from_onnx: expected a node, a model or the path of a file, got {_checks.kind(source)}"
        )
    import onnx

    graph = source.graph if kind == "ModelProto" else source
    nodes = [node for node in graph.node if node.op_type in _INPUTS]
    chosen = [n for n in nodes if name is None or name == n.name or name in n.output]
    if len(chosen) != 1:
        there = ", ".join(f"{n.op_type} {n.name or n.output[0]!r}" for n in nodes) or "none"
        raise ValueError(f"from_onnx: expected one LSTM, GRU or RNN node; name one. There are: {there}")
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
    wanted = {i: constants[i] for i in chosen[0].input if i in constants}
    return chosen[0], {k: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for k, t in wanted.items()}
