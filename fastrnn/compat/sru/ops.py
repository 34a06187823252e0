"""The elementwise recurrence as ``sru.ops`` has it, in the package's layout."""

from __future__ import annotations

from torch import Tensor

from ..._checks import scan as scan_checks
from ..._run import scan as run_scan

__all__ = [
    "elementwise_recurrence_gpu",
    "elementwise_recurrence_inference",
    "elementwise_recurrence_naive",
]


def elementwise_recurrence(
    U: Tensor,
    x: Tensor,
    weight_c: Tensor,
    bias: Tensor,
    c_init: Tensor | None,
    activation_type: int,
    hidden_size: int,
    bidirectional: bool,
    has_skip_term: bool,
    scale_x: Tensor | None = None,
    dropout_mask_c: Tensor | None = None,
    mask_pad: Tensor | None = None,
    amp_recurrence_fp16: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence of one SRU layer on any device, differentiable.

    Args:
        U: (L, B, O*K) or any shape of these numbers, K = 3 or 4, the K of a unit side by side.
        x: (L, B, O), or (B, O) for one step: the highway's input for K = 3.
        weight_c: (2*O,), or (L, B, O*2) with the two gates of a unit side by side. bias: (2*O,).
        c_init: (B, O), or None for zeros. activation_type: 0 for none, 1 for tanh.
        scale_x: (1,), a factor of x for K = 3. dropout_mask_c: (B, O). mask_pad: (L, B), nonzero for pads.
        amp_recurrence_fp16: accepted; the dtype is U's.

    Returns:
        h (L, B, O) and the last c (B, O).
    """
    name = "elementwise_recurrence"
    if activation_type not in (0, 1):
        raise ValueError(f"{name}: activation_type should be 0 or 1, got {activation_type}")
    x = x.unsqueeze(0) if x.dim() == 2 else x
    steps = x.shape[:2]
    features = hidden_size * (2 if bidirectional else 1)
    k = U.size(-1) // features
    if k not in (3, 4):
        raise scan_checks.SizeError(f"{name}: U.size(-1) should be 3 or 4 times {features}, got {U.size(-1)}")
    scan_checks.transformed(name, "U", U, steps, features * k)
    v = None
    if weight_c.dim() > 1:
        v = run_scan.gate_major(weight_c.reshape(*steps, 2 * features), 2)
        weight_c = weight_c.new_zeros((2, features))
    skip = None
    if has_skip_term and k == 3:
        skip = x if scale_x is None else x * scale_x.to(x.dtype)
    return run_scan.scan(
        run_scan.gate_major(U.reshape(*steps, features * k), k),
        skip,
        weight_c.view(2, features),
        bias.view(2, features),
        x.new_zeros((steps[1], features)) if c_init is None else c_init.view(steps[1], features),
        v=v,
        mask_pad=None if mask_pad is None else mask_pad.view(steps) != 0,
        drop_mask=dropout_mask_c,
        use_tanh=activation_type == 1,
        bidirectional=bidirectional,
        backend="auto",
    )


# The package has one for each device and mode; here they are the same.
elementwise_recurrence_gpu = elementwise_recurrence
elementwise_recurrence_inference = elementwise_recurrence
elementwise_recurrence_naive = elementwise_recurrence
