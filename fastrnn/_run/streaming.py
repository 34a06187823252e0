"""Inference a step or a chunk at a time, with weights that were packed once."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .. import _checks
from .._cells import RNN
from .._ops import library, quantized, streams, torch_state
from .._plan import route
from . import active as some
from .scan import hooked
from .taken import Taken, refuse_gradients, run_rows, run_unbatched, sources_of

__all__ = ["Streamer"]


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

    **Low precision.** A step of few rows takes the time to read the weights, so smaller weights are speed.
    ``weights="bfloat16"`` rounds them to half the bytes, ``weights="int8"`` to a quarter: symmetric, one
    scale for each row of a weight; the input and h are quantized at every step too, one scale for each row of
    the batch. States, biases and whatever the cell computes stay float32, as do inputs and results.
    docs/deploying.md has what it gains and what it costs in accuracy. :func:`fastrnn.quantize` does the same
    for whole models.

    **In place.** ``step_(x, out=y)`` writes into a tensor that is there and keeps the state, in place,
    itself: no memory is allocated.

    **Batches of streams.** ``step(x, state, active=mask)`` runs the rows of a batch that have input, at the
    cost of those, and writes their states where the batch keeps them.

    **Gradients.** A streamer has none, and its results require none; it refuses inputs that require some
    (while gradients are enabled), and torch.func's transforms. ``layer.step()`` has them. Dropout is off, and
    autocast has no effect: inputs have the dtype of the weights.

    **Where.** On the CPU, where weights are packed for the instruction set in use, in float32 (bfloat16 stays
    bfloat16 where the CPU multiplies it). On a GPU and for dtypes without kernels it holds plain copies of
    the weights and runs the layer's ordinary kernels on them: the results are the same, and no faster.

    Calls may come from several threads at a time; each sequence has its own state, which is the caller's (all
    but that of ``step_`` without one). ``copy.deepcopy`` and pickle take the layer with them, and pack its
    weights again.

    Args:
        layer: a fastrnn.LSTM, GRU or RNN in one direction, without hooks (which would not run; old-style
            weight_norm is one).
        weights: "float32" (the layer's own dtype, whichever that is), "bfloat16" or "int8".

    Raises:
        TypeError: anything else than such a layer; ``fastrnn.SRU.step()`` needs no streamer.
        ValueError: other ``weights``; weights that cannot be quantized, since they are not finite or their
            scale overflows (the error names the weight).
        RuntimeError: a layer in two directions, one with hooks, or one whose sizes do not fit together;
            ``weights`` of low precision for a layer that is not float32 on the CPU, or a variant.
    """

    #: Of pickles from before there were others.
    weights = "float32"

    def __init__(self, layer: nn.RNNBase, weights: str = "float32") -> None:
        if not hasattr(layer, "streamer"):  # its class imports this module
            raise TypeError(
                f"Streamer: layer should be a fastrnn.LSTM, GRU or RNN, got {_checks.kind(layer)}; "
                "fastrnn.convert() makes one of torch.nn's"
            )
        _checks.one_of("Streamer", "weights", weights, quantized.WEIGHTS)
        self.layer = layer
        self.weights = weights
        self._state = None
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
        sources = sources_of(layer)
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
            if self.weights != "float32":
                missing = quantized.refusal(layer)
                if missing or live:
                    raise RuntimeError(
                        f"{stack.name}: weights={self.weights!r} needs "
                        f"{missing or 'weights that were not made under torch.inference_mode'}"
                    )
            if packs and live:
                packs = False
                warnings.warn(
                    f"{stack.name}: weights made under torch.inference_mode are not packed for streaming, as "
                    "torch counts no changes of them; copy.deepcopy(layer) outside of it makes ordinary ones",
                    stacklevel=4,
                )
            errors = []
            if packs:
                n = len(weights) // stack.num_layers
                layers = [weights[k * n : (k + 1) * n] for k in range(stack.num_layers)]
                names = layer._all_weights
                if self.weights == "float32":
                    weights = [library.pack(own, stack.cell, stack.bias) for own in layers]
                else:
                    made = [
                        quantized.pack(stack.name, stack.cell, own_names, own, stack.bias, self.weights)
                        for own_names, own in zip(names, layers, strict=True)
                    ]
                    weights, errors = (list(part) for part in zip(*made, strict=True))
            elif not live:
                weights = [w.clone() for w in weights]
        # One assignment, so that a call on another thread has all of the old or all of the new.
        quick = streams.Quick(stack, weights, dtype, layer.batch_first, sources) if packs else None
        self._taken = Taken(stack, layer.batch_first, dtype, weights, packs, live, sources, quick, errors)

    def step(self, input: Tensor, hx=None, *, active: Tensor | None = None) -> tuple:
        """One step.

        Args:
            input: (B, I), or (I,) for a single sequence.
            hx: the state as ``layer.forward`` takes and returns it: h (L, B, H), for an LSTM (h, c) with h
                (L, B, P); without B for a single sequence. Zeros by default.
            active: of a batch of streams, those that have input: a mask (B,), bool, or the numbers (n,) of
                distinct rows, int64. Only they are computed. ``hx`` has the states of all of them and is
                written **in place**, in the rows that are active; the others stay as they are, bit for bit.
                ``input`` has rows for all streams, (B, I), of which the others are not read, or for the
                active ones alone, (n, I): in ascending order with a mask, in the order of the numbers with
                numbers. Numbers in another than ascending order go with the latter alone. While
                torch.compile traces, numbers are not checked, and a mask with an input of all rows costs
                them all.

        Returns:
            output (B, P), or (P,), and the new state. With ``active`` an output with the rows of ``input``,
            zeros in those that are not active, and ``hx`` itself.

        Raises:
            ValueError, RuntimeError: arguments that do not fit, as in ``layer.forward``; weights that have
                changed; an input that requires a gradient.
        """
        if active is not None:
            if hx is None:
                hx = self._zeros(input, active)
            return self._some(input, hx, active, None), hx
        if not torch_state.compiling():
            quick = self._taken.quick
            if quick is not None and quick.step is not None:
                found = quick.step(input, hx)
                if found is not None:
                    return found
        return self._long_step(input, hx)

    def _long_step(self, input: Tensor, hx) -> tuple:
        taken = self._checked()
        dims = _checks.tensor(taken.stack.name, "input", input).dim()
        if dims == 2:
            return run_rows(taken, input, hx)
        if dims != 1:
            raise ValueError(
                f"{taken.stack.name}: Expected the input of a step to be 1D or 2D, got {dims}D instead"
            )
        return run_unbatched(taken, input.unsqueeze(0), hx)

    def __call__(self, input: Tensor, hx=None) -> tuple:
        """A chunk of steps: input (T, B, I), (B, T, I) if the layer is ``batch_first``, or (T, I); hx,
        results and errors as in :meth:`step`, the output laid out like the input."""
        if not torch_state.compiling():
            quick = self._taken.quick
            if quick is not None and quick.chunk is not None:
                found = quick.chunk(input, hx)
                if found is not None:
                    return found
        taken = self._checked()
        dims = _checks.tensor(taken.stack.name, "input", input).dim()
        if dims not in (2, 3):
            raise ValueError(f"{taken.stack.name}: Expected input to be 2D or 3D, got {dims}D instead")
        if dims == 2:
            return run_unbatched(taken, input.unsqueeze(1), hx)
        if not taken.batch_first:
            return run_rows(taken, input, hx)
        y, state = run_rows(taken, input.transpose(0, 1), hx)
        return y.transpose(0, 1), state

    def _some(self, input: Tensor, hx, active: Tensor, out: Tensor | None) -> Tensor:
        """A step of the active rows into hx, and the output, ``out`` where it is given."""
        quick = self._taken.quick
        if quick is not None and quick.step_active is not None and not torch_state.compiling():
            found = quick.step_active(input, hx, active, out)
            if found is not None:
                return found if out is None else out
        taken = self._checked()
        stack, lstm = taken.stack, RNN[taken.stack.cell].has_cell
        name, x = stack.name, _checks.tensor(stack.name, "input", input)
        h, c = _checks.pair(name, hx) if lstm else (_checks.tensor(name, "hx", hx), None)
        refuse_gradients(name, x, h, c)
        _checks.hidden_dims(h, c, True)
        _checks.hidden_size(stack, h, c, h.size(1))
        if not torch_state.compiling():
            some.writable(name, h, c, out, None)

        def of_rows(x, h, c):
            y, state = run_rows(taken, x, (h, c) if lstm else h)
            return (y, *state) if lstm else (y, state)

        return some.step(name, of_rows, x, h, c, active, out)

    def step_(self, input: Tensor, hx=None, *, out=None, active: Tensor | None = None):
        """One step in place: nothing is allocated where all arguments are ordinary.

        Args:
            input: (B, I), or (I,) for a single sequence.
            hx: the state, as :meth:`step` returns it; it becomes the new one. By default the streamer's own,
                :attr:`state`: zeros at first and after :meth:`reset`. Only one sequence (or batch of them) at
                a time can have that.
            out: where the output goes, (B, P) or (P,), contiguous; or a whole result of :meth:`step`, output
                and state, both of which are then written.
            active: as in :meth:`step`; ``out`` has the rows of ``input``, and those that are not active stay
                as they are.

        Returns:
            ``out``.

        Raises:
            TypeError: no ``out``. ValueError, RuntimeError: as in :meth:`step`; an ``out`` that does not fit;
                an input whose rows are not those of the streamer's own state.
        """
        if type(out) is tuple and len(out) == 2 and hx is None:
            y, hx = out
        else:
            y = out
        first = False
        if hx is None:
            hx = self._state
            first = hx is None
            if first:
                hx = self._zeros(input, active)
        if active is not None:
            self._some(input, hx, active, self._output(y))
        else:
            quick = self._taken.quick
            if (
                quick is None
                or quick.step_ is None
                or torch_state.compiling()
                or not quick.step_(input, hx, y)
            ):
                self._long_step_in_place(input, hx, y)
        if first:  # and only once it has run: a call that fails leaves no state
            self._state = hx
        return out

    def _long_step_in_place(self, input: Tensor, hx, out) -> None:
        taken = self._checked()
        name, lstm = taken.stack.name, RNN[taken.stack.cell].has_cell
        if hx is self._state:
            rows = (hx[0] if lstm else hx).shape[1:-1]
            if rows != _checks.tensor(name, "input", input).shape[:-1]:
                raise ValueError(
                    f"{name}: expected an input of the streamer's own state, {tuple(rows)} rows, got "
                    f"shape {tuple(input.shape)}; reset() begins anew"
                )
        self._output(out)
        y, state = self._long_step(input, hx)
        if not torch_state.compiling():
            h, c = hx if lstm else (hx, None)
            some.writable(name, h, c, out, h[-1])
        if (out.shape, out.dtype, out.device) != (y.shape, y.dtype, y.device):
            raise ValueError(
                f"{name}: out: expected shape {tuple(y.shape)}, {y.dtype} on {y.device}, got "
                f"{tuple(out.shape)}, {out.dtype} on {out.device}"
            )
        with torch.no_grad():
            out.copy_(y)
            for old, new in zip(*((hx, state) if lstm else ((hx,), (state,))), strict=True):
                old.copy_(new)

    def _output(self, out: Tensor | None) -> Tensor:
        name = self._taken.stack.name
        if out is None:
            raise TypeError(f"{name}: step_() needs out=, a tensor for the output; step() makes one")
        return _checks.tensor(name, "out", out)

    def _zeros(self, input: Tensor, active: Tensor | None):
        stack = self._taken.stack
        rows = _checks.tensor(stack.name, "input", input).shape[:-1]
        if active is not None:
            rows = (some.streams_of(stack.name, active, input),)
        if len(rows) > 1:
            raise ValueError(
                f"{stack.name}: Expected the input of a step to be 1D or 2D, got {len(rows) + 1}D instead"
            )
        with torch.inference_mode(False):  # tensors of that mode could not be written to outside of it
            h = input.new_zeros((stack.num_layers, *rows, stack.proj_size or stack.hidden_size))
            if not RNN[stack.cell].has_cell:
                return h
            return h, input.new_zeros((stack.num_layers, *rows, stack.hidden_size))

    def explained(self) -> tuple:
        """What fastrnn.explain asks: the layer, how its weights are stored, and what that changed of each
        layer's."""
        return self.layer, self.weights, self._taken.errors

    @property
    def state(self):
        """The state of :meth:`step_` without one: None before the first step, and after :meth:`reset`."""
        return self._state

    def reset(self) -> None:
        """Begin a new sequence: forget the state of :meth:`step_` without one."""
        self._state = None

    def _checked(self) -> Taken:
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
        return {"layer": self.layer} | ({} if self.weights == "float32" else {"weights": self.weights})

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __repr__(self) -> str:
        weights = "" if self.weights == "float32" else f", weights={self.weights!r}"
        return f"Streamer({self.layer!r}{weights})"
