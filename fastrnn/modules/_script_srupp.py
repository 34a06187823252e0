"""What torch.jit.script compiles of SRU++: as ``_script_sru``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _script_sru, _script_srupp  # the second is itself: see attention()
from ._script_sru import check_size


def key_pad(
    mask_pad: Tensor | None, memory_mask_pad: Tensor | None, length: int, past: int, rows: int, like: Tensor
) -> Tensor | None:
    """(B, M + L) bool, True for pads, or None."""
    name = "SRUppAttention"
    if past == 0:
        memory_mask_pad = None
    if mask_pad is None and memory_mask_pad is None:
        return None
    if memory_mask_pad is None:
        remembered = torch.zeros([past, rows], dtype=torch.bool, device=like.device)
    else:
        check_size(name, "memory_mask_pad", memory_mask_pad, [past, rows])
        remembered = memory_mask_pad != 0
    if mask_pad is None:
        own = torch.zeros([length, rows], dtype=torch.bool, device=like.device)
    else:
        check_size(name, "mask_pad", mask_pad, [length, rows])
        own = mask_pad != 0
    return torch.cat([remembered, own]).t()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    key_pad: Tensor | None,
    is_causal: bool,
    dropout: float,
) -> Tensor:
    """``fastrnn._run.attention.attention``: softmax(q kᵀ / sqrt(d) + mask) v, 0 for a query without a key."""
    length, source = q.size(-2), k.size(-2)
    if q.numel() == 0 or source == 0:
        return q * 0
    if is_causal and (key_pad is not None or length != source):
        future = torch.ones([length, source], dtype=torch.bool, device=q.device).triu(source - length + 1)
        attn_mask = torch.zeros([length, source], dtype=q.dtype, device=q.device).masked_fill(
            future, -float("inf")
        )
        is_causal = False
    if attn_mask is None and key_pad is None:
        return F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal)
    # Every -inf is made finite, and the rows that have nothing else are set to 0.
    lowest = -3.2e4
    if q.dtype == torch.float32 or q.dtype == torch.bfloat16:
        lowest = -1.6e38
    elif q.dtype == torch.float64:
        lowest = -8.0e307
    if attn_mask is None:
        bias = torch.zeros([1, 1, 1, 1], dtype=q.dtype, device=q.device)
    else:
        bias = attn_mask.to(q.dtype).clamp(min=lowest).unsqueeze(0).unsqueeze(0)
    if key_pad is not None:
        pads = key_pad.unsqueeze(1).unsqueeze(1)
        bias = bias.expand([key_pad.size(0), 1, length, source]).masked_fill(pads, lowest)
    blind = bias.detach().amax(-1, keepdim=True) <= lowest
    return F.scaled_dot_product_attention(q, k, v, bias, dropout, False).masked_fill(blind, 0)


# TorchScript looks up what the following name where forward() is: through modules that are known there too.


def projected(
    self,
    input: Tensor,
    mask_pad: Tensor | None = None,
    attn_mask: Tensor | None = None,
    memory: Tensor | None = None,
    memory_mask_pad: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    z = self.linear1(input)
    if self.layer_norm is not None:
        z = self.layer_norm(z)
    return self.linear2(self.dropout(z))


def attention(
    self,
    input: Tensor,
    mask_pad: Tensor | None = None,
    attn_mask: Tensor | None = None,
    memory: Tensor | None = None,
    memory_mask_pad: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    name = "SRUppAttention"
    residual = self.linear1(input)
    z = residual
    if self.layer_norm is not None and not self.normalize_after:
        z = self.layer_norm(z)
    length, rows = z.size(0), z.size(1)
    keys, past = z, 0
    if memory is not None:
        past = memory.size(0)
        _script_srupp.check_size(name, "memory", memory, [past, rows, self.in_features])
        remembered = self.linear1(memory)
        if self.layer_norm is not None and not self.normalize_after:
            remembered = self.layer_norm(remembered)
        keys = torch.cat([remembered, z])
    if attn_mask is not None:
        _script_srupp.check_size(name, "attn_mask", attn_mask, [length, past + length])
        if attn_mask.dtype == torch.bool:
            raise ValueError(f"{name}: attn_mask should hold numbers that are added to the scores, got bool")
        if is_causal:
            raise ValueError(f"{name}: attn_mask should be None with is_causal=True")
    heads = self.num_heads
    k, v = self.linear2(keys).chunk(2, dim=-1)
    found = _script_srupp.attend(
        z.unflatten(-1, [heads, -1]).permute([1, 2, 0, 3]),
        k.unflatten(-1, [heads, -1]).permute([1, 2, 0, 3]),
        v.unflatten(-1, [heads, -1]).permute([1, 2, 0, 3]),
        attn_mask,
        _script_srupp.key_pad(mask_pad, memory_mask_pad, length, past, rows, z),
        is_causal,
        self.attn_dropout if self.training else 0.0,
    )
    result = found.permute([2, 0, 1, 3]).flatten(2) * self.alpha + residual
    if self.layer_norm is not None and self.normalize_after:
        result = self.layer_norm(result)
    return self.linear3(self.dropout(result))


def cell(
    self,
    input: Tensor,
    c0: Tensor | None = None,
    mask_pad: Tensor | None = None,
    attn_mask: Tensor | None = None,
    memory: Tensor | None = None,
    memory_mask_pad: Tensor | None = None,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    x, c0, mask_pad = _script_sru.cell_begin(input, c0, mask_pad, self.input_size, self.output_size)
    residual, rows = x, x.size(1)
    if self.layer_norm is not None and not self.normalize_after:
        x = self.layer_norm(x)
        if memory is not None and self.normalize_memory:
            memory = self.layer_norm(memory)
    if self.training and self.rnn_dropout > 0:
        x = x * _script_sru.dropout_mask(self.bias, rows, self.input_size, self.rnn_dropout)
    drop_mask: Tensor | None = None
    if self.training and self.dropout > 0:
        drop_mask = _script_sru.dropout_mask(self.bias, rows, self.output_size, self.dropout)

    if hasattr(self.transform_module, "takes_is_causal"):
        transformed = self.transform_module(x, mask_pad, attn_mask, memory, memory_mask_pad, is_causal)
    else:  # modules written for the package do not know it
        if is_causal:
            raise ValueError("SRUppCell: is_causal should be False with a transform_module that lacks it")
        transformed = self.transform_module(
            x, mask_pad=mask_pad, attn_mask=attn_mask, memory=memory, memory_mask_pad=memory_mask_pad
        )
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


def stack(
    self,
    input: Tensor,
    c0: Tensor | None = None,
    mask_pad: Tensor | None = None,
    attn_mask: Tensor | None = None,
    memory: list[Tensor | None] | None = None,
    memory_mask_pad: Tensor | None = None,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor, dict[str, list[Tensor]]]:
    x, begins, mask_pad = _script_sru.stack_begin(
        "SRUpp",
        input,
        c0,
        mask_pad,
        self.input_size,
        self.num_layers,
        self.num_directions,
        self.hidden_size,
        self.batch_first,
    )
    if memory is not None and len(memory) != self.num_layers:
        raise ValueError(f"SRUpp: memory should have one entry a layer, {self.num_layers}, got {len(memory)}")
    if self.batch_first and memory_mask_pad is not None:
        memory_mask_pad = memory_mask_pad.t()
    if self.input_to_hidden is not None:
        x = self.input_to_hidden(x)
    states: list[Tensor] = []
    saved: list[Tensor] = []
    for k, layer in enumerate(self.rnn_lst):
        start: Tensor | None = None
        if len(begins) > 0:
            start = begins[k]
        remembered: Tensor | None = None
        if memory is not None:
            remembered = memory[k]
            if remembered is not None and self.batch_first:
                remembered = remembered.transpose(0, 1)
        saved.append(x.transpose(0, 1) if self.batch_first else x)
        x, c = layer(x, start, mask_pad, attn_mask, remembered, memory_mask_pad, is_causal)
        states.append(c)
    last = _script_sru.stack_end(states, self.num_directions, self.hidden_size, self.nn_rnn_compatible_return)
    return x.transpose(0, 1) if self.batch_first else x, last, {"saved_inputs": saved}
