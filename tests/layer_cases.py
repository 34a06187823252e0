"""Cases for the raw layer ops (rnn_forward, rnn_backward) on any device, compared with the reference.

The ops are taken from a torch.ops namespace, so that the same cases run on a GPU, on the CPU kernels and on
the emulator of tests/emu. `call` and `differentiated` are the layer above them, with its autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from tolerances import TOLERANCES, worst_of
from torch import Tensor

from fastrnn import reference
from fastrnn._ops import library
from fastrnn._ops.autograd import layer
from fastrnn.proof import numbers

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SAVES = {"nothing": 0, "gates": 1, "recompute": 2}
GRAD_X, GRAD_H0, GRAD_C0, GRAD_WEIGHTS = 1, 2, 4, 8
ALL = GRAD_X | GRAD_H0 | GRAD_C0 | GRAD_WEIGHTS
#: By name, clusters by their size too: "cluster_8".
ALL_TIERS = library.TIERS | library.CLUSTERS | library.OVERLAPS


@dataclass(frozen=True)
class Case:
    """One layer. With `sizes` (batch_sizes) the sequence is packed, and T and B follow from them.

    tier: of the CUDA kernels, both passes. tf32: float32 products may round to TensorFloat-32.
    lengths: of the rows of a padded batch, whose tensors hold NaN beyond them. reset: "some" of the steps or
    "all" begin a new sequence. With either an LSTM's cells have a gradient.
    """

    cell: str
    T: int = 4
    B: int = 3
    IN: int = 5
    H: int = 7
    P: int = 0
    D: int = 1
    bias: bool = True
    dtype: torch.dtype = torch.float64
    sizes: tuple[int, ...] | None = None
    save: str = "gates"
    strided: bool = False
    tier: str = "auto"
    tf32: bool = False
    lengths: tuple[int, ...] | None = None
    reset: str = ""

    @property
    def masked(self) -> bool:
        return self.lengths is not None or bool(self.reset)

    @property
    def tolerance(self) -> tuple[float, float]:
        return numbers.TF32_TOLERANCE if self.tf32 else TOLERANCES[self.dtype]

    @property
    def mode(self) -> int:
        """What tier and TensorFloat-32 add to the ops' mode."""
        return ALL_TIERS[self.tier] + library.TF32 * self.tf32

    def __str__(self) -> str:
        """A test's id: what differs from the plainest case."""
        shape = f"T{self.T}B{self.B}" if self.sizes is None else "packed" + "".join(map(str, self.sizes))
        if self.lengths is not None:
            shape += "-lengths" + "".join(map(str, self.lengths))
        shape += f"-reset-{self.reset}" * bool(self.reset)
        parts = [self.cell, str(self.dtype).removeprefix("torch."), shape, f"I{self.IN}H{self.H}"]
        parts += [f"P{self.P}"] * bool(self.P) + ["bidirectional"] * (self.D == 2)
        parts += (
            ["nobias"] * (not self.bias) + [self.save] * (self.save != "gates") + ["strided"] * self.strided
        )
        parts += [self.tier] * (self.tier != "auto") + ["tf32"] * self.tf32
        return "-".join(parts)


@dataclass
class Problem:
    """A case's tensors, and a gradient for each output."""

    x: Tensor
    h0: Tensor
    c0: Tensor | None
    weights: list[Tensor]
    batch_sizes: Tensor | None
    cotangents: list[Tensor]  # of y, hn and, for an LSTM, cn
    lengths: Tensor | None = None
    reset: Tensor | None = None
    grad_cells: Tensor | None = None
    padding: Tensor = field(default_factory=lambda: torch.tensor(False))  # (T,B) bool: beyond a row's length

    @property
    def rows(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """batch_sizes, lengths and reset, as the ops take them."""
        return self.batch_sizes, self.lengths, self.reset

    def map(self, f: Callable[[Tensor], Tensor]) -> Problem:
        """The same numbers elsewhere: f of every tensor but batch_sizes and lengths, which are on the CPU."""
        c0, reset, grad_cells = (None if t is None else f(t) for t in (self.c0, self.reset, self.grad_cells))
        weights, cotangents = [f(w) for w in self.weights], [f(g) for g in self.cotangents]
        rest = (weights, self.batch_sizes, cotangents, self.lengths, reset, grad_cells, self.padding)
        return Problem(f(self.x), f(self.h0), c0, *rest)


def spread(t: Tensor) -> Tensor:
    """The same values with gaps between elements and dimensions in the opposite order."""
    order = tuple(reversed(range(t.dim())))
    wide = t.permute(order).repeat_interleave(2, dim=-1).contiguous()
    return wide[..., ::2].permute(order)


def problem(case: Case, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (values * scale).to(case.dtype)

    T, B = (len(case.sizes), case.sizes[0]) if case.sizes else (case.T, case.B)
    rows = (sum(case.sizes),) if case.sizes else (T, B)
    G, out = reference.GATES[case.cell], case.P or case.H
    # relu's derivative jumps at 0. In half types and TF32 its sign must not hang on a rounding, so the bias
    # decides it: at least 0.6, against at most 0.5 from the products.
    steady = case.cell == "rnn_relu" and (case.tf32 or case.dtype in (torch.bfloat16, torch.float16))
    x = draw(*rows, case.IN)
    h0 = draw(case.D, B, out)
    c0 = draw(case.D, B, case.H) if case.cell == "lstm" else None
    weights = []
    for _ in range(case.D):
        scale = case.H**-0.5 * (0.2 if steady else 1.0)
        weights += [draw(G * case.H, case.IN, scale=scale), draw(G * case.H, out, scale=scale)]
        if case.bias:
            b_ih, b_hh = draw(G * case.H, scale=0.5), draw(G * case.H, scale=0.5)
            weights += [b_ih + 1.1 * b_ih.sign() if steady else b_ih, b_hh]
        if case.P:
            weights.append(draw(case.P, case.H, scale=case.H**-0.5))
    shapes = [(*rows, case.D * out), h0.shape] + ([] if c0 is None else [c0.shape])
    sizes = torch.tensor(case.sizes) if case.sizes else None
    made = Problem(x, h0, c0, weights, sizes, [draw(*s) for s in shapes])
    if case.masked:
        mask(case, made, generator)
        if case.cell == "lstm":
            made.grad_cells = draw(case.D, T * B, case.H).to(compute_type(case.dtype))
            made.grad_cells.masked_fill_(made.padding.view(-1, 1), torch.nan)
    return made.map(spread) if case.strided else made


def mask(case: Case, p: Problem, generator: torch.Generator) -> None:
    """Give the problem the case's lengths, repeated to its rows, and its resets, step 0 among them."""
    T, B = case.T, p.h0.size(1)
    if case.lengths is not None:
        p.lengths = torch.tensor([case.lengths[b % len(case.lengths)] for b in range(B)], dtype=torch.int64)
        p.padding = torch.arange(T).unsqueeze(1) >= p.lengths
        for t in (p.x, p.cotangents[0]):
            t.masked_fill_(p.padding.unsqueeze(2), torch.nan)
    if case.reset:
        p.reset = torch.rand(T, B, generator=generator) < 0.3
        p.reset[0 if case.reset == "some" else slice(None)] = True
        p.reset[1 % T, : B // 2 + 1] = True  # within rows, whatever was drawn


def inputs_of(p: Problem) -> list[Tensor]:
    """The tensors that a forward pass reads."""
    return [t for t in (p.x, p.h0, p.c0, *p.weights, p.reset) if t is not None]


def compute_type(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def names(case: Case) -> list[str]:
    """Of the results, in the order of expected() and fused()."""
    states = ["h", "c"] if case.cell == "lstm" else ["h"]
    per_direction = ["w_ih", "w_hh"] + ["b_ih", "b_hh"] * case.bias + ["w_hr"] * bool(case.P)
    weights = [f"{w}[{d}]" for d in range(case.D) for w in per_direction]
    return [
        "y",
        *(f"{s}n" for s in states),
        *(f"grad {n}" for n in ["x", *(f"{s}0" for s in states), *weights]),
    ]


def expected(case: Case, p: Problem, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Outputs and every gradient by the reference, that is by torch's own operations."""
    padding = p.padding.unsqueeze(-1)
    inputs = [p.x.masked_fill(padding, 0), p.h0] + ([] if p.c0 is None else [p.c0]) + p.weights
    leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
    x, h0, *rest = leaves
    c0 = None if p.c0 is None else rest.pop(0)
    rows = {"batch_sizes": p.batch_sizes, "lengths": p.lengths, "reset": p.reset}
    y, hn, cn, cells = reference.layer(
        x, h0, c0, rest, cell=case.cell, bias=case.bias, keep_cells=True, **rows
    )
    outputs = [y, hn] + ([] if cn is None else [cn])
    to, cotangents = list(outputs), [g.to(dtype) for g in p.cotangents]
    cotangents[0] = cotangents[0].masked_fill(padding, 0)
    if p.grad_cells is not None:
        to.append(cells)
        cotangents.append(p.grad_cells.to(dtype).masked_fill(p.padding.view(-1, 1), 0))
    gradients = torch.autograd.grad(to, leaves, cotangents)
    return [*(t.detach() for t in outputs), *gradients]


def forward(ops, case: Case, p: Problem, save: str | None = None) -> tuple[Tensor, ...]:
    """(y, hn, cn, gates, cells) of the op."""
    mode = SAVES[save or case.save] + case.mode
    return ops.rnn_forward(p.x, p.h0, p.c0, p.weights, *p.rows, case.cell, case.bias, mode)


def backward(ops, case: Case, p: Problem, saved: tuple[Tensor, ...], needs: int = ALL):
    """(grad_x, grad_h0, grad_c0, grad_weights) of the op, from what forward returned."""
    y, _, _, gates, cells = saved
    grads = [*p.cotangents, None][:3]
    rest = (y, gates, cells, case.cell, case.bias, needs + case.mode)
    return ops.rnn_backward(*grads, p.grad_cells, p.x, p.h0, p.c0, p.weights, *p.rows, *rest)


def fused(ops, case: Case, p: Problem) -> list[Tensor]:
    """Outputs and every gradient by the ops."""
    saved = forward(ops, case, p)
    x, h0, c0, weights = backward(ops, case, p, saved)
    lstm = case.cell == "lstm"
    return [*saved[: 2 + lstm], x, h0, *([c0] if lstm else []), *weights]


def leaves_of(p: Problem) -> list[Tensor]:
    """Inputs in the order of layer's arguments, with their strides, asking for gradients."""
    return [t.detach().requires_grad_() for t in [p.x, p.h0, *([] if p.c0 is None else [p.c0]), *p.weights]]


def call(case: Case, p: Problem, leaves: list[Tensor]) -> list[Tensor]:
    """y, hn and, for an LSTM, cn."""
    x, h0, *rest = leaves
    c0 = rest.pop(0) if case.cell == "lstm" else None
    y, hn, cn = layer(
        x, h0, c0, rest, cell=case.cell, bias=case.bias, batch_sizes=p.batch_sizes, save=case.save
    )
    return [y, hn] if cn is None else [y, hn, cn]


def differentiated(case: Case, p: Problem) -> list[Tensor]:
    """Outputs and every gradient of the fused layer, by autograd."""
    leaves = leaves_of(p)
    outputs = call(case, p, leaves)
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, leaves, p.cotangents)]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def worst(case: Case, got: list[Tensor], want: list[Tensor]) -> tuple[float, str]:
    """The largest error in units of its tolerance, and where it is. Shapes and dtypes have to be right."""
    return worst_of(names(case), got, want, case.tolerance, case.dtype)


def check(ops, case: Case, move: Callable[[Tensor], Tensor] = lambda t: t, seed: int = 0) -> None:
    """The ops against the reference, on tensors that `move` has taken where the ops work."""
    p = problem(case, seed)
    ratio, what = worst(case, fused(ops, case, p.map(move)), expected(case, p))
    assert ratio <= 1, what


PACKED = (5, 4, 4, 2, 1, 1)


def grid() -> list[Case]:
    """Every cell, dtype, direction and way of saving; padded and packed; projections; odd and tiny sizes."""
    cases = []
    for cell in CELLS:
        plain = Case(cell)
        for dtype in DTYPES:
            for D in (1, 2):
                for sizes in (None, PACKED):
                    save = "recompute" if (D == 2) == (sizes is None) else "gates"
                    cases.append(replace(plain, dtype=dtype, D=D, sizes=sizes, save=save))
        for save in ("gates", "recompute"):
            cases.append(replace(plain, bias=False, save=save))
            cases.append(replace(plain, D=2, sizes=PACKED, bias=False, save=save))
        cases += [
            replace(plain, T=1, B=1, IN=1, H=1),
            replace(plain, T=1, B=1, D=2, dtype=torch.float32),
            replace(plain, T=9, B=2, IN=3, H=33, D=2, dtype=torch.float32),
            replace(plain, T=2, B=2, IN=2, H=130, D=2),  # two pieces a row
            replace(plain, T=2, B=131, IN=2, H=1),  # many rows a block
            replace(plain, sizes=(1, 1, 1), D=2, save="recompute"),
            replace(plain, sizes=(4, 4, 4), D=2),
            replace(plain, strided=True),
            replace(plain, strided=True, D=2, sizes=PACKED, save="recompute"),
        ]
    for dtype in DTYPES:
        for D in (1, 2):
            for sizes in (None, PACKED):
                for save in ("gates", "recompute"):
                    cases.append(Case("lstm", P=3, dtype=dtype, D=D, sizes=sizes, save=save))
    cases += [Case("lstm", P=3, bias=False, strided=True, D=2), Case("lstm", P=1, H=2, T=1, B=1)]
    return cases


#: Rows of no step, of one, of some; none takes all of T = 4 steps.
LENGTHS = (2, 0, 3, 1)


def masked_grid() -> list[Case]:
    """Lengths, resets and both: every cell, direction and way of saving, projections, no step at all."""
    cases = []
    for cell in CELLS:
        for P in (0, 3) if cell == "lstm" else (0,):
            for D in (1, 2):
                for save in ("gates", "recompute"):
                    plain = Case(cell, B=6, D=D, P=P, save=save)
                    cases += [
                        replace(plain, lengths=LENGTHS),
                        replace(plain, reset="some", bias=False),
                        replace(plain, lengths=LENGTHS, reset="some", dtype=torch.bfloat16),
                    ]
            plain = Case(cell, P=P, D=2)
            cases += [
                replace(plain, lengths=(0,)),
                replace(plain, lengths=(4,), reset="all"),
                replace(plain, lengths=(1, 4), reset="some", strided=True, save="recompute"),
                replace(plain, T=1, B=1, IN=1, H=1, P=min(P, 1), reset="all"),
                replace(plain, B=2, IN=2, H=130, lengths=LENGTHS, reset="some", dtype=torch.float32),
            ]
    return cases
