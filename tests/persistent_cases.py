"""Cases for the persistent kernels alone (tests/emu/emu_persistent.cpp), against the float64 reference.

What goes in is x's part of the gates, what comes out their gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tolerances import TOLERANCES, worst_of
from torch import Tensor

from fastrnn import reference
from fastrnn.proof.numbers import Tolerance
from fastrnn.reference import masked_layer

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
TIERS = {"one CTA": 1, "grid": 2, "cluster": 4}  # params/mode.h's Tier

#: TF32 rounds to as many bits as float16.
LIMITS = {name: TOLERANCES[getattr(torch, name, torch.float16)] for name in PRECISIONS}
assert isinstance(LIMITS["tf32"], Tolerance)


@dataclass(frozen=True)
class Case:
    """One layer, without its input projection unless `inputs` says of how many features.

    With `sizes` (batch_sizes) it is packed, T and B follow.
    lengths: of the rows of a padded batch, repeated to B of them. resets: where sequences begin again, "some"
    at random with all of step 0, or "all". Cells then have a gradient of their own.
    """

    cell: str
    precision: str
    tier: str
    T: int = 5
    B: int = 9
    H: int = 33
    D: int = 2
    sizes: tuple[int, ...] | None = None
    bias: bool = True
    strided: bool = False
    absent: bool = False  # no incoming gradients but that of y
    sms: int = 132
    cluster: int = 4  # CTAs, of the cluster tier
    lengths: tuple[int, ...] | None = None
    resets: str = ""
    inputs: int = 0
    shift: int = 0  # elements by which the rows of the weights begin later, and lie further apart

    def __str__(self) -> str:
        """A test's id."""
        shape = (
            f"T{self.T}B{self.B}" if self.sizes is None else "packed" + "".join(map(str, self.sizes))
        ) + f"H{self.H}D{self.D}sms{self.sms}"
        tier = f"cluster{self.cluster}" if self.tier == "cluster" else self.tier.replace(" ", "")
        if self.lengths is not None:
            shape += "lengths" + "".join(map(str, self.lengths))
        shape += f"reset{self.resets}" * bool(self.resets)
        shape += f"I{self.inputs}" * bool(self.inputs)
        more = ["nobias"] * (not self.bias) + ["strided"] * self.strided + ["absent"] * self.absent
        more += [f"shift{self.shift}"] * bool(self.shift)
        return "-".join([self.cell, self.precision, tier, shape, *more])

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision, torch.float32)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self.sizes or (self.B,) * self.T

    @property
    def masked(self) -> bool:
        return self.lengths is not None or bool(self.resets)


@dataclass
class Problem:
    """A case's tensors. Absent ones are empty."""

    gx: Tensor  # (D,N,G*H); float64 where the kernel makes it of x
    w_hh: list[Tensor]
    b_ih: list[Tensor]
    b_hh: list[Tensor]
    h0: Tensor
    c0: Tensor
    offsets: Tensor  # packed
    lengths: Tensor  # (B,), packed or masked
    resets: Tensor  # (T,B) uint8
    grad_y: Tensor  # (N,D*H)
    grad_hn: Tensor
    grad_cn: Tensor
    grad_cells: Tensor  # (D,N,H) float
    x: Tensor  # (N,I)
    w_ih: list[Tensor]  # (G*H,I)

    def running(self, T: int) -> Tensor:
        """(T*B, 1): the rows of a padded batch that are within their length."""
        B = self.h0.size(1)
        lengths = self.lengths if self.lengths.numel() else torch.full((B,), T)
        return (torch.arange(T).unsqueeze(1) < lengths).view(-1, 1)


def wider(t: Tensor) -> Tensor:
    """The same values in rows an odd number of elements apart that begin at an odd one."""
    rows = torch.full((*t.shape[:-1], t.shape[-1] + 3 - t.shape[-1] % 2), torch.nan, dtype=t.dtype)
    rows[..., 1 : 1 + t.shape[-1]] = t
    return rows[..., 1 : 1 + t.shape[-1]]


def shifted(t: Tensor, by: int) -> Tensor:
    """The same values in rows that begin `by` elements later and lie as much further apart, NaN between."""
    rows = torch.full((t.shape[0], t.shape[1] + by), torch.nan, dtype=t.dtype)
    rows[:, by:] = t
    return rows[:, by:]


def problem(case: Case, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (values * scale).to(case.dtype)

    G, H, D, sizes = reference.GATES[case.cell], case.H, case.D, case.batch_sizes
    N, B = sum(sizes), sizes[0]
    # relu's derivative jumps at 0: the bias decides the sign, not a rounding.
    steady = case.cell == "rnn_relu"
    none = torch.empty(0, dtype=case.dtype)
    gx = draw(D, N, G * H, scale=0.3 if steady else 1.0)
    x, w_ih = none, []
    if case.inputs:
        x, scale = draw(N, case.inputs), case.inputs**-0.5 * (0.3 if steady else 1.0)
        w_ih = [draw(G * H, case.inputs, scale=scale) for _ in range(D)]
        gx = torch.stack([x.double() @ w.double().T for w in w_ih])
    w_hh = [draw(G * H, H, scale=H**-0.5 * (0.2 if steady else 1.0)) for _ in range(D)]
    b_ih, b_hh = ([draw(G * H, scale=0.5) for _ in range(D)] for _ in range(2))
    if steady:
        b_ih = [b + 1.1 * b.sign() for b in b_ih]
    if not case.bias:
        b_ih, b_hh = [torch.zeros_like(b) for b in b_ih], [torch.zeros_like(b) for b in b_hh]
        if steady:
            gx = gx + 1.1 * gx.sign()
    state = (D, B, H)
    table = [0]
    for n in sizes:
        table.append(table[-1] + n)
    lstm = case.cell == "lstm"
    lengths = case.lengths and [case.lengths[b % len(case.lengths)] for b in range(B)]
    if case.sizes:
        lengths = [sum(n > b for n in sizes) for b in range(B)]
    resets = torch.empty(0, dtype=torch.uint8)
    if case.resets:
        resets = (torch.rand(case.T, B, generator=generator) < 0.3).to(torch.uint8)
        resets[0 if case.resets == "some" else slice(None)] = 1
        resets[1 % case.T, : B // 2 + 1] = 1  # within rows, whatever was drawn
    made = Problem(
        gx,
        w_hh,
        b_ih,
        b_hh,
        draw(*state),
        draw(*state) if lstm else none,
        torch.tensor(table if case.sizes else [], dtype=torch.int64),
        torch.tensor(lengths or [], dtype=torch.int64),
        resets,
        draw(N, D * H),
        none if case.absent else draw(*state),
        draw(*state) if lstm and not case.absent else none,
        draw(D, N, H).float() if lstm and case.masked else torch.empty(0),
        x,
        w_ih,
    )
    if case.masked:  # beyond its length a row is not read
        padding = ~made.running(case.T)
        made.gx = made.gx.masked_fill(padding, torch.nan)
        made.x = made.x.masked_fill(padding, torch.nan) if case.inputs else none
        made.grad_y = made.grad_y.masked_fill(padding, torch.nan)
        made.grad_cells = made.grad_cells.masked_fill(padding, torch.nan)
    if case.shift:
        made.w_hh, made.w_ih = ([shifted(w, case.shift) for w in of] for of in (w_hh, w_ih))
    if case.strided:
        made.gx, made.grad_y = wider(made.gx), wider(made.grad_y)
        made.w_hh, made.w_ih = ([wider(w) for w in of] for of in (w_hh, w_ih))
    return made


def names(case: Case) -> list[str]:
    lstm = case.cell == "lstm"
    grads = ["gx", "b_hh", "h0", *(["c0"] if lstm else [])]
    return ["y", "hn", *(["cn"] if lstm else []), *(f"grad {g}" for g in grads)]


def expected(case: Case, p: Problem) -> list[Tensor]:
    """By the reference: both directions' gx is its x, and w_ih picks a direction's."""
    G, H, D = reference.GATES[case.cell], case.H, case.D
    padding = ~p.running(case.T) if case.masked else torch.tensor(False)
    x = torch.cat(list(p.gx.double().masked_fill(padding, 0)), dim=-1).requires_grad_()
    eye = torch.eye(D * G * H, dtype=torch.float64)
    h0 = p.h0.double().requires_grad_()
    lstm = case.cell == "lstm"
    c0 = p.c0.double().requires_grad_() if lstm else None
    b_hh = [b.double().requires_grad_() for b in p.b_hh]
    weights = []
    for d in range(D):
        weights += [eye[d * G * H : (d + 1) * G * H], p.w_hh[d].double(), p.b_ih[d].double(), b_hh[d]]
    rows = x if case.sizes else x.view(case.T, case.B, -1)
    if case.masked:
        lengths, reset = (p.lengths if p.lengths.numel() else None), (p.resets if case.resets else None)
        masks = {"lengths": lengths, "reset": reset}
        y, hn, cn, cells = masked_layer(rows, h0, c0, weights, cell=case.cell, bias=True, **masks)
    else:
        sizes = torch.tensor(case.sizes) if case.sizes else None
        y, hn, cn = reference.layer(rows, h0, c0, weights, cell=case.cell, bias=True, batch_sizes=sizes)
    outputs = [y, hn] + ([cn] if lstm else [])
    gradients = [p.grad_y.masked_fill(padding, 0).reshape(y.shape)]
    states = zip((p.grad_hn, p.grad_cn), outputs[1:], strict=False)
    gradients += [g if g.numel() else torch.zeros_like(o) for g, o in states]
    if lstm and case.masked:
        outputs.append(cells)
        gradients.append(p.grad_cells.masked_fill(padding, 0))
    leaves = [x, *b_hh, h0, *([c0] if lstm else [])]
    found = torch.autograd.grad(outputs, leaves, [g.double() for g in gradients])
    dgx = torch.stack(found[0].view(-1, D, G * H).unbind(1))
    return [
        y.detach().reshape(-1, D * H),
        *(o.detach() for o in outputs[1 : 2 + lstm]),
        dgx,
        torch.stack(found[1 : 1 + D]),
        *found[1 + D :],
    ]


def forward(ops, case: Case, p: Problem, save: bool = True, in_place: bool = False):
    """(y, hn, cn, gates, cells, error) of the kernel."""
    precision, tier = PRECISIONS.index(case.precision), TIERS[case.tier]
    biases = [b for of_direction in zip(p.b_ih, p.b_hh, strict=True) for b in of_direction] * case.bias
    gx = p.gx
    if case.inputs:
        gx = ops.guarded(torch.full_like(wider(gx) if case.strided else gx, torch.nan, dtype=case.dtype))
    at = (p.offsets, p.lengths, p.resets, len(case.batch_sizes), case.cell, precision, tier, case.cluster)
    return ops.persistent_forward(gx, p.w_hh, biases, p.x, p.w_ih, p.h0, p.c0, *at, save, in_place, case.sms)


def backward(ops, case: Case, p: Problem, saved, need_state: bool = True, in_place: bool = False):
    """(dgates, dh0, dc0, error) of the kernel, from what forward returned."""
    y, _, _, gates, cells, _ = saved
    precision, tier = PRECISIONS.index(case.precision), TIERS[case.tier]
    at = (p.offsets, p.lengths, p.resets, len(case.batch_sizes), case.cell, precision, tier, case.cluster)
    grads = (p.grad_y, p.grad_hn, p.grad_cn, p.grad_cells)
    saved = (gates, cells, y, p.h0, p.c0)
    return ops.persistent_backward(p.w_hh, *saved, *grads, *at, need_state, in_place, case.sms)


def guarded(ops, p: Problem) -> Problem:
    def move(v):
        return [ops.guarded(t) for t in v] if isinstance(v, list) else ops.guarded(v) if v.numel() else v

    return Problem(*map(move, vars(p).values()))


def fused(ops, case: Case, p: Problem) -> list[Tensor]:
    """What expected() lists, by the kernels, with every contiguous tensor before a guard page."""
    if not case.strided:
        p = guarded(ops, p)
    saved = forward(ops, case, p)
    dgates, dh0, dc0, _ = backward(ops, case, p, saved)
    H, lstm = case.H, case.cell == "lstm"
    if case.masked:
        saved, dgates = within_lengths(case, p, [*saved[:5], dgates])
    of_input = of_recurrence = dgates
    if case.cell == "gru":  # n, r, z, rec
        of_input = torch.cat([dgates[..., H : 3 * H], dgates[..., :H]], dim=-1)
        of_recurrence = dgates[..., H:]
    sums = of_recurrence.double().sum(1)
    return [*saved[: 2 + lstm], of_input, sums, dh0, *([dc0] if lstm else [])]


def within_lengths(case: Case, p: Problem, tensors: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """What forward returned, and dgates: NaN as allocated beyond the rows' lengths, and there now zero."""
    padding = ~p.running(case.T)
    for i in (0, 3, 4, 5):  # the states have no steps
        if tensors[i].numel():
            assert tensors[i][..., padding.squeeze(1), :].isnan().all(), "written beyond a row's length"
            tensors[i] = tensors[i].masked_fill(padding, 0)
    return tensors[:5], tensors[5]


def worst(case: Case, got: list[Tensor], want: list[Tensor]) -> tuple[float, str]:
    """The largest error in units of its tolerance, and where it is."""
    return worst_of(names(case), got, want, LIMITS[case.precision])


def check(ops, case: Case, seed: int = 0) -> None:
    p = problem(case, seed)
    ratio, what = worst(case, fused(ops, case, p), expected(case, p))
    assert ratio <= 1, f"{case}: {what}"
