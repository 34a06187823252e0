"""The data of a case: one torch.nn module and its input, from which every contender is made."""

from __future__ import annotations

import torch
from torch import nn

from .cases import BESIDE, ELEMENTWISE_CELLS, GATES, SRU_CELLS, Case, heads

_MODULES = {
    ("layers", "lstm"): nn.LSTM,
    ("layers", "gru"): nn.GRU,
    ("layers", "rnn"): nn.RNN,
    ("cells", "lstm"): nn.LSTMCell,
    ("cells", "gru"): nn.GRUCell,
    ("cells", "rnn"): nn.RNNCell,
}


class Problem:
    """Weights, input, state and incoming gradient of a case, the same for every contender.

    Attributes:
        module: the torch.nn module with the weights, or fastrnn's of what torch.nn has not and of variants;
            in eval mode for inference.
        x: (T, B, I), or (B, I) for a single step; padded with zeros where the case is packed.
        lengths: (B,) int64 of a packed case, else None.
        state: (h,) or (h, c), each (B, H), for a single step; None for layers, which start from zeros.
        grad: gradient that reaches the output in training: (T, B, P or H), (N, H) for packed rows, or (B, H).
    """

    def __init__(self, case: Case, seed: int = 0):
        self.case = case
        dtype, device = getattr(torch, case.storage), torch.device(case.device)
        kind = "cells" if case.path == "cells" else "layers"
        options = module_options(case)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if case.cell in BESIDE:
                self.module = own_module(case, "reference").to(device, dtype)
            elif case.variant:
                self.module = variant_module(case, "reference").to(device, dtype)
            else:
                self.module = _MODULES[kind, case.cell](case.I, case.H, **options).to(device, dtype)
            self.module.train(case.training)
            single = kind == "cells"
            x = torch.randn((case.B, case.I) if single else (case.T, case.B, case.I), device=device)
            states = 2 if case.cell == "lstm" else 1
            h = [0.5 * torch.randn(case.B, case.H).tanh() for _ in range(states)] if single else []
            lengths = case.lengths()
            rows = (case.B,) if single else (case.T, case.B) if lengths is None else (sum(lengths),)
            # Of a size that keeps the gradients of the weights near 1, whatever the case.
            width = case.H if case.cell in BESIDE else case.directions * (case.P or case.H)
            grad = torch.randn(*rows, width, device=device) / (case.T * case.B) ** 0.5
        self.lengths = None
        if lengths is not None:
            self.lengths = torch.tensor(lengths)
            x = x * (torch.arange(case.T)[:, None] < self.lengths)[..., None].to(device)
        self.x = self._off_the_corner(x.to(device, dtype))
        self.state = tuple(s.to(device, dtype) for s in h) or None
        self.grad = grad.to(device, dtype)

    def _off_the_corner(self, x: torch.Tensor) -> torch.Tensor:
        """x, of MinGRU in log space with other rows in the place of those of which a candidate is so near to
        0 that two products' rounding could differ about its sign.

        There its derivative jumps from 1/4 to 1. Of millions of candidates some are always that near, and
        then right gradients of two contenders differ by more than two wrong ones may.
        """
        if self.case.cell != "mingru" or not self.case.training:
            return x
        weight, bias = (p.detach().double().chunk(2)[1] for p in self.module.parameters())
        draw = torch.Generator(x.device).manual_seed(self.case.H)
        with torch.no_grad():
            while (near := _near_zero(x, weight, bias)).any():
                rows = torch.randn(x[near].shape, device=x.device, generator=draw)
                x[near] = rows.to(x.dtype)
        return x

    def weights(self) -> list[torch.Tensor]:
        """The module's parameters in torch's order: w_ih, w_hh, b_ih, b_hh, and w_hr with a projection."""
        return [p.detach() for p in self.module.parameters()]


def _near_zero(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Of which rows of x a product with the weight may be 0 as x's dtype has it: (T, B) bool."""
    size = x.abs().double() @ weight.abs().t()  # of the sum's parts, to which its rounding is relative
    value = x.double() @ weight.t() + bias
    return (value.abs() < torch.finfo(x.dtype).eps * size).any(-1)


def module_options(case: Case) -> dict:
    """A module's keyword arguments beyond its sizes."""
    options: dict = {"proj_size": case.P} if case.P else {}
    if case.path != "cells":
        options |= {"num_layers": case.layers, "bidirectional": case.directions == 2}
    return options


def flops(case: Case) -> float:
    """Multiplications and additions of the matrix products; backward costs twice the forward pass."""
    steps = sum(case.lengths() or [case.T * case.B])
    hidden = case.P or case.H
    if case.cell in SRU_CELLS:
        # Attention: three products through P features, and two over all pairs of steps.
        products = GATES[case.cell] * case.H * case.I
        if case.P:
            products = case.P * (case.I + 2 * case.P + GATES[case.cell] * case.H)
        forward = 2.0 * steps * products + 4.0 * steps * case.T * case.P
        return forward * (3 if case.training else 1)
    if case.cell in ELEMENTWISE_CELLS:
        recurrent = 4 * case.H * case.H // own_heads(case) if case.cell == "slstm" else case.H
        return 2.0 * steps * (GATES[case.cell] * case.H * case.I + recurrent) * (3 if case.training else 1)
    forward = 0.0
    for layer in range(case.layers):
        inputs = case.directions * hidden if layer else case.I
        layer_flops = GATES[case.cell] * case.H * (inputs + hidden // heads(case)) + case.H * case.P
        forward += 2.0 * steps * case.directions * layer_flops
    return forward * (3 if case.training else 1)


def weight_bytes(case: Case) -> tuple[int, int]:
    """Bytes of the recurrent weights, which every step reads, and of the input weights, read once."""
    size = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}[case.storage]
    hidden, D = case.P or case.H, case.directions
    if case.cell in SRU_CELLS:
        products = case.P * (case.I + 2 * case.P + 3 * case.H) if case.P else 3 * case.H * case.I
        return size * 4 * case.H, size * products
    if case.cell == "linear_scan":  # a and b, of which every step reads its own
        return size * 2 * case.B * case.H, 0
    if case.cell in ELEMENTWISE_CELLS:
        recurrent = {"indrnn": case.H, "slstm": 4 * case.H * case.H // own_heads(case)}.get(case.cell, 0)
        return size * recurrent, size * GATES[case.cell] * case.H * case.I
    recurrent = case.layers * D * (GATES[case.cell] * case.H * hidden // heads(case) + case.H * case.P)
    inputs = case.I + (case.layers - 1) * D * hidden
    return size * recurrent, size * D * GATES[case.cell] * case.H * inputs


def variant_module(case: Case, backend: str) -> nn.Module:
    """fastrnn's module of a variant, on any backend."""
    import fastrnn

    options = module_options(case) | case.options()
    return getattr(fastrnn, case.cell.upper())(case.I, case.H, backend=backend, **options)


class LinearScan(nn.Module):
    """linear_scan with a and h0 as parameters."""

    def __init__(self, steps: int, rows: int, hidden: int):
        super().__init__()
        self.a = nn.Parameter(torch.rand(steps, rows, hidden))
        self.h0 = nn.Parameter(torch.randn(rows, hidden))

    def forward(self, b: torch.Tensor):
        from fastrnn import functional

        return functional.linear_scan(self.a, b, self.h0)


def own_heads(case: Case) -> int:
    """Of an sLSTM, as the module has them; 1 of the others."""
    return getattr(own_module(case, "auto", "meta"), "num_heads", 1)


def own_module(case: Case, backend: str, device: str = "cpu") -> nn.Module:
    """fastrnn's one-layer module of what torch.nn has not, on any backend where there are several."""
    import fastrnn
    from fastrnn.proof import elementwise

    if case.cell == "linear_scan":
        return LinearScan(case.T, case.B, case.H)
    if case.cell in ELEMENTWISE_CELLS:
        return elementwise.layer(case.cell, case.I, case.H, device=device)
    options = {"num_layers": 1, "backend": backend}
    if case.cell == "srupp":
        return fastrnn.SRUpp(case.I, case.H, case.P, **options)
    return fastrnn.SRU(case.I, case.H, **options)
