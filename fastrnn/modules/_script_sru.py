"""What torch.jit.script compiles of SRU: the recurrence in torch's own operations.

See ``_torchscript``. Functions with ``self`` are methods of the modules; the numbers are those of
``fastrnn.reference.sru_scan``, whose shape letters these are, and of the modules' own forward(), dropout's
draws included. A scripted module takes padded batches, and no PackedSequence: as in the ``sru`` package,
``mask_pad`` says where a row ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _script_sru  # itself: see cell()


def _is_half(t: Tensor) -> bool:
    return t.dtype == torch.bfloat16 or t.dtype == torch.float16


def _cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.to(dtype)


def dropout_mask(like: Tensor, rows: int, features: int, p: float) -> Tensor:
    """Zeros, and 1 / (1 - p) with probability 1 - p: the eager module's draw from the generator."""
    if p >= 1:
        return torch.zeros([rows, features], dtype=like.dtype, device=like.device)
    return torch.empty([rows, features], dtype=like.dtype, device=like.device).bernoulli_(1 - p).div_(1 - p)


def _direction(
    candidates: list[Tensor],
    gates: list[Tensor],
    weights: list[Tensor],
    skips: list[Tensor],
    pads: list[Tensor],
    drop: Tensor | None,
    c: Tensor,
    use_tanh: bool,
    reverse: bool,
) -> tuple[list[Tensor], Tensor]:
    """h of every step and the last c. weights: one, or one a step; skips, pads: one a step, or none."""
    steps = len(candidates)
    hs: list[Tensor] = []
    for i in range(steps):
        t = steps - 1 - i if reverse else i
        weight = weights[t] if len(weights) > 1 else weights[0]
        opened = torch.sigmoid(gates[t] + weight * c.unsqueeze(-2))
        f, r = opened[:, 0], opened[:, 1]
        new = candidates[t] + (c - candidates[t]) * f
        if len(pads) > 0:
            new = torch.where(pads[t], c, new)
        output = torch.tanh(new) if use_tanh else new
        difference = output - skips[t] if len(skips) > 0 else output
        if drop is not None:
            difference = difference * drop
        h = skips[t] + difference * r if len(skips) > 0 else difference * r
        if len(pads) > 0:
            h = h.masked_fill(pads[t], 0)
        hs.append(h)
        c = new
    if reverse:
        hs.reverse()
    return hs, c


def scan(
    u: Tensor,
    skip: Tensor | None,
    scale: Tensor | None,
    weight_c: Tensor,
    bias: Tensor,
    c0: Tensor,
    v: Tensor | None,
    mask_pad: Tensor | None,
    drop_mask: Tensor | None,
    use_tanh: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """The recurrence over u (L, B, K, O), K = 3 or 4, with the arguments of ``fastrnn.reference.sru_scan``;
    scale (1,) is a factor of skip, or None. Returns h (L, B, O) and c (B, O)."""
    dtype = u.dtype
    wide = torch.float32 if _is_half(u) else dtype
    u, weight_c, bias, c0 = u.to(wide), weight_c.to(wide), bias.to(wide), c0.to(wide)
    v, drop_mask, skip = _cast(v, wide), _cast(drop_mask, wide), _cast(skip, wide)
    if skip is not None and scale is not None:
        skip = skip * scale.to(wide)
    if u.size(2) == 4:
        skip = u[:, :, 3]
    weight = weight_c.unsqueeze(0) if v is None else weight_c + v
    gates = u[:, :, 1:3] + bias
    hidden = u.size(3) // (2 if bidirectional else 1)
    outputs: list[Tensor] = []
    lasts: list[Tensor] = []
    for d in range(2 if bidirectional else 1):
        begin, end = d * hidden, (d + 1) * hidden
        skips: list[Tensor] = []
        if skip is not None:
            skips = skip[..., begin:end].unbind(0)
        pads: list[Tensor] = []
        if mask_pad is not None:
            pads = mask_pad.unsqueeze(-1).unbind(0)
        drop: Tensor | None = None
        if drop_mask is not None:
            drop = drop_mask[:, begin:end]
        hs, last = _direction(
            u[:, :, 0, begin:end].unbind(0),
            gates[..., begin:end].unbind(0),
            weight[..., begin:end].unbind(0),
            skips,
            pads,
            drop,
            c0[:, begin:end],
            use_tanh,
            d == 1,
        )
        outputs.append(torch.stack(hs) if len(hs) > 0 else u[:, :, 0, begin:end])
        lasts.append(last)
    return torch.cat(outputs, dim=-1).to(dtype), torch.cat(lasts, dim=-1).to(dtype)


def check_size(name: str, argument: str, t: Tensor, expected: list[int]) -> None:
    if t.size() != expected:
        raise ValueError(f"{name}: {argument} should have size {expected}, got {t.size()}")


def _mask(name: str, mask_pad: Tensor | None, expected: list[int]) -> Tensor | None:
    """A mask of any dtype, nonzero for pads, as bool."""
    if mask_pad is None:
        return None
    check_size(name, "mask_pad", mask_pad, expected)
    return mask_pad if mask_pad.dtype == torch.bool else mask_pad != 0


# ---- one layer, in three parts, of which SRU++ has the middle one its own ----------------------------------


def cell_begin(
    input: Tensor, c0: Tensor | None, mask_pad: Tensor | None, features: int, outputs: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input (L, B, I), c0 (B, O) and mask_pad (L, B), checked, of a sequence or a single step."""
    name, dims = "SRUCell", input.dim()
    if dims != 2 and dims != 3:
        raise ValueError(f"{name}: input should be (L, B, I) or (B, I), got {dims} dimensions")
    x = input if dims == 3 else input.unsqueeze(0)
    if x.size(2) != features:
        raise ValueError(f"{name}: input.size(-1) should be input_size = {features}, got {x.size(2)}")
    rows = x.size(1)
    if c0 is None:
        c0 = x.new_zeros([rows, outputs])
    check_size(name, "c0", c0, [rows, outputs])
    if mask_pad is not None and dims == 2 and mask_pad.dim() == 1:
        mask_pad = mask_pad.unsqueeze(0)
    return x, c0, _mask(name, mask_pad, [x.size(0), rows])


def cell_scan(
    u: Tensor,
    v: Tensor | None,
    residual: Tensor,
    c0: Tensor,
    weight_c: Tensor,
    bias: Tensor,
    scale_x: Tensor,
    mask_pad: Tensor | None,
    drop_mask: Tensor | None,
    k: int,
    has_skip_term: bool,
    rescale: bool,
    half: bool,
    use_tanh: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """The recurrence on what a transform module returned: U of L*B*O*K numbers, the K of a unit side by side,
    and perhaps V, (2*O,) or of L*B*O*2, the two of a unit side by side. half: ``amp_recurrence_fp16``."""
    name, features = "SRUCell", c0.size(1)
    steps, rows = residual.size(0), residual.size(1)
    if u.dim() == 0 or u.size(-1) != features * k or u.numel() != steps * rows * features * k:
        expected = [steps, rows, features * k]
        raise ValueError(f"{name}: transform_module should return U of size {expected}, got {u.size()}")
    u = u.reshape([steps, rows, features, k]).transpose(-1, -2)
    weight = weight_c.view([2, features])
    added: Tensor | None = None
    if v is not None:
        if v.dim() == 1 and v.size(0) == 2 * features:
            weight = weight + v.view([2, features])
        else:
            if v.dim() == 0 or v.size(-1) != features * 2 or v.numel() != steps * rows * features * 2:
                expected = [steps, rows, features * 2]
                got = v.size()
                raise ValueError(f"{name}: transform_module should return V of size {expected}, got {got}")
            added = v.reshape([steps, rows, features, 2]).transpose(-1, -2)
            # Where the package adds V, it reads V and weight_c with the two gates of a unit side by side.
            weight = weight_c.view([features, 2]).t()
    skip: Tensor | None = None
    if has_skip_term and k == 3:
        skip = residual
    # Autocast has cast the product. (TorchScript has is_autocast_enabled(), which crashes under autocast.)
    if u.dtype != weight_c.dtype or u.dtype != residual.dtype:
        to = torch.float32 if _is_half(u) and not half else u.dtype
        u, weight, bias, c0 = u.to(to), weight.to(to), bias.to(to), c0.to(to)
        skip, added, drop_mask = _cast(skip, to), _cast(added, to), _cast(drop_mask, to)
    return scan(
        u,
        skip,
        scale_x if rescale else None,
        weight,
        bias.view([2, features]),
        c0,
        added,
        mask_pad,
        drop_mask,
        use_tanh,
        bidirectional,
    )


# TorchScript looks up what this and stack() name where forward() is: through this module, known there too.
def cell(
    self, input: Tensor, c0: Tensor | None = None, mask_pad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    x, c0, mask_pad = _script_sru.cell_begin(input, c0, mask_pad, self.input_size, self.output_size)
    residual, rows = x, x.size(1)
    if self.layer_norm is not None and not self.normalize_after:
        x = self.layer_norm(x)
    if self.training and self.rnn_dropout > 0:
        x = x * _script_sru.dropout_mask(self.bias, rows, self.input_size, self.rnn_dropout)
    drop_mask: Tensor | None = None
    if self.training and self.dropout > 0:
        drop_mask = _script_sru.dropout_mask(self.bias, rows, self.output_size, self.dropout)

    transformed = self.transform_module(x)
    v: Tensor | None = None
    if isinstance(transformed, Tensor):
        u = transformed
    elif torch.jit.isinstance(transformed, tuple[Tensor]):
        u = transformed[0]
    elif torch.jit.isinstance(transformed, tuple[Tensor, Tensor | None]):
        u, v = transformed[0], transformed[1]
    else:
        u = transformed[0]
        if len(transformed) > 1:
            v = transformed[1]

    h, c = _script_sru.cell_scan(
        u,
        v,
        residual,
        c0,
        self.weight_c,
        self.bias,
        self.scale_x,
        mask_pad,
        drop_mask,
        self.num_matrices,
        self.has_skip_term,
        self.rescale,
        self.amp_recurrence_fp16,
        self.activation_type == 1,
        self.bidirectional,
    )
    if self.layer_norm is not None and self.normalize_after:
        h = self.layer_norm(h)
    return h if input.dim() == 3 else h.squeeze(0), c


# ---- the stack ---------------------------------------------------------------------------------------------


def stack_begin(
    name: str,
    input: Tensor,
    c0: Tensor | None,
    mask_pad: Tensor | None,
    features: int,
    layers: int,
    directions: int,
    hidden: int,
    batch_first: bool,
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """Input and mask_pad with time first, and c0 of each layer, (B, O), or none of them."""
    if input.dim() != 3:
        form = "(B, L, I)" if batch_first else "(L, B, I)"
        raise ValueError(f"{name}: input should be {form}, got {input.dim()} dimensions")
    if input.size(2) != features:
        raise ValueError(f"{name}: input.size(-1) should be input_size = {features}, got {input.size(2)}")
    mask_pad = _mask(name, mask_pad, [input.size(0), input.size(1)])
    x = input
    if batch_first:
        x = x.transpose(0, 1)
        if mask_pad is not None:
            mask_pad = mask_pad.t()
    states: list[Tensor] = []
    if c0 is not None:
        rows = x.size(1)
        if directions == 2 and c0.dim() == 3 and c0.size(0) == layers * 2:
            check_size(name, "c0", c0, [layers * 2, rows, hidden])
            c0 = c0.view([layers, 2, rows, hidden]).transpose(1, 2).flatten(2)
        check_size(name, "c0", c0, [layers, rows, hidden * directions])
        states = c0.unbind(0)
    return x, states, mask_pad


def stack_end(states: list[Tensor], directions: int, hidden: int, as_torch_nn: bool) -> Tensor:
    """c of all layers, (layers, B, O), or (layers*D, B, H)."""
    c = torch.stack(states)
    if not as_torch_nn:
        return c
    c = c.unflatten(2, [directions, hidden]).transpose(1, 2)
    return c.reshape([len(states) * directions, c.size(2), hidden])


def stack(
    self, input: Tensor, c0: Tensor | None = None, mask_pad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    x, begins, mask_pad = _script_sru.stack_begin(
        "SRU",
        input,
        c0,
        mask_pad,
        self.input_size,
        self.num_layers,
        self.num_directions,
        self.hidden_size,
        self.batch_first,
    )
    if self.input_to_hidden is not None:
        x = self.input_to_hidden(x)
    states: list[Tensor] = []
    for k, layer in enumerate(self.rnn_lst):
        start: Tensor | None = None
        if len(begins) > 0:
            start = begins[k]
        x, c = layer(x, start, mask_pad)
        states.append(c)
    last = _script_sru.stack_end(states, self.num_directions, self.hidden_size, self.nn_rnn_compatible_return)
    return x.transpose(0, 1) if self.batch_first else x, last
