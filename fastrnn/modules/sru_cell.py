"""One SRU layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._checks import scan as scan_checks
from .._ops import torch_state
from .._ops.torch_state import autocasting, transformed
from .._run import scan as run_scan
from .._run import symbolic
from .._run.rows import asked
from .._run.torchscript import scripts_as
from . import _script_sru, _sru_package

__all__ = ["SRUCell"]

INITS = ("3.0", "2.6")
#: One kernel runs the scan wherever there is one, so there are no tiers to choose among.
BACKENDS = ("auto", "fused", "reference")


class FunctionTransform(nn.Module):
    """A plain function in the place of a transform module, as sru takes one. It has no parameters of its own;
    those that the function uses belong to whoever made it."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)

    def extra_repr(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


def as_module(transform: nn.Module | Callable | None) -> nn.Module | None:
    """What was given as a transform module, as a module."""
    if transform is None or isinstance(transform, nn.Module):
        return transform
    return FunctionTransform(transform)


class SRUCell(nn.Module):
    r"""SRUCell(input_size, hidden_size, dropout=0.0, rnn_dropout=0.0, bidirectional=False, projection_size=0,
    highway_bias=0.0, layer_norm=False, normalize_after=True, transform_module=None, rescale=False,
    has_skip_term=True, use_tanh=False, v1=False, amp_recurrence_fp16=True, weight_c_init=1.0, *,
    custom_m=None, n_proj=None, init="3.0", backend="auto", device=None, dtype=None)

    One layer of :class:`fastrnn.SRU`, over a whole sequence or a single step. The equations and arguments are
    SRU's; ``custom_m`` and ``n_proj`` are the names that sru 2.6 had for ``transform_module`` and
    ``projection_size``.

    Parameters: ``weight_c`` and ``bias`` (2*O,), forget gate and reset gate, O = D*H; ``transform_module``'s,
    a linear map from I to O*K features, K of them a unit: candidate, forget gate, reset gate and, where the
    input has not O features itself, skip term. With a projection of size P, ``transform_module`` is two such
    maps, through P. ``scale_x`` (1,) is a buffer, ``layer_norm`` a ``torch.nn.LayerNorm``.
    """

    #: For fastrnn.explain: of which family of recurrences its layers are.
    _family = "scan"

    if TYPE_CHECKING:  # TorchScript would read it, and knows no annotations that are strings
        scale_x: Tensor
    __jit_unused_properties__: ClassVar[list[str]] = ["_highway_scale"]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dropout: float = 0.0,
        rnn_dropout: float = 0.0,
        bidirectional: bool = False,
        projection_size: int = 0,
        highway_bias: float = 0.0,
        layer_norm: bool = False,
        normalize_after: bool = True,
        transform_module: nn.Module | Callable | None = None,
        rescale: bool = False,
        has_skip_term: bool = True,
        use_tanh: bool = False,
        v1: bool = False,
        amp_recurrence_fp16: bool = True,
        weight_c_init: float | None = 1.0,
        *,
        custom_m: nn.Module | Callable | None = None,
        n_proj: int | None = None,
        init: str = "3.0",
        backend: str = "auto",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        transform_module = one_name(name, transform_module=transform_module, custom_m=custom_m)
        _checks.one_of(name, "init", init, INITS)
        _checks.one_of(name, "backend", backend, BACKENDS)
        scan_checks.transform_module(name, transform_module)
        scan_checks.number(name, "highway_bias", highway_bias)
        if weight_c_init is not None:
            scan_checks.number(name, "weight_c_init", weight_c_init)
        self.input_size = scan_checks.size(name, "input_size", input_size)
        self.hidden_size = scan_checks.size(name, "hidden_size", hidden_size)
        self.output_size = hidden_size * 2 if bidirectional else hidden_size
        self.dropout = scan_checks.probability(name, "dropout", dropout)
        self.rnn_dropout = scan_checks.probability(name, "rnn_dropout", rnn_dropout)
        self.bidirectional = bool(bidirectional)
        self.has_skip_term = has_skip_term
        self.highway_bias = highway_bias
        self.v1 = v1
        self.rescale = rescale
        self.activation_type = 1 if use_tanh else 0
        self.activation = "tanh" if use_tanh else "none"
        self.amp_recurrence_fp16 = amp_recurrence_fp16
        self.normalize_after = normalize_after
        self.weight_c_init = weight_c_init
        projection_size = projection_size if n_proj is None else n_proj
        self.projection_size = scan_checks.size(name, "projection_size", projection_size, positive=False)
        self.num_matrices = 4 if has_skip_term and input_size != self.output_size else 3
        self.init = init
        self.backend = backend

        kind = {"device": device, "dtype": dtype}
        self._custom = transform_module is not None
        self.transform_module = as_module(transform_module) if self._custom else self._linears(kind)
        self.weight_c = nn.Parameter(torch.empty(2 * self.output_size, **kind))
        self.bias = nn.Parameter(torch.empty(2 * self.output_size, **kind))
        # float32 as in the package, unless a dtype is asked for.
        self.register_buffer("scale_x", torch.zeros(1, device=device, dtype=dtype or torch.float32))
        self.layer_norm: nn.Module | None = None
        if layer_norm:
            self.layer_norm = nn.LayerNorm(self.output_size if normalize_after else input_size, **kind)
        self.reset_parameters()

    def _linears(self, kind: dict) -> nn.Module:
        """The transform module: a linear map, or two with a projection between them."""

        def linear(inputs: int, outputs: int) -> nn.Linear:
            # sru 3.0 discards torch.nn.Linear's initial values, but has drawn them; sru 2.6 has not.
            if self.init == "3.0":
                return nn.Linear(inputs, outputs, bias=False, **kind)
            empty = nn.Linear(inputs, outputs, bias=False, device="meta", dtype=kind["dtype"])
            return empty.to_empty(device=kind["device"] or torch.get_default_device())

        features = self.output_size * self.num_matrices
        if not self.projection_size:
            return linear(self.input_size, features)
        first = linear(self.input_size, self.projection_size)
        return nn.Sequential(first, linear(self.projection_size, features))

    @property
    def _highway_scale(self) -> float:
        rescaled = self.rescale and self.has_skip_term
        return math.sqrt(1 + 2 * math.exp(self.highway_bias)) if rescaled else 1.0

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values: those of sru 3.0 from the same seed, or with init="2.6" those of 2.6."""
        self.bias.zero_()
        self.bias[self.output_size :] = self.highway_bias
        self.scale_x.fill_(self._highway_scale)
        if self.init == "2.6" and not self._custom:
            _sru_package.reset_as_2_6(self)
        else:
            _sru_package.reset_transform(self.transform_module, self.init)
        if self.v1:
            self.weight_c.zero_()
            self.weight_c.requires_grad = False
        elif self.weight_c_init is None:
            # Variance 1/2; the package's two steps, for its rounding.
            self.weight_c.uniform_(-(3.0**0.5), 3.0**0.5).mul_(0.5**0.5)
        else:
            self.weight_c.uniform_(-self.weight_c_init, self.weight_c_init)

    @scripts_as(_script_sru.cell)
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
        """Run the layer.

        Args:
            input: (L, B, I), (B, I) for a single step, or a PackedSequence.
            c0: (B, O), zeros by default.
            mask_pad: (L, B) of any dtype, nonzero where a step is padding; not with a PackedSequence.
            lengths, reset, done, return_all_states: as in :meth:`fastrnn.SRU.forward`, of a padded batch.

        Returns:
            h (L, B, O), or as the input is laid out, and the last c (B, O). With ``return_all_states`` also c
            of every step, (L, B, O), 0 for pads.

        Raises:
            ValueError, RuntimeError: sizes, dtypes or devices that do not fit, naming the argument.
        """
        try:
            rows = None
            if lengths is not None or reset is not None or done is not None or return_all_states is not False:
                steps = input
                if isinstance(input, Tensor) and input.dim() == 2:  # a single step
                    steps = input.unsqueeze(0)
                    reset, done = (t.unsqueeze(0) if isinstance(t, Tensor) else t for t in (reset, done))
                name = type(self).__name__
                rows = asked(name, steps, lengths, reset, done, return_all_states, False)
            return self._run(input, c0, mask_pad, rows)
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, SRUCell.forward, locals())) is None:
                raise
            return node

    def _run(self, input, c0, mask_pad, rows=None, **attention):
        """forward(), with what a transform module of SRU++ takes besides."""
        name = type(self).__name__
        packing, single = None, False
        if isinstance(input, PackedSequence):
            if mask_pad is not None:
                raise ValueError(f"{name}: mask_pad should be None for a PackedSequence, which has no pads")
            packing, x = run_scan.Packing.of(input), input.data
            batch, steps = packing.batch, (x.size(0),)
        else:
            x = _checks.tensor(name, "input", input)
            if x.layout is not torch.strided or x.is_nested:
                x = _checks.dense(name, x)
            scan_checks.dims(name, x, (2, 3), "(L, B, I) or (B, I)")
            single = x.dim() == 2
            x = x.unsqueeze(0) if single else x
            steps = x.shape[:2]
            batch = steps[1]
        scan_checks.features(name, x, self.input_size)
        autocast = autocasting(x)
        scan_checks.like_input(name, x, [("weights", self.weight_c), ("c0", c0)], autocast)
        if c0 is None:
            c0 = x.new_zeros((batch, self.output_size))
        scan_checks.shape(name, "c0", c0, (batch, self.output_size))
        clean = self._sees_pads()
        if mask_pad is not None:
            clean = clean or run_scan.is_clean(mask_pad)
            shapes = (steps, steps[1:]) if single else (steps,)
            mask_pad = scan_checks.mask(name, "mask_pad", mask_pad, x.device, *map(tuple, shapes)).view(steps)
        if rows is not None and rows.lengths is not None:
            mask_pad, clean = rows.pads(mask_pad, steps[0], x.device), self._sees_pads()
        if mask_pad is not None and not clean:
            x = run_scan.without_pads(x, mask_pad)

        residual, norm = x, self.layer_norm
        if norm is not None and not self.normalize_after:
            x = norm(x)
        if self.training and self.rnn_dropout > 0:
            mask = self.get_dropout_mask_((batch, self.input_size), self.rnn_dropout)
            x = x * (mask if packing is None else packing.sort(mask)[packing.rows])
        drop_mask = None
        if self.training and self.dropout > 0:
            drop_mask = self.get_dropout_mask_((batch, self.output_size), self.dropout)

        skip, scale = self._skip(residual)
        if packing is None and mask_pad is None and drop_mask is None and rows is None and not autocast:
            linear, others = self.transform_module, (skip, self.weight_c, self.bias, c0)
            outputs = self.output_size * self.num_matrices
            if run_scan.takes_step(linear, outputs, x, others, self.backend):
                h, c = run_scan.step(linear, x, *others, self.activation_type == 1, scale)
                if norm is not None and self.normalize_after:
                    h = norm(h)
                return (h.squeeze(0) if single else h), c

        u, v = self._transform(x, packing, mask_pad, **attention)
        weight_c = self.weight_c.view(2, self.output_size)
        if v is not None and v.dim() == 1:
            weight_c, v = weight_c + v.view(2, self.output_size), None
        elif v is not None:
            # Where the package adds V, it reads V and weight_c with the two gates of a unit side by side.
            weight_c = self.weight_c.view(self.output_size, 2).t()
        bias = self.bias.view(2, self.output_size)
        if autocast:
            to = run_scan.amp_dtype(u, self.amp_recurrence_fp16)
            u, skip, weight_c, bias, c0, v, drop_mask = (
                t if t is None else t.to(to) for t in (u, skip, weight_c, bias, c0, v, drop_mask)
            )
        batch_sizes = None
        if packing is not None:
            c0, drop_mask, batch_sizes = packing.sort(c0), packing.sort(drop_mask), packing.batch_sizes
        h, c, *every_c = run_scan.scan(
            u,
            skip,
            weight_c,
            bias,
            c0,
            rows=rows,
            v=v,
            mask_pad=mask_pad,
            drop_mask=drop_mask,
            batch_sizes=batch_sizes,
            use_tanh=self.activation_type == 1,
            scale=scale,
            bidirectional=self.bidirectional,
            backend=self.backend,
        )
        if norm is not None and self.normalize_after:
            h = norm(h)
        if packing is not None:
            return packing.packed(h), packing.unsort(c)
        if single:
            return h.squeeze(0), c, *(s.squeeze(0) for s in every_c)
        return h, c, *every_c

    def _sees_pads(self) -> bool:
        """Whether a module of the user's gets what the pads hold, as it does in the package: it may look
        along time."""
        return self._custom

    def _skip(self, residual: Tensor) -> tuple[Tensor | None, float]:
        """The highway's input of K = 3, and a factor that is left to the scan."""
        if not self.has_skip_term or self.num_matrices == 4:
            return None, 1.0
        if not self.rescale:
            return residual, 1.0
        # Reading a number off a GPU would wait for it, and a compiler or a tracer has none to read.
        if (
            self.scale_x.is_cpu
            and not torch_state.compiling()
            and not transformed()
            and not run_scan.tracing()
        ):
            return residual, float(self.scale_x)
        return residual * self.scale_x.to(residual.dtype), 1.0

    def _transform(self, x, packing, mask_pad) -> tuple[Tensor, Tensor | None]:
        """u (..., K, O), and V (..., 2, O), (2*O,) or None, from the transform module."""
        u = run_scan.transform(self.transform_module, x, self.num_matrices, self.output_size)
        if u is not None:
            return u, None
        # A module of the user's may look along time, and knows no packed rows.
        steps = x if packing is None else packing.pad(x)
        u, v = self._read(steps.shape[:-1], self.transform_module(steps))
        if packing is not None:
            u, v = packing.unpad(u), (v if v is None or v.dim() == 1 else packing.unpad(v))
        return u, v

    def _read(self, steps: torch.Size, result) -> tuple[Tensor, Tensor | None]:
        """What a transform module returned, in the package's layout, in that of the scan."""
        name, k, features = type(self).__name__, self.num_matrices, self.output_size
        if not isinstance(result, (tuple, list)):
            result = (result,)
        if not 1 <= len(result) <= 2:
            raise ValueError(f"{name}: transform_module should return 1 or 2 tensors, got {len(result)}")
        u, v = (*result, None)[:2]
        scan_checks.transformed(name, "U", u, steps, features * k)
        u = run_scan.gate_major(u.reshape(*steps, features * k), k)
        if v is not None and v.shape != (2 * features,):
            scan_checks.transformed(name, "V", v, steps, features * 2)
            v = run_scan.gate_major(v.reshape(*steps, features * 2), 2)
        return u, v

    def get_dropout_mask_(self, size: tuple[int, int], p: float) -> Tensor:
        """A dropout mask of this size, zeros and 1 / (1 - p), of the parameters' dtype and device."""
        return run_scan.dropout_mask(self.bias.detach(), size, p)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        _sru_package.translate_2_6(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"projection_size": 0, "dropout": 0, "rnn_dropout": 0, "bidirectional": False}
        defaults |= {"highway_bias": 0, "activation": "none", "v1": False, "rescale": False}
        defaults |= {"has_skip_term": True, "backend": "auto"}
        parts += [
            f"{key}={getattr(self, key)}" for key, value in defaults.items() if getattr(self, key) != value
        ]
        if self.layer_norm is not None:
            parts.append(f"normalize_after={self.normalize_after}")
        return ", ".join(parts)


def one_name(name: str, **values):
    """The value given under one of several names of an argument."""
    given = [key for key, value in values.items() if value is not None]
    if len(given) > 1:
        raise TypeError(f"{name}: {' and '.join(given)} are the same argument; give one of them")
    return values[given[0]] if given else None
