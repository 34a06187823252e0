"""The recurrences without a product, and the sLSTM, for tests: cases, inputs, their definitions in float64,
and the comparison of what the operators compute with these."""

from __future__ import annotations

from typing import NamedTuple

import torch
from helpers import randn
from tolerances import TOLERANCES, error
from torch import Tensor, nn

from fastrnn import reference
from fastrnn._cells import minimal
from fastrnn._ops import elementwise

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
CELLS = ("linear", "mingru", "mingru_log", "minlstm", "minlstm_log", "indrnn_tanh", "indrnn_relu")
NAMES = ("y", "last", "grad x", "grad b", "grad weight", "grad h0")
STATES = ("y", "h", "c", "n", "m", "grad gx", "grad weight", "grad h0", "grad c0", "grad n0", "grad m0")


class Case(NamedTuple):
    cell: str
    T: int = 7
    B: int = 3
    H: int = 20
    dtype: torch.dtype = F32
    reverse: bool = False
    start: bool = True
    lengths: bool = False
    reset: bool = False
    heads: int = 1


def rows(case: Case) -> tuple[Tensor | None, Tensor | None]:
    lengths = reset = None
    if case.lengths:
        lengths = torch.tensor([max(0, case.T - 2 * b) for b in range(case.B)])
    if case.reset:
        reset = torch.rand(case.T, case.B, generator=torch.Generator().manual_seed(3)) < 0.3
    return lengths, reset


def inputs_of(case: Case) -> list[Tensor | None]:
    T, B, H = case.T, case.B, case.H

    def draw(*shape, seed, scale=1.0):
        return (scale * randn(*shape, dtype=F64, seed=seed)).to(case.dtype)

    h0 = draw(B, H, seed=4) if case.start else None
    if case.cell == "slstm":
        states = [draw(B, H, seed=5 + i) for i in range(4)] if case.start else [None] * 4
        if case.start:  # c of what n is the normaliser of
            states[2] = states[2].abs() + 0.5
        return [draw(T, B, 4 * H, seed=1), draw(4 * H, H // case.heads, seed=2, scale=0.3), *states]
    if case.cell == "linear":  # in part so small that nothing is left of a state
        return [draw(T, B, H, seed=1, scale=0.7), draw(T, B, H, seed=2), None, h0]
    gates = {"mingru": 2, "minlstm": 3, "indrnn": 1}[case.cell.partition("_")[0]]
    x = draw(T, B, gates * H, seed=1, scale=2.0 if gates > 1 else 0.7)
    if gates > 1:
        return [x, None, None, h0]
    if case.cell == "indrnn_relu":  # whose derivative jumps at zero, where rounding would decide its side
        x = x + x.sign()
    return [x, None, draw(H, seed=3, scale=0.3), h0]


def definition(case: Case, x, b, weight, h0, *, lengths, reset) -> tuple[Tensor, Tensor]:
    """In torch's operations, without anything of the package's operators."""
    options = {"lengths": lengths, "reset": reset, "reverse": case.reverse}
    name, _, option = case.cell.partition("_")
    start = x.new_zeros(case.B, case.H) if h0 is None else h0
    if name == "indrnn":
        return reference.indrnn(x, weight, start, relu=option == "relu", **options)
    if name != "linear":
        x, b = getattr(minimal, name)(x, option == "log")
    y = reference.linear_scan(x, b, start, **options)
    last = []
    for row in range(case.B):
        steps = case.T if lengths is None else int(lengths[row])
        at = 0 if case.reverse else steps - 1
        last.append(y[at, row] if steps else start[row])
    return y, torch.stack(last)


def run(case: Case, compute, inputs) -> list[Tensor | None]:
    """Results and gradients."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    results = compute(*leaves)
    cotangents = [randn(*r.shape, dtype=F64, seed=11 + i).to(case.dtype) for i, r in enumerate(results)]
    given = [t for t in leaves if t is not None]
    grads = [c.to(r.dtype) for c, r in zip(cotangents, results, strict=True)]
    found = iter(torch.autograd.grad(results, given, grads))
    return [*results, *(None if t is None else next(found) for t in leaves)]


def computed(case: Case, inputs=None) -> list[Tensor | None]:
    """By the kernels."""
    lengths, reset = rows(case)
    options = {"lengths": lengths, "reset": reset, "reverse": case.reverse}

    def compute(*t):
        if case.cell == "slstm":
            y, last = elementwise.slstm(t[0], t[1], t[2:] if case.start else None, **options)
            return y, *last
        return elementwise.scan(case.cell, *t, **options)

    return run(case, compute, inputs or inputs_of(case))


def expected(case: Case, inputs=None) -> list[Tensor | None]:
    """By the definition in float64 of the same numbers."""
    lengths, reset = rows(case)

    def compute(*t):
        if case.cell == "slstm":
            states = tuple(t[0].new_zeros(case.B, case.H) if s is None else s for s in t[2:])
            more = {"lengths": lengths, "reset": reset, "reverse": case.reverse}
            y, last = reference.slstm(t[0], t[1], states, **more)
            return y, *last
        return definition(case, *t, lengths=lengths, reset=reset)

    return run(case, compute, [None if t is None else t.double() for t in inputs or inputs_of(case)])


def check(case: Case) -> None:
    got, want = computed(case), expected(case)
    for name, g, w in zip(STATES if case.cell == "slstm" else NAMES, got, want, strict=True):
        assert (g is None) == (w is None), name
        if g is None:
            continue
        assert g.dtype == case.dtype, name
        assert g.shape == w.shape, name
        limit = TOLERANCES[case.dtype][name.startswith("grad")]
        assert error(g, w) <= limit, f"{case}: {name} {error(g, w):.1e}"


class WithRows(nn.Module):
    """A layer with lengths, resets and a state in the order of their places, for exporters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, lengths, reset, *states):
        hx = states if len(states) > 1 else states[0]
        return self.layer(x, hx, lengths=lengths, reset=reset)
