"""The transform modules of SRU++: attention, and the two linear maps of layers without it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import _checks
from .._checks import scan as scan_checks
from .._ops.torch_state import autocasting
from .._run import scan as run_scan
from .._run import symbolic
from .._run.attention import attention
from .._run.torchscript import scripts_as
from . import _script_srupp

__all__ = ["SRUppAttention", "SRUppProjectedLinear"]


def _sizes(name: str, in_features: int, out_features: int, proj_features: int) -> None:
    scan_checks.size(name, "in_features", in_features)
    scan_checks.size(name, "out_features", out_features)
    scan_checks.size(name, "proj_features", proj_features)


class SRUppProjectedLinear(nn.Module):
    r"""SRUppProjectedLinear(in_features, out_features, proj_features, dropout=0.0, layer_norm=False, *,
    device=None, dtype=None)

    The transform of an SRU++ layer without attention: U = W_2 Dropout(LN(W_1 x)).

    Parameters: ``linear1.weight`` (P, I), ``linear2.weight`` (O*K, P) and, with ``layer_norm``,
    ``layer_norm.weight`` and ``layer_norm.bias`` (P,).
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["last"]
    #: For fastrnn.explain: how its products are counted.
    _counted_as = "projection"
    #: That forward() knows the argument, for TorchScript to see: modules written for the package do not.
    takes_is_causal = True
    __constants__: ClassVar[list[str]] = ["takes_is_causal"]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        proj_features: int,
        dropout: float = 0.0,
        layer_norm: bool = False,
        *,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        kind = {"device": device, "dtype": dtype}
        _sizes(type(self).__name__, in_features, out_features, proj_features)
        self.in_features = in_features
        self.out_features = out_features
        self.proj_features = proj_features
        self.dropout = nn.Dropout(scan_checks.probability(type(self).__name__, "dropout", dropout))
        self.linear1 = nn.Linear(in_features, proj_features, bias=False, **kind)
        self.linear2 = nn.Linear(proj_features, out_features, bias=False, **kind)
        self.layer_norm: nn.Module | None = nn.LayerNorm(proj_features, **kind) if layer_norm else None
        self.reset_parameters()

    @property
    def last(self) -> nn.Linear:
        """The linear map that gives U."""
        return self.linear2

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values anew: Xavier's, the last map's times sqrt(1 - dropout)."""
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
        if self.dropout.p > 0:
            self.linear2.weight.mul_((1 - self.dropout.p) ** 0.5)

    def features(self, input: Tensor, packing=None, **_) -> Tensor:
        """What the last map is applied to, (..., P)."""
        z = run_scan.product(self.linear1, input)
        return self.dropout(z if self.layer_norm is None else self.layer_norm(z))

    @scripts_as(_script_srupp.projected)
    def forward(self, input: Tensor, *_, **__) -> Tensor:
        """(L, B, I) to (L, B, O*K). The arguments of :class:`SRUppAttention`'s are accepted and ignored."""
        name = type(self).__name__
        try:
            scan_checks.features(name, _checks.tensor(name, "input", input), self.in_features, "in_features")
            return run_scan.product(self.linear2, self.features(input))
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, SRUppProjectedLinear.forward, locals())) is None:
                raise
            return node


class SRUppAttention(nn.Module):
    r"""SRUppAttention(in_features, out_features, proj_features, num_heads=1, dropout=0.0, attn_dropout=0.0,
    rezero_init_alpha=0.0, layer_norm=False, normalize_after=True, *, device=None, dtype=None)

    The transform of an SRU++ layer (Lei, "When Attention Meets Fast Recurrence", 2021), for an input x and a
    memory x' before it in time:

    .. math::
        Z &= W_1 [x'; x], \qquad Q = Z_x, \qquad (K, V) = W_2 Z \\
        A &= \mathrm{softmax}(Q K^T / \sqrt{d} + \mathrm{mask}) V \\
        U &= W_3\, \mathrm{Dropout}(\mathrm{LN}(\alpha A + Q))

    in ``num_heads`` heads of d = P / num_heads features each, A with dropout on the softmax. With
    ``normalize_after=False`` LN is applied to Z in Q, K and V instead. There is no positional encoding.

    Parameters: ``alpha`` (1,), ``rezero_init_alpha`` at first; ``linear1.weight`` (P, I), ``linear2.weight``
    (2*P, P), ``linear3.weight`` (O*K, P); with ``layer_norm`` ``layer_norm.weight`` and ``.bias`` (P,).
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["last"]
    #: For fastrnn.explain: how its products are counted.
    _counted_as = "attention"
    #: That forward() knows the argument, for TorchScript to see: modules written for the package do not.
    takes_is_causal = True
    __constants__: ClassVar[list[str]] = ["takes_is_causal"]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        proj_features: int,
        num_heads: int = 1,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        rezero_init_alpha: float = 0.0,
        layer_norm: bool = False,
        normalize_after: bool = True,
        *,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        kind = {"device": device, "dtype": dtype}
        name = type(self).__name__
        _sizes(name, in_features, out_features, proj_features)
        if proj_features % scan_checks.size(name, "num_heads", num_heads) != 0:
            raise ValueError(
                f"{name}: proj_features should be divisible by num_heads = {num_heads}, got {proj_features}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.proj_features = proj_features
        self.num_heads = num_heads
        self.dropout = nn.Dropout(scan_checks.probability(name, "dropout", dropout))
        self.attn_dropout = scan_checks.probability(name, "attn_dropout", attn_dropout)
        self.rezero_init_alpha = scan_checks.number(name, "rezero_init_alpha", rezero_init_alpha)
        self.linear1 = nn.Linear(in_features, proj_features, bias=False, **kind)
        self.linear2 = nn.Linear(proj_features, proj_features * 2, bias=False, **kind)
        self.linear3 = nn.Linear(proj_features, out_features, bias=False, **kind)
        self.alpha = nn.Parameter(torch.full((1,), self.rezero_init_alpha, **kind))
        self.normalize_after = normalize_after
        self.layer_norm: nn.Module | None = nn.LayerNorm(proj_features, **kind) if layer_norm else None
        self.reset_parameters()

    @property
    def last(self) -> nn.Linear:
        """The linear map that gives U."""
        return self.linear3

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values anew: Xavier's, the last map's times sqrt(1 - dropout)."""
        for linear in (self.linear1, self.linear2, self.linear3):
            nn.init.xavier_uniform_(linear.weight)
        self.alpha.fill_(self.rezero_init_alpha)
        if self.dropout.p > 0:
            self.linear3.weight.mul_((1 - self.dropout.p) ** 0.5)

    def features(
        self,
        input: Tensor,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask_pad: Tensor | None = None,
        is_causal: bool = False,
        packing: run_scan.Packing | None = None,
    ) -> Tensor:
        """What the last map is applied to, (..., P). With ``packing`` the input is packed rows (N, I), and
        what has rows of its own is in their order."""
        name, norm = type(self).__name__, self.layer_norm
        residual = z = run_scan.product(self.linear1, input)
        if norm is not None and not self.normalize_after:
            z = norm(z)
        if packing is not None:
            # Queries must meet their own sequence's keys: here, and only here, are packed rows padded.
            z, mask_pad = packing.pad(z), packing.pads()
        length, batch = z.shape[:2]
        keys, past = z, 0
        if memory is not None:
            if not isinstance(memory, Tensor) or memory.dim() != 3:
                scan_checks.shape(name, "memory", memory, ("M", batch, self.in_features))
            past = memory.size(0)
            scan_checks.shape(name, "memory", memory, (past, batch, self.in_features))
            scan_checks.like_input(name, input, [("memory", memory)], autocasting(input))
            remembered = run_scan.product(self.linear1, memory)
            if norm is not None and not self.normalize_after:
                remembered = norm(remembered)
            keys = torch.cat([remembered, z])
        if attn_mask is not None:
            scan_checks.attention_mask(name, attn_mask, (length, past + length))
            if is_causal:
                raise ValueError(f"{name}: attn_mask should be None with is_causal=True")

        def heads(t: Tensor) -> Tensor:  # (S, B, P) to (B, heads, S, d)
            return t.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)

        k, v = run_scan.product(self.linear2, keys).chunk(2, dim=-1)
        found = attention(
            heads(z),
            heads(k),
            heads(v),
            attn_mask=attn_mask,
            key_pad=self._key_pad(name, mask_pad, memory_mask_pad, (length, past, batch), z.device),
            is_causal=is_causal,
            dropout=self.attn_dropout if self.training else 0.0,
        )
        found = found.permute(2, 0, 1, 3).flatten(2)
        if packing is not None:
            found = packing.unpad(found)
        result = found * self.alpha + residual
        if norm is not None and self.normalize_after:
            result = norm(result)
        return self.dropout(result)

    @staticmethod
    def _key_pad(name, mask_pad, memory_mask_pad, sizes, device) -> Tensor | None:
        """(B, M + L) bool, True for pads, or None."""
        length, past, batch = sizes
        if past == 0:
            memory_mask_pad = None
        if mask_pad is None and memory_mask_pad is None:
            return None
        parts = []
        for argument, mask, steps in (
            ("memory_mask_pad", memory_mask_pad, past),
            ("mask_pad", mask_pad, length),
        ):
            if mask is None:
                parts.append(torch.zeros((steps, batch), dtype=torch.bool, device=device))
            else:
                parts.append(scan_checks.mask(name, argument, mask, device, (steps, batch)))
        return torch.cat(parts).t()

    @scripts_as(_script_srupp.attention)
    def forward(
        self,
        input: Tensor,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask_pad: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """U of an input.

        Args:
            input: (L, B, I).
            mask_pad: (L, B), of any dtype: nonzero for keys that nobody attends to.
            attn_mask: (L, M + L), added to the scores: -inf where a query must not look.
            memory: (M, B, I), more keys, before the input's. memory_mask_pad: (M, B).
            is_causal: queries see the memory and what is not after them; in place of attn_mask.

        Returns:
            (L, B, O*K). Where a query may see no key, attention contributes 0.
        """
        name = type(self).__name__
        try:
            scan_checks.features(name, _checks.tensor(name, "input", input), self.in_features, "in_features")
            scan_checks.dims(name, input, (3,), "(L, B, I)")
            masks = {"mask_pad": mask_pad, "attn_mask": attn_mask, "is_causal": is_causal}
            past = memory
            if memory is not None and memory_mask_pad is not None:
                past = memory_without_pads(name, memory, memory_mask_pad)
            found = self.features(input, memory=past, memory_mask_pad=memory_mask_pad, **masks)
            return run_scan.product(self.linear3, found)
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, SRUppAttention.forward, locals())) is None:
                raise
            return node


def memory_without_pads(name: str, memory: Tensor, mask: Tensor) -> Tensor:
    """A memory (M, B, I) with zeros for its pads, see run_scan.without_pads; what does not fit is
    left for the checks that name it."""
    if not isinstance(memory, Tensor) or not isinstance(mask, Tensor) or mask.shape != memory.shape[:2]:
        return memory
    mask = scan_checks.mask(name, "memory_mask_pad", mask, memory.device, tuple(mask.shape))
    return run_scan.without_pads(memory, mask)
