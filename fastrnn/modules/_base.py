"""What LSTM, GRU and RNN share: options of fastrnn's own, the list of weights, packed batches.

The modules subclass ``torch.nn.RNNBase`` and inherit from it what makes a drop-in: constructor, checks,
initialisation, parameter names, ``_flat_weights`` and its upkeep, pickling. What is changed here is what
cuDNN's weight buffers asked of torch and the kernels of this package do not, and the reading of the weights.
"""

from __future__ import annotations

import math
import weakref

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _cells, _checks
from .._cells import PLAIN, WITH_CELL
from .._cells import variant as _variant
from .._checks import tools
from .._ops import torch_state
from .._plan import route
from .._run import quick
from .._run.rnn import Stack, permute, run
from .._run.rows import Rows
from .._run.rows import asked as rows_asked
from .._run.streaming import Streamer
from .._run.torchscript import NoVariants
from . import _keras, _overrides

#: fastrnn's own options and their values.
_OPTIONS = {"save": _checks.SAVE, "backend": _checks.BACKENDS}


def _option(name: str) -> property:
    """One of a variant's options as an attribute. Probabilities may be changed at any time."""

    def get(layer):
        value = getattr(layer.variant, name)
        if name == "zoneout":
            return value[0] if value[0] == value[1] or _cells.NAMES[layer.mode] not in WITH_CELL else value
        return value

    def set(layer, value):
        layer._vary(name, value)

    return property(get, set, doc=f"The option ``{name}`` of the constructor.")


class RecurrentLayer(nn.RNNBase):
    """Base of fastrnn's LSTM, GRU and RNN.

    Two keyword-only arguments come on top of torch's:

    save: "gates" keeps every step's gates for backward, "recompute" computes them again there, which costs
        one forward pass more and saves G*H numbers a row and step. Inference keeps nothing either way.

    backend: what runs the layers.

        - "auto": on the CPU the fused kernels. On a GPU torch's own layers, as "cudnn", unless this very kind
          of device has proven a kernel to be right and faster for such a layer (``fastrnn tune``); where
          torch has none (lengths, reset, every step's states) the fused kernels step by step. Where no
          kernel covers dtype and device (complex numbers; GPUs of other makers, or older than compute
          capability 8.0) torch's own layers, or for what they lack, torch.func's transforms too,
          ``fastrnn.reference``;
        - "fused": the fused kernels, on a GPU those that are proven there and else step by step; RuntimeError
          where none covers the case;
        - "stepwise", "stepwise_graph", "one_cta", "cluster", "grid": on a GPU the fused kernels of one tier
          (a product and a kernel a step; those as one CUDA graph; a whole sequence in one block; in a cluster
          of 4, 8 or 16 blocks, from compute capability 9.0 on; on the whole GPU), RuntimeError where that
          tier cannot take the layer and on the CPU, which has no tiers: nothing stands in for it.
          ``fastrnn.explain`` says what runs, and why;
        - "cudnn": torch's own layers, cuDNN on a GPU and torch's native ones on the CPU, on the same weights;
        - "reference": plain torch, step by step.

    So do the options that make a variant of the cell, whose equations are in docs/variants.md. They can be
    put together; what has no kernel yet runs in plain torch, and ``fastrnn.explain`` says so:

    norm: "layer" for layer normalisation of the input's and of the recurrent part of the gates, and of an
        LSTM's c where h is made of it (Ba et al., 2016). norm_eps: what is added to a variance, 1e-5.

    zoneout: probability that a unit keeps its old state, one number or for an LSTM (p_h, p_c) (Krueger et
        al., 2016). In evaluation the expectation.

    recurrent_dropout: probability, on h_{t-1} before W_hh, in training; one mask a row and direction for the
        whole sequence, scaled by 1/(1-p) (Gal & Ghahramani, 2016).

    weight_dropout: probability, on W_hh, in training; one mask a call (Merity et al., 2018).

    heads: the recurrence falls into so many blocks of units that do not see each other: weight_hh_l{k} is
        (G*H, H/heads).

    peephole (LSTM): i and f see c_{t-1}, o sees c_t (Gers et al., 2002). coupled (LSTM): f = 1 - i (Greff et
        al., 2016); f's rows of the weights are there and not read. forget_bias (LSTM): a number that is added
        to f's part of bias_ih at initialisation.

    reset_after (GRU): False for the reset gate before the recurrent product (Cho et al., 2014).

    Masks come from torch's generator, so that a seed repeats them. Wrong options raise in the constructor.

    On a GPU float32 layers follow the setting that nn.LSTM follows, torch.backends.cudnn.rnn.fp32_precision
    (which torch.backends.cudnn.allow_tf32 sets too): "tf32", torch's default, lets every product round its
    factors to TensorFloat-32, those of the input projection and of the weights' gradients included. torch's
    setting for matrix products, torch.backends.cuda.matmul, says nothing about layers, here as there.
    """

    # Class attributes stand in for instances pickled without them. Not annotated: TorchScript would read the
    # annotations, and knows none that are strings.
    save = "gates"
    backend = "auto"
    #: What the cell does otherwise than torch's. Only those that do something have one of their own.
    variant = PLAIN
    forget_bias = 0.0
    norm, norm_eps, zoneout = _option("norm"), _option("norm_eps"), _option("zoneout")
    recurrent_dropout, weight_dropout = _option("recurrent_dropout"), _option("weight_dropout")
    heads = _option("heads")
    __prepare_scriptable__ = NoVariants()
    __jit_unused_properties__ = (*_variant.OPTIONS, *getattr(nn.RNNBase, "__jit_unused_properties__", ()))
    #: What messages call the layer, whatever a subclass is called.
    _name: str

    def __init__(
        self, mode: str, *args, save: str = "gates", backend: str = "auto", forget_bias: float = 0.0, **kwargs
    ) -> None:
        name = type(self).__name__
        _checks.one_of(name, "save", save, _checks.SAVE)
        _checks.one_of(name, "backend", backend, _checks.BACKENDS)
        options = {option: kwargs.pop(option) for option in _variant.OPTIONS if option in kwargs}
        # Not super(): in fastrnn.compat torch.nn.LSTM comes next, whose arguments have no mode.
        nn.RNNBase.__init__(self, mode, *args, **kwargs)
        self.save = save
        self.backend = backend
        if options:
            self._begin_variant(name, options)
        if forget_bias or not isinstance(forget_bias, (int, float)):
            cell = _cells.NAMES[self.mode]
            self.forget_bias = check_forget_bias(name, cell, self.bias, self.variant, forget_bias)
            self._add_forget_bias()
        self.flatten_parameters()

    @classmethod
    def from_keras(cls, layer_or_weights, **options):
        """A layer with the weights and options of a Keras layer: ``keras.layers.LSTM``, ``GRU`` or
        ``SimpleRNN``, or ``Bidirectional`` around one.

        Args:
            layer_or_weights: the layer, built; or what its get_weights() gives, arrays kernel (I, G*H),
                recurrent kernel (H, G*H) and perhaps bias, (G*H,) or for a GRU with reset_after (2, G*H).
                Twice as many for two directions.
            options: of the constructor, over what the layer says. ``batch_first`` is True, as in Keras,
                unless given. A GRU's ``reset_after`` is read from the layer, or from the bias; of weights
                without one it is True unless given.

        Raises:
            TypeError: neither a layer nor a list. ValueError: arrays of other numbers or sizes; an option
                that
                there is not here: an activation, go_backwards, dropout of the input.
        """
        return _keras.from_keras(cls, cls._name, layer_or_weights, options)

    def _begin_variant(self, name: str, options: dict) -> None:
        """Read the options, and make the parameters that the plain layer has not, or not so."""
        weight = self.weight_ih_l0
        cell, sizes = _cells.NAMES[self.mode], (self.hidden_size, self.proj_size)
        variant = _variant.read(name, cell, *sizes, weight.dtype, **options)
        if variant is PLAIN:
            return
        self.variant = variant
        groups = []
        for names in self._all_weights:
            suffix = names[0].removeprefix("weight_ih")
            inputs = self._parameters[names[0]].size(1)
            found = _variant.parameters(cell, variant, inputs, *sizes, self.bias)
            groups.append([role + suffix for role in found])
            for role, size in found.items():
                whole = self._parameters.get(role + suffix)
                if whole is None:
                    drawn = None
                elif whole.shape != size:  # of heads
                    drawn = whole.detach()
                else:
                    continue
                own = nn.Parameter(weight.new_empty(size))
                initialise(own, role, self._bound(), whole=drawn)
                self.register_parameter(role + suffix, own)
        self._all_weights = groups
        self._flat_weights_names = [one for group in groups for one in group]
        self._init_flat_weights()

    def _vary(self, option: str, value) -> None:
        """Change an option that has no parameters."""
        name, cell = type(self).__name__, _cells.NAMES[self.mode]
        sizes, wanted = (self.hidden_size, self.proj_size), self.variant._asdict() | {option: value}
        variant = _variant.read(name, cell, *sizes, self._flat_weights[0].dtype, **wanted)
        fixed = [o for o in ("norm", "peephole", "heads") if getattr(variant, o) != getattr(self.variant, o)]
        if fixed:
            raise ValueError(
                f"{name}: {fixed[0]} decides about parameters, and cannot be changed after construction"
            )
        if variant is PLAIN:  # as a layer that never was another
            vars(self).pop("variant", None)
        else:
            self.variant = variant

    def _bound(self) -> float:
        return 1 / math.sqrt(self.hidden_size)

    def reset_parameters(self) -> None:
        """torch's, with the variant's parameters after those, and ``forget_bias`` added."""
        if self.variant is PLAIN:
            super().reset_parameters()
        else:
            for name, weight in self.named_parameters():
                role = name.removeprefix("parametrizations.").split(".")[0].rpartition("_l")[0]
                initialise(weight, role, self._bound(), self.variant.heads)
        if self.forget_bias:
            self._add_forget_bias()

    @torch.no_grad()
    def _add_forget_bias(self) -> None:
        size = self.hidden_size
        for name in self._flat_weights_names:
            if name.startswith("bias_ih"):
                getattr(self, name)[size : 2 * size] += self.forget_bias

    def flatten_parameters(self) -> None:
        """Does nothing, except for cuDNN: the kernels read the weights where they are, and need no single
        chunk of memory."""
        if self.backend == "cudnn" or self._on_cudnn():
            super().flatten_parameters()

    def _on_cudnn(self) -> bool:
        """Whether the layer is on a GPU where it will be torch's."""
        weight = self._flat_weights[0] if self._flat_weights else None
        return (
            isinstance(weight, Tensor)
            and weight.is_cuda
            and route.of(weight, self.backend).runner == "native"
        )

    def __setattr__(self, name: str, value) -> None:
        # They may be changed at any time, and a wrong one should not wait for forward() to be noticed.
        if name in _OPTIONS:
            _checks.one_of(type(self).__name__, name, value, _OPTIONS[name])
        elif name in tools.MARKS:
            tools.warn(name, type(self).__name__)
        super().__setattr__(name, value)
        if name in _overrides.NAMES:
            vars(self)["_run"] = self._run_overridden

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        # Asked once a class, so that calls of the others do not have to ask.
        if _overrides.in_class(cls):
            cls._run = cls._run_overridden

    def _live_weights(self) -> list[Tensor]:
        """The weights of this call, flat.

        Mostly they are the parameters, and the list of them at hand. Weight norm, functional_call and others
        put new tensors in their places without telling; then the list is made anew, as torch does. (torch
        reads a parametrized weight several times a call, and so computes it several times; here once.)
        """
        flat, parameters = self._flat_weights, self._parameters
        for name, weight in zip(self._flat_weights_names, flat, strict=True):
            if weight is None or parameters.get(name) is not weight:
                break
        else:
            return flat

        current = [getattr(self, name, None) for name in self._flat_weights_names]
        refs = self._flat_weight_refs
        if torch_state.compiling():
            # Stand-ins for the time of the tracing, not to be kept; within a checkpoint or torch.func's
            # transforms a graph could not even.
            flat = current
        elif len(refs) != len(current) or any(
            w is not None and ref is not None and ref() is not w for w, ref in zip(current, refs, strict=True)
        ):
            self._flat_weights = flat = current
            self._flat_weight_refs = [None if w is None else weakref.ref(w) for w in current]
        for name, weight in zip(self._flat_weights_names, flat, strict=True):
            if not isinstance(weight, Tensor):
                raise TypeError(
                    f"{type(self).__name__}: expected a Tensor as {name}, got {_checks.kind(weight)}; "
                    "was the parameter deleted?"
                )
        return flat

    def _run(self, input: Tensor | PackedSequence, hx, rows: Rows | None = None) -> tuple:
        """Output, h_n and c_n (None unless LSTM) for whatever forward() was given, and the states of every
        step if the rows keep them."""
        if rows is None:
            found = quick.one_layer(self, input, hx)
            if found is not None:
                return found
        stack, weights = self._stack(), self._live_weights()
        if not isinstance(input, PackedSequence):
            return run(stack, input, hx, weights, rows)
        data, batch_sizes, sorted_indices, unsorted_indices = input
        y, h, c = run(stack, data, hx, weights, Rows(batch_sizes, sorted_indices))
        output = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
        return output, permute(h, unsorted_indices), permute(c, unsorted_indices)

    def _run_overridden(self, input: Tensor | PackedSequence, hx, rows: Rows | None = None) -> tuple:
        """_run() of layers that have a check_input() or the like that is not torch.nn's; see _overrides."""
        hx = _overrides.before(self, input, hx)
        stack, weights = self._stack(), self._live_weights()
        states = ()
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, order = input
            y, h, c = run(stack, data, hx, weights, Rows(batch_sizes))
            y = PackedSequence(y, batch_sizes, sorted_indices, order)
        else:
            order = None
            y, h, c, *states = run(stack, input, hx, weights, rows)
        if c is None:
            return y, self.permute_hidden(h, order), None, *states
        return y, *self.permute_hidden((h, c), order), *states

    def _stack(self) -> Stack:
        return Stack(
            self._name,
            _cells.NAMES[self.mode],
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.bias,
            self.num_layers,
            # One layer has no place for dropout, and torch.compile(dynamic=True) compiles twice where it
            # meets a number that is not an integer.
            self.dropout if self.num_layers > 1 else 0.0,
            self.training,
            self.bidirectional,
            self.batch_first,
            self.save,
            self.backend,
            # Not the class's: of the plain cell a compiler then sees no numbers.
            self.variant if "variant" in self.__dict__ else None,
        )

    def step(self, input: Tensor, hx=None) -> tuple:
        """One time step: ``forward()`` on a sequence of one, for loops written by hand.

        Everything forward() does, gradients, hooks and torch.compile included, with the layer's weights as
        they are at this call. Where the weights stay the same over many steps of inference,
        :meth:`streamer` is faster. A sequence taken step by step gives the numbers of one call, to rounding.

        Args:
            input: (B, I), or (I,) for a single sequence; ``batch_first`` makes no difference.
            hx: the state as forward() takes and returns it: h (L, B, H), for an LSTM (h, c) with h (L, B, P);
                without B for a single sequence. Zeros by default.

        Returns:
            output (B, P), or (P,), of the last layer, and the new state.

        Raises:
            ValueError: an input of other dimensions, or of another dtype than the weights.
            RuntimeError: a bidirectional layer; sizes or devices that do not fit.
        """
        if self.bidirectional:
            raise RuntimeError(
                f"{self._name}: step() needs a layer in one direction, got bidirectional=True: the reverse "
                "direction begins at the end of the sequence"
            )
        dims = _checks.tensor(self._name, "input", input).dim()
        if dims not in (1, 2):
            raise ValueError(
                f"{self._name}: Expected the input of a step to be 1D or 2D, got {dims}D instead"
            )
        time = 1 if self.batch_first and dims == 2 else 0
        output, state = self(input.unsqueeze(time), hx)
        return output.squeeze(time), state

    def streamer(self, weights: str = "float32") -> Streamer:
        """This layer for inference a step or a chunk at a time, on weights packed now, once: see
        :class:`fastrnn.Streamer`, which says what becomes of changes to the weights, and what ``weights`` in
        "bfloat16" or "int8" are."""
        return Streamer(self, weights)

    def _rows(self, input, lengths, reset, done, return_all_states: bool) -> Rows | None:
        """The arguments of forward() that only padded batches have, checked; None where there are none."""
        return rows_asked(self._name, input, lengths, reset, done, return_all_states, self.batch_first)

    def extra_repr(self) -> str:
        """torch's, with fastrnn's own options where they are not the default."""
        text = super().extra_repr()
        if self.save != "gates":
            text += f", save={self.save}"
        if self.backend != "auto":
            text += f", backend={self.backend}"
        if self.forget_bias:
            text += f", forget_bias={self.forget_bias}"
        return text + self.variant.text(_cells.NAMES[self.mode] in WITH_CELL)

    def __setstate__(self, state: dict) -> None:
        # Pickles from before torch 1.8 have no proj_size, those from before 1.4 no list of weights, and the
        # oldest a list of them in place of their names.
        state = {"proj_size": 0, **state}
        if "all_weights" in state or not {"_flat_weights", "_all_weights"} <= state.keys():
            state.pop("all_weights", None)
            groups = _weight_names(
                state["num_layers"], state["bidirectional"], state["bias"], state["proj_size"] > 0
            )
            names = [name for group in groups for name in group]
            parameters = state["_parameters"]
            state["_all_weights"], state["_flat_weights_names"] = groups, names
            state["_flat_weights"] = [parameters.get(name, state.get(name)) for name in names]
        super().__setstate__(state)


@torch.no_grad()
def initialise(weight: Tensor, role: str, bound: float, heads: int = 1, whole: Tensor | None = None) -> None:
    """A parameter's first values. whole: of heads, the plain layer's weights, if they were drawn already: a
    layer with heads takes as many random numbers as one without, so that the others are the same."""
    if role in _variant.INITIAL:
        weight.fill_(_variant.INITIAL[role])
    elif whole is not None or (role == "weight_hh" and heads > 1):
        if whole is None:
            whole = weight.new_empty(weight.size(0), weight.size(1) * heads).uniform_(-bound, bound)
        weight.copy_(whole[:, : weight.size(1)])
    else:
        nn.init.uniform_(weight, -bound, bound)


def check_forget_bias(name: str, cell: str, bias: bool, variant: _variant.Variant, value: object) -> float:
    """The option of that name, checked."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: forget_bias should be a number, got {_checks.kind(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: forget_bias should be a finite number, got {value}")
    if cell not in WITH_CELL:
        raise ValueError(f"{name}: forget_bias is an option of the LSTM, got forget_bias={value}")
    if not bias:
        raise ValueError(f"{name}: forget_bias needs bias=True, got forget_bias={value} and bias=False")
    if variant.coupled:
        raise ValueError(f"{name}: coupled=True has no forget gate of its own, got forget_bias={value}")
    return value


def _weight_names(num_layers: int, bidirectional: bool, bias: bool, projected: bool) -> list[list[str]]:
    """Names of the parameters, one list for each layer and direction."""
    roles = [
        "weight_ih",
        "weight_hh",
        *(["bias_ih", "bias_hh"] if bias else []),
        *(["weight_hr"] * projected),
    ]
    suffixes = ("", "_reverse") if bidirectional else ("",)
    return [[f"{role}_l{k}{suffix}" for role in roles] for k in range(num_layers) for suffix in suffixes]
