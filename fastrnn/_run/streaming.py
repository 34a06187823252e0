"""Inference a step or a chunk at a time, with weights that were packed once."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from .._cells import RNN
from .._ops import library, torch_state
from .._ops.torch_state import autocasting
from .._plan import route
from .rnn import Stack, run
from .scan import hooked

__all__ = ["Streamer"]


class _Taken(NamedTuple):
    """One set of a layer's weights and options.

    weights: of each layer packed for the kernels where ``packed``, else copies of the layer's own, flat;
        those themselves where ``live``, to be read anew at every call.
    sources: where the layer keeps what its weights come from, see ``_sources``.
    """

    stack: Stack
    batch_first: bool
    dtype: torch.dtype
    weights: list[Tensor]
    packed: bool
    live: bool
    sources: list[tuple[dict, str, Tensor, int | None, int]]


class Streamer:
    """Runs a recurrent layer a step or a chunk at a time, on weights packed once: ``layer.streamer()``.

    A single step of a few rows takes about as long as reading the weights. Packed in the order in which the
    kernels read them, and prepared outside of the loop, they are read faster (README has the figures)::

        stream = lstm.streamer()
        state = None
        for x in source:  # (B, I) or (I,)
            y, state = stream.step(x, state)

    **Weights.** A streamer computes with the weights that the layer had when the streamer was made, until
    ``refresh()`` takes them anew: every result is that of this one set of weights. It keeps copies of its
    own, so nothing that happens to the layer can reach them. Where a layer's weights are seen to have
    changed, a call raises RuntimeError in place of a result from the old ones: in-place changes (an
    optimiser's step, ``load_state_dict``), replaced parameters, ``layer.to(...)``, ``.data = ...``. Torch
    does not count what is written into ``.data``, by NumPy or by another process, and to look at every weight
    would cost as much as the step itself: after such a change the streamer goes on with the weights it has,
    until ``refresh()``, and so does a compiled one after any change. ``layer.step()`` reads the layer's
    weights at every call instead, and always follows them.

    So does a streamer of a layer of which a weight was made under ``torch.inference_mode``, in place of the
    above: torch counts no changes of such tensors. It packs nothing, gains little over ``layer.step()``, and
    answers from the layer's weights as they are at each call. ``copy.deepcopy(layer)`` outside of that mode
    has ordinary weights, which are packed.

    **Gradients.** A streamer has none, and its results require none; it refuses inputs that require some
    (while gradients are enabled), and torch.func's transforms. ``layer.step()`` has them. Dropout is off, and
    autocast has no effect: inputs have the dtype of the weights.

    **Where.** On the CPU, where weights are packed for the instruction set in use, in float32 (bfloat16 stays
    bfloat16 where the CPU multiplies it). On a GPU and for dtypes without kernels it holds plain copies of
    the weights and runs the layer's ordinary kernels on them: the results are the same, and no faster.

    Calls may come from several threads at a time; each sequence has its own state, which is the caller's.
    ``copy.deepcopy`` and pickle take the layer with them, and pack its weights again.

    Args:
        layer: a fastrnn.LSTM, GRU or RNN in one direction, without hooks (which would not run; old-style
            weight_norm is one).

    Raises:
        TypeError: anything else than such a layer; ``fastrnn.SRU.step()`` needs no streamer.
        RuntimeError: a layer in two directions, one with hooks, or one whose sizes do not fit together.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        if not hasattr(layer, "streamer"):  # its class imports this module
            raise TypeError(
                f"Streamer: layer should be a fastrnn.LSTM, GRU or RNN, got {_checks.kind(layer)}; "
                "fastrnn.convert() makes one of torch.nn's"
            )
        self.layer = layer
        self.refresh()

    def refresh(self) -> None:
        """Take the layer's weights, and its options, as they are now."""
        layer = self.layer
        if layer.bidirectional:
            raise RuntimeError(
                f"{layer._name}: a streamer needs a layer in one direction, got bidirectional=True: the "
                "reverse direction begins at the end of the sequence"
            )
        if hooked(layer):
            raise RuntimeError(f"{layer._name}: a streamer would not run the layer's hooks; use layer.step()")
        # Before they are read: a change meanwhile then shows at the next call.
        sources = _sources(layer)
        # Of those made under inference_mode torch counts no changes. To look at every byte for one costs a
        # read of the weights, and so more than what packing them gains.
        live = any(version is None for *_, version, _ in sources)
        with torch.no_grad():
            weights = [w.detach() for w in layer._live_weights()]
            stack = layer._stack()._replace(training=False, batch_first=False)
            dtype = weights[0].dtype
            packs = (
                stack.backend in ("auto", "fused")
                and all(w.is_cpu for w in weights)
                and route.supported(weights[0])
                and stack.variant is None
            )
            if packs and live:
                packs = False
                warnings.warn(
                    f"{stack.name}: weights made under torch.inference_mode are not packed for streaming, as "
                    "torch counts no changes of them; copy.deepcopy(layer) outside of it makes ordinary ones",
                    stacklevel=4,
                )
            if packs:
                n = len(weights) // stack.num_layers
                layers = [weights[k * n : (k + 1) * n] for k in range(stack.num_layers)]
                weights = [library.pack(own, stack.cell, stack.bias) for own in layers]
            elif not live:
                weights = [w.clone() for w in weights]
        # One assignment, so that a call on another thread has all of the old or all of the new.
        self._taken = _Taken(stack, layer.batch_first, dtype, weights, packs, live, sources)

    def step(self, input: Tensor, hx=None) -> tuple:
        """One step.

        Args:
            input: (B, I), or (I,) for a single sequence.
            hx: the state as ``layer.forward`` takes and returns it: h (L, B, H), for an LSTM (h, c) with h
                (L, B, P); without B for a single sequence. Zeros by default.

        Returns:
            output (B, P), or (P,), and the new state.

        Raises:
            ValueError, RuntimeError: arguments that do not fit, as in ``layer.forward``; weights that have
                changed; an input that requires a gradient.
        """
        taken = self._checked()
        dims = _checks.tensor(taken.stack.name, "input", input).dim()
        if dims == 2:
            return _run(taken, input, hx)
        if dims != 1:
            raise ValueError(
                f"{taken.stack.name}: Expected the input of a step to be 1D or 2D, got {dims}D instead"
            )
        return _run_unbatched(taken, input.unsqueeze(0), hx)

    def __call__(self, input: Tensor, hx=None) -> tuple:
        """A chunk of steps: input (T, B, I), (B, T, I) if the layer is ``batch_first``, or (T, I); hx,
        results and errors as in :meth:`step`, the output laid out like the input."""
        taken = self._checked()
        dims = _checks.tensor(taken.stack.name, "input", input).dim()
        if dims not in (2, 3):
            raise ValueError(f"{taken.stack.name}: Expected input to be 2D or 3D, got {dims}D instead")
        if dims == 2:
            return _run_unbatched(taken, input.unsqueeze(1), hx)
        if not taken.batch_first:
            return _run(taken, input, hx)
        y, state = _run(taken, input.transpose(0, 1), hx)
        return y.transpose(0, 1), state

    def _checked(self) -> _Taken:
        """What was taken, once the layer is seen to be as it was."""
        taken = self._taken
        if not torch_state.compiling():  # which would make every version a guard
            for holder, name, tensor, version, address in taken.sources:
                if (
                    holder.get(name) is not tensor
                    or tensor.data_ptr() != address
                    or (version is not None and tensor._version != version)
                ):
                    raise RuntimeError(
                        f"{taken.stack.name}: {name} has changed since the streamer took the weights; "
                        "call refresh() to take the new ones"
                    )
            if taken.live:
                with torch.no_grad():  # a parametrization may compute them
                    return taken._replace(weights=self.layer._live_weights())
        return taken

    def __getstate__(self) -> dict:
        return {"layer": self.layer}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __repr__(self) -> str:
        return f"Streamer({self.layer!r})"


def _run_unbatched(taken: _Taken, x: Tensor, hx) -> tuple:
    """x (1, I) for a step or (T, 1, I), and hx without B."""
    stack = taken.stack
    if hx is not None:
        h, c = _checks.pair(stack.name, hx) if RNN[stack.cell].has_cell else (hx, None)
        _checks.hidden_dims(_checks.tensor(stack.name, "hx", h), c, False)
        hx = h.unsqueeze(1) if c is None else (h.unsqueeze(1), c.unsqueeze(1))
    y, state = _run(taken, x, hx)
    squeezed = tuple(s.squeeze(1) for s in state) if RNN[stack.cell].has_cell else state.squeeze(1)
    return y.squeeze(-2), squeezed


def _run(taken: _Taken, x: Tensor, hx) -> tuple:
    """x (B, I) for a step or (T, B, I). These are microseconds that every step pays."""
    stack, lstm, h, c = taken.stack, RNN[taken.stack.cell].has_cell, None, None
    if hx is not None:
        h, c = _checks.pair(stack.name, hx) if lstm else (_checks.tensor(stack.name, "hx", hx), None)
    _refuse_gradients(stack.name, x, h, c)
    if not taken.packed:
        single = x.dim() == 2
        plain = torch.autocast(x.device.type, enabled=False) if autocasting(x) else nullcontext()
        with torch.no_grad(), plain:
            y, h, c = run(stack, x.unsqueeze(0) if single else x, hx, taken.weights)
        return (y.squeeze(0) if single else y), ((h, c) if lstm else h)

    features, rows = x.shape[-1], x.shape[-2]
    if not x.is_cpu:
        _checks.same_kind(x, [("parameter", taken.weights[0])])
    if x.dtype != taken.dtype:
        _checks.input_dtype(x.dtype, taken.dtype)
    if features != stack.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {stack.input_size}, got {features}"
        )
    if h is None:
        h = x.new_zeros((stack.num_layers, rows, stack.proj_size or stack.hidden_size))
        if lstm:
            c = x.new_zeros((stack.num_layers, rows, stack.hidden_size)) if stack.proj_size else h
    else:
        _checks.hidden_dims(h, c, True)
        _checks.hidden_size(stack, h, c, rows)
    y, h, c = library.stream(x, h, c, taken.weights)
    return y, ((h, c) if lstm else h)


def _refuse_gradients(name: str, *tensors: Tensor | None) -> None:
    if torch_state.gradients() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{name}: a streamer has no gradients, got an input or state that requires one; use "
            "layer.step(), or torch.no_grad()"
        )
    if torch_state.transformed():
        raise RuntimeError(
            f"{name}: a streamer cannot run under torch.func's transforms or forward-mode AD; use "
            "layer.step()"
        )


def _sources(layer: nn.RNNBase) -> list[tuple[dict, str, Tensor, int | None, int]]:
    """Every parameter and buffer that the layer's weights come from, those of parametrizations included, and
    weights that are plain attributes, as weight drop makes them: where it is kept, its version (inference
    tensors have none) and its address, which module.to() changes."""
    found = []
    for module in layer.modules():
        plain = {}
        if module is layer:
            plain = {name: None for name in layer._flat_weights_names if name in vars(layer)}
        for holder, names in (
            (module._parameters, module._parameters),
            (module._buffers, module._buffers),
            (vars(module), plain),
        ):
            for name in names:
                tensor = holder[name]
                if tensor is not None:
                    version = None if tensor.is_inference() else tensor._version
                    found.append((holder, name, tensor, version, tensor.data_ptr()))
    return found
