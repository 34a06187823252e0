"""The stack of SRU layers, and what SRU++ shares with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._checks import scan as scan_checks
from .._ops.torch_state import autocasting
from .._run import scan as run_scan
from .._run import symbolic
from .._run.rows import Rows, asked
from .._run.torchscript import scripts_as
from . import _script_sru
from .sru_cell import SRUCell, one_name

__all__ = ["SRU"]


def per_layer(name: str, argument: str, value: object, num_layers: int) -> list:
    """One value a layer, from a sequence of them."""
    if not isinstance(value, Iterable):
        raise TypeError(
            f"{name}: {argument} should be one for all layers or a list, got {_checks.kind(value)}"
        )
    values = list(value)
    if len(values) != num_layers:
        raise ValueError(f"{name}: {argument} should have one entry a layer, {num_layers}, got {len(values)}")
    return values


class SRU(nn.Module):
    r"""SRU(input_size, hidden_size, num_layers=2, dropout=0.0, rnn_dropout=0.0, bidirectional=False,
    projection_size=0, highway_bias=0.0, layer_norm=False, normalize_after=False, transform_module=None,
    has_skip_term=True, rescale=False, use_tanh=False, v1=False, nn_rnn_compatible_return=False,
    proj_input_to_hidden_first=False, amp_recurrence_fp16=True, weight_c_init=1.0, *, custom_m=None,
    batch_first=False, init="3.0", backend="auto", device=None, dtype=None)

    A multi-layer simple recurrent unit (Lei et al., "Simple Recurrent Units for Highly Parallelizable
    Recurrence", 2018), a drop-in for ``sru.SRU`` of the ``sru`` package: arguments, state_dict, initial
    values and numbers are those of its version 3.0, and checkpoints of 2.6 load too. One matrix product over
    the whole sequence gives u; the recurrence is elementwise:

    .. math::
        f_t &= \sigma(u_{1,t} + v_f \odot c_{t-1} + b_f) \\
        r_t &= \sigma(u_{2,t} + v_r \odot c_{t-1} + b_r) \\
        c_t &= f_t \odot c_{t-1} + (1 - f_t) \odot u_{0,t} \\
        h_t &= r_t \odot m \odot (g(c_t) - X_t) + X_t

    where X is the input times ``scale_x``, a fourth part of u where the input has not O = D*H features, or 0
    without skip term; g is the identity, or tanh; m a dropout mask, the same at every step.

    Args:
        input_size: I, features of the input. hidden_size: H, features of the state in each direction.
        num_layers: on top of each other.
        dropout: probability, on g(c) - X of every layer but the last. rnn_dropout: on the input of each
            layer's product, the same at every step. Both in training mode.
        bidirectional: D = 2 directions, their outputs side by side.
        projection_size: P, features between two matrices in place of the one; 0 for none; or one a layer.
        highway_bias: initial b_r. rescale: X times sqrt(1 + 2 exp(highway_bias)), where X is the input.
        layer_norm: of the product's input, or with ``normalize_after`` of h.
        transform_module: computes U in place of the linear map, from (L, B, I) to (L, B, O*K), K = 3 or 4; it
            is copied for each layer, or a list has one for each. It may return (U, V), V (L, B, O*2) being
            added to ``weight_c``. ``custom_m`` is the argument's name in sru 2.6. A plain function will do,
            whose parameters are then not the layer's.
        has_skip_term: whether there is an X. use_tanh: g. v1: v = 0, and stays 0.
        nn_rnn_compatible_return: c as (layers*D, B, H), torch.nn's shape, in place of (layers, B, O).
        proj_input_to_hidden_first: a linear map to O features before the first layer.
        amp_recurrence_fp16: whether the scan keeps half types under autocast; else it runs in float32.
        weight_c_init: v is drawn from plus or minus this; None for sru 2.6's recipe.
        batch_first: input, mask_pad and output as (B, L, .); c keeps its shape.
        init: "3.0" or "2.6", whose initial values reset_parameters() draws.
        backend: "auto", "fused" or "reference", as in ``fastrnn.LSTM``. device, dtype: of the parameters.

    Parameters, for layer i: ``rnn_lst.{i}.`` and those of :class:`SRUCell`; ``input_to_hidden.weight`` (O, I)
    with ``proj_input_to_hidden_first`` where I is not O.
    """

    #: For fastrnn.explain: of which family of recurrences its layers are.
    _family = "scan"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        rnn_dropout: float = 0.0,
        bidirectional: bool = False,
        projection_size: int | Sequence[int] = 0,
        highway_bias: float = 0.0,
        layer_norm: bool = False,
        normalize_after: bool = False,
        transform_module: nn.Module | Callable | Sequence[nn.Module | Callable] | None = None,
        has_skip_term: bool = True,
        rescale: bool = False,
        use_tanh: bool = False,
        v1: bool = False,
        nn_rnn_compatible_return: bool = False,
        proj_input_to_hidden_first: bool = False,
        amp_recurrence_fp16: bool = True,
        weight_c_init: float | None = 1.0,
        *,
        custom_m: nn.Module | Callable | Sequence[nn.Module | Callable] | None = None,
        batch_first: bool = False,
        init: str = "3.0",
        backend: str = "auto",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        transform_module = one_name(name, transform_module=transform_module, custom_m=custom_m)
        self.input_size = scan_checks.size(name, "input_size", input_size)
        self.hidden_size = scan_checks.size(name, "hidden_size", hidden_size)
        self.output_size = hidden_size * 2 if bidirectional else hidden_size
        self.num_layers = scan_checks.size(name, "num_layers", num_layers)
        self.dropout = dropout
        self.rnn_dropout = rnn_dropout
        self.projection_size = projection_size
        self.bidirectional = bool(bidirectional)
        self.use_layer_norm = layer_norm
        self.has_skip_term = has_skip_term
        self.num_directions = 2 if bidirectional else 1
        self.nn_rnn_compatible_return = nn_rnn_compatible_return
        self.amp_recurrence_fp16 = amp_recurrence_fp16
        self.batch_first = batch_first
        projections = [projection_size] * num_layers
        if not isinstance(projection_size, int):
            projections = per_layer(name, "projection_size", projection_size, num_layers)
        if isinstance(transform_module, (list, tuple, nn.ModuleList)):
            transforms = per_layer(name, "transform_module", transform_module, num_layers)
        else:
            transforms = [transform_module] * num_layers

        self.input_to_hidden: nn.Module | None = None
        if proj_input_to_hidden_first and input_size != self.output_size:
            first_size = self.output_size
            self.input_to_hidden = nn.Linear(
                input_size, self.output_size, bias=False, device=device, dtype=dtype
            )
        else:
            first_size = input_size
        self.rnn_lst = nn.ModuleList()
        for i in range(num_layers):
            given = transforms[i]
            layer = self._cell(
                self.output_size if i else first_size,
                hidden_size,
                dropout=dropout if i + 1 != num_layers else 0,
                rnn_dropout=rnn_dropout,
                bidirectional=bidirectional,
                projection_size=projections[i],
                highway_bias=highway_bias,
                layer_norm=layer_norm,
                normalize_after=normalize_after,
                transform_module=copy.deepcopy(given) if given is transform_module else given,
                rescale=rescale,
                has_skip_term=has_skip_term,
                use_tanh=use_tanh,
                v1=v1,
                amp_recurrence_fp16=amp_recurrence_fp16,
                weight_c_init=weight_c_init,
                init=init,
                backend=backend,
                device=device,
                dtype=dtype,
            )
            self.rnn_lst.append(layer)

    _cell = SRUCell

    def __getitem__(self, n: int) -> SRUCell:
        """Layer n."""
        return self.rnn_lst[n]

    def reset_parameters(self) -> None:
        """Draw initial values anew."""
        for layer in self.rnn_lst:
            layer.reset_parameters()
        if self.input_to_hidden is not None:
            self.input_to_hidden.reset_parameters()

    @scripts_as(_script_sru.stack)
    def forward(
        self,
        input: Tensor | PackedSequence,
        c0: Tensor | None = None,
        mask_pad: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        done: Tensor | None = None,
        return_all_states: bool = False,
    ) -> tuple:
        """Run the layers.

        Args:
            input: (L, B, I), (B, L, I) if ``batch_first``, or a PackedSequence, which is computed without
                padding.
            c0: (layers, B, O) or, as torch.nn shapes it, (layers*D, B, H); zeros by default.
            mask_pad: (L, B), (B, L) if ``batch_first``, of any dtype: nonzero where a step is padding. There
                c passes unchanged and h is 0.
            lengths: (B,), how many steps each row of a padded batch has, 0 to L, in any order; integers on
                any device, or a list. The steps beyond are pads, as of ``mask_pad``; both may be given.
            reset: (L, B), laid out like the input; bool or integers. Where it is true a new sequence begins,
                with a state of zeros: the state of step t-1 does not reach step t, nor that of t the step
                t-1 in the reverse direction. A pad begins none.
            done: the same from the other side: where it is true a sequence ends with step t. So done[t] is
                reset[t+1], and where done is true at a row's last step, its c is zero (in the forward
                direction), for the next call to begin with.
            return_all_states: return c of every step as well.

        Returns:
            h (L, B, O), or as the input is laid out, and c (layers, B, O), each layer's last state; with
            ``nn_rnn_compatible_return`` (layers*D, B, H). With ``return_all_states`` also c of every layer
            and step, (layers, L, B, O), or (layers, B, L, O) with ``batch_first``, 0 for pads.

        Raises:
            ValueError, RuntimeError: sizes, dtypes or devices that do not fit, naming the argument.
        """
        name = type(self).__name__
        try:
            x, batch, pads = stack_input(self, name, input, mask_pad)
            rows = asked(name, input, lengths, reset, done, return_all_states, self.batch_first)
            options = {}
            if rows is not None:
                pads = rows.pads(pads, x.size(0), x.device)
                if rows.reset is not None:
                    options["reset"] = rows.reset
                if return_all_states:
                    options["return_all_states"] = True
            first = stack_states(self, name, c0, batch)
            x = first_input(self, x, pads)
            states, every_c = [], []
            for layer, c in zip(self.rnn_lst, first, strict=True):
                x, c, *of_steps = layer(x, c, mask_pad=pads, **options)
                run_scan.note_clean(pads)
                states.append(c)
                every_c += of_steps
            if rows is not None and rows.ended is not None:
                states = [self._over(rows, c) for c in states]
            time = 1 if self.batch_first else 0
            if time and isinstance(x, Tensor):
                x = x.transpose(0, 1)
            if not return_all_states:
                return x, stack_result(self, states)
            return x, stack_result(self, states), torch.stack(every_c).transpose(1, 1 + time)
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, SRU.forward, locals())) is None:
                raise
            return node

    def _over(self, rows: Rows, c: Tensor) -> Tensor:
        """c (B, O) of a layer, zero where the rows say that a sequence is over."""
        c = c.unflatten(1, (self.num_directions, self.hidden_size)).transpose(0, 1)
        return rows.last(c).transpose(0, 1).flatten(1)

    def step(self, input: Tensor, c0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step: ``forward()`` on a sequence of one, with gradients, hooks and all.

        On the CPU a step of up to four rows without gradients is one kernel a layer, which reads the weights
        where they are: there is nothing to prepare, and no ``streamer()``.

        Args:
            input: (B, I), or (I,) for a single sequence; ``batch_first`` makes no difference.
            c0: the state as forward() takes and returns it, (layers, B, H), or (layers, H) for a single
                sequence; zeros by default.

        Returns:
            h (B, H) or (H,), and c like c0.

        Raises:
            RuntimeError: a bidirectional layer; ValueError and RuntimeError as forward().
        """
        name = type(self).__name__
        if self.bidirectional:
            raise RuntimeError(
                f"{name}: step() needs a layer in one direction, got bidirectional=True: the reverse "
                "direction begins at the end of the sequence"
            )
        scan_checks.dims(name, _checks.tensor(name, "input", input), (1, 2), "(B, I) or (I,) for a step")
        single = input.dim() == 1
        if single:
            input = input.unsqueeze(0)
            if c0 is not None:
                scan_checks.shape(name, "c0", c0, (self.num_layers, self.output_size))
                c0 = c0.unsqueeze(1)
        time = 1 if self.batch_first else 0
        h, c = self(input.unsqueeze(time), c0)
        h = h.squeeze(time)
        return (h.squeeze(0), c.squeeze(1)) if single else (h, c)


# What SRU and SRUpp do alike before and after their layers.


def stack_input(stack: nn.Module, name: str, input, mask_pad):
    """The input and its mask with time first, and the number of rows."""
    if isinstance(input, PackedSequence):
        scan_checks.features(name, input.data, stack.input_size)
        if mask_pad is not None:
            raise ValueError(f"{name}: mask_pad should be None for a PackedSequence, which has no pads")
        return input, run_scan.first_rows(input.batch_sizes), None
    x = _checks.tensor(name, "input", input)
    if x.layout is not torch.strided or x.is_nested:
        x = _checks.dense(name, x)
    scan_checks.dims(name, x, (3,), "(B, L, I)" if stack.batch_first else "(L, B, I)")
    scan_checks.features(name, x, stack.input_size)
    if mask_pad is not None:
        mask_pad = scan_checks.mask(name, "mask_pad", mask_pad, x.device, tuple(x.shape[:2]))
        mask_pad = mask_pad.view_as(mask_pad)  # ours to note something on
    if stack.batch_first:
        x, mask_pad = x.transpose(0, 1), (None if mask_pad is None else mask_pad.t())
    if stack.input_to_hidden is not None:  # otherwise the first layer looks at the input
        weights = [("weights", stack.input_to_hidden.weight)]
        scan_checks.like_input(name, x, weights, autocasting(x))
    return x, x.size(1), mask_pad


def stack_states(stack: nn.Module, name: str, c0: Tensor | None, batch: int) -> list[Tensor | None]:
    """c0 of each layer, (B, O), from the package's shape or torch.nn's."""
    layers, directions, hidden = stack.num_layers, stack.num_directions, stack.hidden_size
    if c0 is None:
        return [None] * layers
    shapes = [(layers, batch, stack.output_size)]
    if directions == 2:
        shapes.append((layers * directions, batch, hidden))
    scan_checks.shape(name, "c0", c0, *shapes)
    if c0.size(0) != layers:
        c0 = c0.view(layers, directions, batch, hidden).transpose(1, 2).flatten(2)
    return list(c0.unbind(0))


def stack_result(stack: nn.Module, states: list[Tensor]) -> Tensor:
    """c of all layers, in the shape that was asked for."""
    c = torch.stack(states) if len(states) > 1 else states[0].unsqueeze(0)
    if not stack.nn_rnn_compatible_return:
        return c
    c = c.unflatten(2, (stack.num_directions, stack.hidden_size)).transpose(1, 2)
    return c.reshape(stack.num_layers * stack.num_directions, c.size(2), stack.hidden_size)


def first_input(stack: nn.Module, x: Tensor | PackedSequence, mask_pad: Tensor | None):
    """The first layer's input."""
    if stack.input_to_hidden is None:
        return x
    if mask_pad is not None:
        x = run_scan.without_pads(x, mask_pad)
        run_scan.note_clean(mask_pad)
    return through(stack.input_to_hidden, x)


def through(module: nn.Module, x: Tensor | PackedSequence) -> Tensor | PackedSequence:
    """module(x), on the rows of a packed batch."""
    if isinstance(x, PackedSequence):
        return PackedSequence(run_scan.product(module, x.data), *x[1:])
    return run_scan.product(module, x)
