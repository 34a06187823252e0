"""What the layers of SRU and SRU++ share: weights by gate, packed rows, and the choice of what runs the scan.

The ``sru`` package lays the K numbers of a unit (candidate, forget gate, reset gate and perhaps skip) side by
side. Vectorised loops want the units side by side, so here the rows of the weight are permuted before the
product, and u comes out as (..., K, O). Shape letters are those of ``fastrnn.reference.sru_scan``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import reference
from .._ops import autograd, elementwise, library, torch_state
from .._ops.linear_scan import scan as linear_scan
from .._ops.torch_state import tracing
from .._plan import route
from . import projection
from .rows import Rows

_HALF = (torch.bfloat16, torch.float16)


def without_pads(x: Tensor, mask_pad: Tensor) -> Tensor:
    """x (L, B, .) with zeros for pads. Products take all steps, and a gradient of zero times what is not a
    number is none either: whatever the padding holds, NaN too, must not reach the weights through it."""
    return x.masked_fill(mask_pad.unsqueeze(-1), 0)


def note_clean(mask_pad: Tensor | None) -> None:
    """Say that the input that goes with this mask, an object of the caller's own, has numbers for pads:
    layers above the first need not replace what a layer has written."""
    if mask_pad is not None and not torch_state.compiling():
        mask_pad._input_is_clean = True


def is_clean(mask_pad: Tensor) -> bool:
    # A compiler fuses the replacement, and keeps no attributes of tensors.
    return not torch_state.compiling() and getattr(mask_pad, "_input_is_clean", False)


class Packing(NamedTuple):
    """Where the rows of a packed batch belong.

    batch_sizes (L,) on the CPU; rows (N,) is each packed row's sequence, and flat (N,) its place t*B + row in
    a padded (L, B) batch.
    """

    batch_sizes: Tensor
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None
    rows: Tensor
    flat: Tensor

    @property
    def batch(self) -> int:
        return first_rows(self.batch_sizes)

    @classmethod
    def of(cls, packed: PackedSequence) -> Packing:
        sizes = packed.batch_sizes
        starts = sizes.cumsum(0) - sizes
        rows = torch.arange(packed.data.size(0)) - starts.repeat_interleave(sizes)
        flat = torch.arange(sizes.size(0)).repeat_interleave(sizes) * sizes[0] + rows
        device = packed.data.device
        return cls(sizes, packed.sorted_indices, packed.unsorted_indices, rows.to(device), flat.to(device))

    def sort(self, t: Tensor | None, dim: int = 0) -> Tensor | None:
        """From the caller's order of sequences to that of the packed rows."""
        return t if t is None or self.sorted_indices is None else t.index_select(dim, self.sorted_indices)

    def unsort(self, t: Tensor, dim: int = 0) -> Tensor:
        return t if self.unsorted_indices is None else t.index_select(dim, self.unsorted_indices)

    def pad(self, data: Tensor) -> Tensor:
        """Packed rows (N, .) as (L, B, .) in the packed rows' order, zeros elsewhere."""
        length, batch = self.batch_sizes.size(0), self.batch
        padded = data.new_zeros((length * batch, data.size(-1))).index_copy(0, self.flat, data)
        return padded.view(length, batch, data.size(-1))

    def pads(self) -> Tensor:
        """(L, B), True where there is no packed row."""
        length, batch = self.batch_sizes.size(0), self.batch
        pads = torch.ones(length * batch, dtype=torch.bool, device=self.flat.device)
        return pads.index_fill(0, self.flat, 0).view(length, batch)  # TorchScript has no False there

    def unpad(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1).index_select(0, self.flat)

    def packed(self, data: Tensor) -> PackedSequence:
        return PackedSequence(data, self.batch_sizes, self.sorted_indices, self.unsorted_indices)


def first_rows(batch_sizes: Tensor) -> int:
    """The rows of the first step; for torch.jit.trace a tensor, which stands for other batches' too."""
    return batch_sizes[0] if tracing() else int(batch_sizes[0])


def gate_major(u: Tensor, k: int) -> Tensor:
    """(..., O*K) in the package's order to (..., K, O)."""
    return u.unflatten(-1, (-1, k)).transpose(-1, -2).contiguous()


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward()."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def product(linear: nn.Module, x: Tensor) -> Tensor:
    """linear(x), by the faster library where that is all there is to it."""
    if type(linear) is not nn.Linear or linear.bias is not None or hooked(linear):
        return linear(x)
    return projection.linear(x, linear.weight)


def project(linear: nn.Module, x: Tensor, k: int) -> Tensor:
    """linear(x), whose features are in the package's order, as (..., K, O)."""
    if type(linear) is not nn.Linear or linear.bias is not None or hooked(linear):
        return gate_major(linear(x), k)
    return project_weight(linear.weight, x, k)


def project_weight(weight: Tensor, x: Tensor, k: int) -> Tensor:
    """x (..., I) times weight (O*K, I), in the package's order, as (..., K, O)."""
    # Either the weight is permuted or the product: whatever is smaller (one step of inference has few rows).
    if not torch_state.compiling() and x.numel() < weight.size(1) ** 2:
        return gate_major(projection.linear(x, weight), k)
    permuted = weight.unflatten(0, (-1, k)).transpose(0, 1).reshape(weight.shape)
    return projection.linear(x, permuted).unflatten(-1, (k, -1))


def transform(module: nn.Module, x: Tensor, k: int, features: int) -> Tensor | None:
    """u (..., K, O) of a transform module that is one linear map or several in sequence; None for others, and
    where the result is not O*K features."""
    if type(module) is nn.Sequential and len(module) and not hooked(module):
        *others, last = module
    else:
        others, last = [], module
    if any(type(m) is not nn.Linear for m in (*others, last)) or last.out_features != features * k:
        return None
    for inner in others:
        x = product(inner, x)
    return project(last, x, k)


def scan(
    u: Tensor,
    x: Tensor | None,
    weight_c: Tensor,
    bias: Tensor,
    c0: Tensor,
    *,
    backend: str,
    rows: Rows | None = None,
    **options,
) -> tuple[Tensor, ...]:
    """``fastrnn.reference.sru_scan`` by the fused kernels where there are any; its arguments and results.

    rows: of a padded batch; its lengths are among the pads already, ``mask_pad``. Where it keeps the states,
    there is a third result, c of every step (L, B, O) in u's dtype, 0 for pads.
    """
    # Of nothing, torch is just as fast. A compiler that does not know the size decides here, by a branch.
    empty = True if u.numel() == 0 and not tracing() else False  # noqa: SIM210
    way = route.of(u, backend, "scan", empty=empty)
    if way.runner == "none":
        raise RuntimeError(way.why)
    run = autograd.scan if way.runner == "fused" else reference.sru_scan
    if rows is None:
        return run(u, x, weight_c, bias, c0, **options)
    keep = rows.keep_states
    h, c, *cells = run(u, x, weight_c, bias, c0, reset=rows.reset, keep_cells=keep, **options)
    if rows.ended is not None:
        directions = 2 if options["bidirectional"] else 1
        c = rows.last(c.unflatten(1, (directions, -1)).transpose(0, 1)).transpose(0, 1).flatten(1)
    if not keep:
        return h, c
    every_c, pads = cells[0].view(h.shape), options["mask_pad"]
    if pads is not None:
        every_c = every_c.masked_fill(pads.unsqueeze(-1), 0)
    return h, c, every_c.to(h.dtype)


def takes_step(
    module: nn.Module, outputs: int, x: Tensor, others: tuple[Tensor | None, ...], backend: str
) -> bool:
    """Whether ``step`` may compute a layer over x (L, B, I): one step of few rows, on the CPU, of a plain
    linear map to O*K outputs, and no gradients wanted of x, of the weight or of the others."""
    return (
        type(module) is nn.Linear
        and route.one_step(x.size(0), x.size(1), x.is_cpu)
        and module.bias is None
        and module.out_features == outputs
        and not hooked(module)
        and not torch_state.compiling()
        and not (
            torch_state.gradients()
            and (
                x.requires_grad
                or module.weight.requires_grad
                or any(t is not None and t.requires_grad for t in others)
            )
        )
        and route.of(x, backend, "scan").runner == "fused"
        and not tracing()  # the program may be given more steps
    )


def step(module: nn.Module, x: Tensor, skip: Tensor | None, weight_c, bias, c0, use_tanh: bool, scale: float):
    """``project`` and ``scan`` at once, where ``takes_step``. Returns h (1, B, O) and c (B, O)."""
    x, skip = x.squeeze(0), (None if skip is None else skip.squeeze(0))
    h, c = library.sru_step(x, module.weight, skip, weight_c, bias, c0, use_tanh, scale)
    return h.unsqueeze(0), c


def amp_dtype(u: Tensor, half: bool) -> torch.dtype:
    """The dtype of the recurrence under autocast: half types only where they were asked for."""
    return torch.float32 if u.dtype in _HALF and not half else u.dtype


def dropout_mask(like: Tensor, size: tuple[int, int], p: float) -> Tensor:
    """Zeros, and 1 / (1 - p) with probability 1 - p: the package's draw from the generator."""
    if p >= 1:
        return like.new_zeros(size)
    return like.new_empty(size).bernoulli_(1 - p).div_(1 - p)


def linear(a: Tensor, b: Tensor, h0: Tensor | None, rows: Rows | None, reverse: bool) -> Tensor:
    """``functional.linear_scan``, its arguments checked."""
    lengths = reset = None
    if rows is not None:
        lengths, reset = rows.lengths, rows.reset
        if not torch_state.compiling():
            rows.check_lengths(a.size(0))
    if torch_state.transformed() or a.is_complex():
        return reference.linear_scan(a, b, h0, lengths=lengths, reset=reset, reverse=reverse)
    if elementwise.fused(a):
        options = {"lengths": lengths, "reset": reset, "reverse": reverse}
        return elementwise.scan("linear", a, b, None, h0, **options)[0]
    a, b, cut = reference.linear.coefficients(a, b, lengths, reset, reverse)
    return reference.linear.shown(linear_scan(a, b, h0, cut, reverse), lengths)
