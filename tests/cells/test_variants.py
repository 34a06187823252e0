"""Variants of the recurrent cells (csrc/cells/policies) by the operators, and their equations in float64."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch

from fastrnn import _ops  # noqa: F401  (loads the operators)

ops = torch.ops.fastrnn
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
CPU_ISAS = ops.cpu_isas().split(",")


class Case(NamedTuple):
    cell: str
    options: tuple[str, ...]
    T: int = 5
    B: int = 4
    I: int = 3  # noqa: E741
    H: int = 9
    P: int = 0
    D: int = 1
    bias: bool = True
    heads: int = 1
    rows: str = ""  # "lengths", "reset", "packed"
    expectation: bool = False  # zoneout as in evaluation

    @property
    def name(self) -> str:
        return "+".join([self.cell, *self.options, *([f"heads={self.heads}"] * (self.heads > 1))])


EPS = 1e-3


class Problem(NamedTuple):
    x: torch.Tensor
    h0: torch.Tensor
    c0: torch.Tensor | None
    weights: list[torch.Tensor]
    masks: list[torch.Tensor]
    a_direction: int
    lengths: torch.Tensor | None
    reset: torch.Tensor | None
    batch_sizes: torch.Tensor | None


def problem(case: Case, dtype=torch.float64) -> Problem:
    generator = torch.Generator().manual_seed(5)

    def draw(*sizes):
        return (torch.rand(sizes, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)

    T, B, H, D, G = case.T, case.B, case.H, case.D, GATES[case.cell]
    out = case.P or H
    lengths = (
        torch.tensor([T, T - 1, 1, *([0] * (B - 3))])[:B] if case.rows in ("lengths", "packed") else None
    )
    if case.rows == "packed":
        lengths = lengths.clamp(min=1)
    weights: list[torch.Tensor] = []
    for _ in range(D):
        one = [draw(G * H, case.I), draw(G * H, out // case.heads)]
        one += [draw(G * H), draw(G * H)] * case.bias + [draw(case.P, H)] * bool(case.P)
        one += [draw(3 * H)] * ("peephole" in case.options)
        if any(o.startswith("norm") for o in case.options):
            one += [draw(G * H) + 1, draw(G * H) + 1]
            one += [draw(H) + 1, draw(H)] * (case.cell == "lstm")
        weights += one
    masks = []
    for option, width in (("zoneout_h", D * out), ("zoneout_c", D * H)):
        if option in case.options:
            if case.expectation:
                masks.append(torch.rand(1, 1, width, generator=generator).to(dtype).expand(T, B, width))
            else:
                masks.append((torch.rand(T, B, width, generator=generator) < 0.4).to(dtype))
    if "recurrent_mask" in case.options:
        masks.append((torch.rand(D, B, out, generator=generator) < 0.7).to(dtype) / 0.7)
    reset = torch.rand(T, B, generator=generator) < 0.3 if case.rows == "reset" else None
    batch_sizes = None
    if case.rows == "packed":
        batch_sizes = torch.tensor([int((lengths > t).sum()) for t in range(T)])
    return Problem(
        draw(T, B, case.I),
        draw(D, B, out),
        draw(D, B, H) if case.cell == "lstm" else None,
        weights,
        masks,
        len(weights) // D,
        lengths,
        reset,
        batch_sizes,
    )


def layer_norm(v):
    v = v - v.mean(1, keepdim=True)
    return v / (v.square().mean(1, keepdim=True) + EPS).sqrt()


def blocks(w, heads, H):
    """The whole matrix of a block-diagonal one."""
    if heads == 1:
        return w
    size = H // heads
    rows = torch.arange(w.size(0)) % H // size
    columns = torch.arange(H)
    full = w.repeat(1, heads)
    return torch.where(rows[:, None] == columns[None, :] // size, full, 0)


def expected(case: Case, p: Problem):
    """y (T,B,.), hn, cn, cells by torch's operations."""
    T, B, H, D, G = case.T, case.B, case.H, case.D, GATES[case.cell]
    opts = {o.partition("=")[0] for o in case.options}
    masks = list(p.masks)
    keep_h = masks.pop(0) if "zoneout_h" in opts else None
    keep_c = masks.pop(0) if "zoneout_c" in opts else None
    dropped = masks.pop(0) if "recurrent_mask" in opts else None
    out = case.P or H
    lengths = torch.full((B,), T) if p.lengths is None else p.lengths
    ys, hn, cn, kept = [], [], [], []
    for d in range(D):
        w = list(p.weights[d * p.a_direction : (d + 1) * p.a_direction])
        w_ih, w_hh = w.pop(0), blocks(w.pop(0), case.heads, H)
        b_ih, b_hh = (w.pop(0), w.pop(0)) if case.bias else (torch.zeros(G * H).to(p.x),) * 2
        w_hr = w.pop(0) if case.P else None
        peep = w.pop(0).chunk(3) if "peephole" in opts else None
        if "norm" in opts:
            gain_x, gain_h = w.pop(0), w.pop(0)
            if case.cell == "lstm":
                gain_c, bias_c = w.pop(0), w.pop(0)
        h, c = p.h0[d], p.c0[d] if p.c0 is not None else p.h0.new_zeros(B, H)
        y, cells = [None] * T, [None] * T
        for s in range(T):
            t = T - 1 - s if d else s
            runs = (t < lengths).unsqueeze(1)
            if p.reset is not None and t + d < T:
                cut = p.reset[t + d].unsqueeze(1)
                h, c = h.masked_fill(cut, 0), c.masked_fill(cut, 0)
            seen = h if dropped is None else h * dropped[d]
            gx, gh = p.x[t] @ w_ih.T, seen @ w_hh.T
            if "norm" in opts:
                gx, gh = layer_norm(gx) * gain_x, layer_norm(gh) * gain_h
            gx, gh = gx + b_ih, gh + b_hh
            new_c = c
            if case.cell == "lstm":
                i, f, g, o = (gx + gh).chunk(4, 1)
                if peep:
                    i, f = i + peep[0] * c, f + peep[1] * c
                i = i.sigmoid()
                f = 1 - i if "coupled" in opts else f.sigmoid()
                new_c = f * c + i * g.tanh()
                if peep:
                    o = o + peep[2] * new_c
                at = layer_norm(new_c) * gain_c + bias_c if "norm" in opts else new_c
                new_h = o.sigmoid() * at.tanh()
                if keep_c is not None:
                    k = keep_c[t, :, d * H : (d + 1) * H]
                    new_c = k * c + (1 - k) * new_c
            elif case.cell == "gru":
                (xr, xz, xn), (hr, hz, hnn) = gx.chunk(3, 1), gh.chunk(3, 1)
                r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
                if "reset_before" in opts:
                    hnn = (r * seen) @ w_hh[2 * H :].T + b_hh[2 * H :]
                    n = (xn + hnn).tanh()
                else:
                    n = (xn + r * hnn).tanh()
                new_h = (1 - z) * n + z * h
            else:
                new_h = (gx + gh).tanh() if case.cell == "rnn_tanh" else (gx + gh).relu()
            if w_hr is not None:
                new_h = new_h @ w_hr.T
            if keep_h is not None:
                k = keep_h[t, :, d * out : (d + 1) * out]
                new_h = k * h + (1 - k) * new_h
            h, c = torch.where(runs, new_h, h), torch.where(runs, new_c, c)
            y[t], cells[t] = torch.where(runs, new_h, 0), torch.where(runs, new_c, 0)
        ys.append(torch.stack(y))
        hn.append(h)
        cn.append(c)
        kept.append(torch.stack(cells))
    results = [torch.cat(ys, 2), torch.stack(hn)]
    return results + ([torch.stack(cn), torch.stack(kept)] if case.cell == "lstm" else [])


def packed(tensor, p):
    if p.batch_sizes is None or tensor is None:
        return tensor
    return torch.cat([tensor[t, :n] for t, n in enumerate(p.batch_sizes.tolist())])


def as_stored(p: Problem, dtype: torch.dtype) -> Problem:
    """The problem with every number as the dtype holds it: what kernel and definition both are given."""

    def held(t):
        return t.to(dtype).double() if torch.is_tensor(t) and t.is_floating_point() else t

    return Problem(*([held(t) for t in v] if isinstance(v, list) else held(v) for v in p))


def check(case: Case, save: int, namespace=ops, dtype=torch.float64, tolerance=1e-9):
    p = as_stored(problem(case), dtype)
    leaves = [p.x, p.h0, *([p.c0] if p.c0 is not None else []), *p.weights]
    for leaf in leaves:
        leaf.requires_grad_()
    wanted = expected(case, p)
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.rand(w.shape, generator=generator, dtype=torch.float64) * 2 - 1 for w in wanted]
    cotangents = [c.to(dtype).double() for c in cotangents]
    if p.lengths is not None:
        beyond = torch.arange(case.T)[:, None] >= p.lengths
        cotangents[0].masked_fill_(beyond[..., None], 0)
        if case.cell == "lstm":
            cotangents[3].masked_fill_(beyond[None, ..., None], 0)
    gradients = torch.autograd.grad(wanted, leaves, cotangents, allow_unused=True)
    cast = (lambda t: t) if dtype is torch.float64 else (lambda t: None if t is None else t.to(dtype))
    with torch.no_grad():
        x, h0 = cast(packed(p.x, p)), cast(p.h0)
        c0 = cast(p.c0)
        rows_of = [o for o in case.options if o.startswith("zoneout")]
        masks = [packed(m, p) if i < len(rows_of) else m for i, m in enumerate(p.masks)]
        weights = [cast(t) for t in [*p.weights, *masks]]
        lengths = p.lengths if case.rows == "lengths" else None
        rest = (p.batch_sizes, lengths, p.reset)
        y, hn, cn, gates, cells = namespace.rnn_forward(x, h0, c0, weights, *rest, case.name, case.bias, save)
        found = [y, hn] + ([cn, cells] if case.cell == "lstm" else [])
        if case.cell == "lstm":
            rows = [w if case.rows != "packed" else packed(w, p) for w in wanted[3]]
            wanted[3] = torch.stack([r.reshape(-1, case.H) for r in rows])
            rows = [c if case.rows != "packed" else packed(c, p) for c in cotangents[3]]
            cotangents[3] = torch.stack([r.reshape(-1, case.H) for r in rows])
        wanted[0], cotangents[0] = packed(wanted[0], p), packed(cotangents[0], p)
        for name, got, want in zip(("y", "hn", "cn", "cells"), found, wanted, strict=False):
            close(got, want, tolerance, f"{case} {name}")
        grads = [cast(c) for c in cotangents[:2]] + (
            [cast(cotangents[2]), cotangents[3].to(cells.dtype)] if case.cell == "lstm" else [None, None]
        )
        gx, gh0, gc0, gw = namespace.rnn_backward(
            *grads, x, h0, c0, weights, *rest, y, gates, cells, case.name, case.bias, 15
        )
        found = [gx, gh0, *([gc0] if p.c0 is not None else []), *gw]
        assert all(g.numel() == 0 for g in gw[len(p.weights) :])
        names = [
            "x",
            "h0",
            *(["c0"] if p.c0 is not None else []),
            *(f"weight {i}" for i in range(len(p.weights))),
        ]
        for name, got, want, leaf in zip(names, found, gradients, leaves, strict=False):
            want = torch.zeros_like(leaf) if want is None else want
            close(got, packed(want, p) if name == "x" else want, tolerance, f"{case} grad {name}")


def close(got, want, tolerance, what):
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(
        got.double(), want.double(), rtol=0, atol=tolerance * scale, msg=lambda m: f"{what}: {m}"
    )


LSTM = [
    ("peephole",),
    ("coupled",),
    ("coupled", "peephole"),
    ("norm=0.001",),
    ("zoneout_h",),
    ("zoneout_c",),
    ("recurrent_mask",),
    ("peephole", "coupled", "norm=0.001", "zoneout_h", "zoneout_c", "recurrent_mask"),
]
GRU = [
    ("norm=0.001",),
    ("zoneout_h",),
    ("recurrent_mask",),
    ("reset_before",),
    ("reset_before", "zoneout_h", "recurrent_mask"),
    ("norm=0.001", "zoneout_h", "recurrent_mask"),
]
RNN = [("norm=0.001",), ("zoneout_h", "recurrent_mask"), ("norm=0.001", "zoneout_h", "recurrent_mask")]
OPTIONS = [("lstm", o) for o in LSTM] + [("gru", o) for o in GRU]
OPTIONS += [(c, o) for c in ("rnn_tanh", "rnn_relu") for o in RNN]


def cases():
    for cell, options in OPTIONS:
        yield Case(cell, options)
        yield Case(cell, options, D=2, H=17, rows="lengths")
        yield Case(cell, options, D=2, rows="reset", expectation=True)
        yield Case(cell, options, D=2, rows="packed", bias=False, H=33, B=7)
        yield Case(cell, options, T=1, B=1, H=5)
    for cell, heads, H in itertools.product(("lstm", "gru", "rnn_tanh"), (2, 3), (6, 18, 96)):
        yield Case(cell, (), H=H, heads=heads, D=2)
    yield Case("gru", ("reset_before", "recurrent_mask", "zoneout_h"), H=12, heads=3, D=2)
    yield Case("lstm", LSTM[-1], H=20, heads=2, D=2)
    for options in (("zoneout_h", "zoneout_c", "recurrent_mask"), LSTM[-1]):
        yield Case("lstm", options, H=9, P=5, D=2, rows="lengths")
        yield Case("lstm", options, H=19, P=18, rows="reset")


@pytest.fixture(params=CPU_ISAS)
def isa(request):
    before = ops.cpu_isa()
    ops.cpu_set_isa(request.param)
    yield request.param
    ops.cpu_set_isa(before)


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_variants(case, isa):
    """Outputs and every gradient of every option and of options together, whatever the rows."""
    check(case, save=1)


@pytest.mark.parametrize(("cell", "options"), OPTIONS, ids=str)
def test_units_and_rows_are_split(cell, options):
    """Threads that share a row meet where its sums or a second product need all of it, whatever their number;
    and a sequence of more rows than a chunk adds its parts up."""
    before = torch.get_num_threads()
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            check(Case(cell, options, T=4, B=3, I=20, H=150), save=1)
            plan = ops.cpu_last_plan()
            assert plan[3] > 1 or ops.cpu_threads() == 1, "the units were to be split"
        torch.set_num_threads(1)
        check(Case(cell, options, T=150, B=17, I=5, H=40, rows="reset"), save=1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", LSTM[-1], D=2, H=20),
        Case("gru", GRU[4], rows="lengths"),
        Case("gru", GRU[5], rows="packed", B=5),
        Case("rnn_relu", RNN[2]),
        Case("lstm", (), heads=2, H=8),
    ],
    ids=str,
)
def test_nothing_saved_but_what_recomputes(case):
    """Backward without gates makes them again."""
    check(case, save=2)


@pytest.mark.parametrize(("cell", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_types(cell, options, dtype, isa):
    """Half types compute in float32 and round what they keep: results stay within a few roundings of it."""
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 8e-2, torch.float16: 1e-2}[dtype]
    # A relu's gradient jumps where a rounding moves its argument over zero.
    case = Case(cell.replace("relu", "tanh") if dtype != torch.float32 else cell, options, D=2, H=20, T=4)
    check(case, save=1, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("gru+peephole", "'gru' has no option 'peephole'"),
        ("lstm+reset_before", "'lstm' has no option 'reset_before'"),
        ("rnn_tanh+zoneout_c", "'rnn_tanh' has no option 'zoneout_c'"),
        ("lstm+wings", "expected options peephole"),
        ("lstm+peephole=1", "expected options peephole"),
        ("lstm+coupled+coupled", "each option once"),
        ("lstm+norm", "norm=eps"),
        ("lstm+norm=-1", "norm=eps"),
        ("lstm+norm=1e-5x", "norm=eps"),
        ("lstm+heads=0", "heads=n"),
        ("lstm+heads=2+heads=2", "each option once"),
        ("lstm+heads=4", "heads that divide hidden_size 9"),
        ("gru+norm=1e-5+reset_before", "do not go together"),
        ("ltsm+peephole", "expected 'lstm'"),
        ("lstm+", "expected options peephole"),
    ],
)
def test_wrong_options(cell, message):
    """One clear error that names the argument, before any kernel runs."""
    p = problem(Case(cell.partition("+")[0].replace("ltsm", "lstm"), ()))
    with pytest.raises(RuntimeError, match="^cell: .*" + message):
        ops.rnn_forward(p.x, p.h0, p.c0, p.weights, None, None, None, cell, True, 1)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (
            ("peephole",),
            lambda w: w[:-1],
            "weights: expected 4 tensors a direction.*and those of the variant",
        ),
        (("peephole",), lambda w: [*w[:-1], w[-1][:-1]], r"\[4\] \(peephole\): expected shape \(27\)"),
        (
            ("norm=1e-5",),
            lambda w: [*w[:-1], w[-1].float()],
            r"\[7\] \(norm_c_bias\): expected the dtype",
        ),
        (
            ("zoneout_h",),
            lambda w: [*w[:-1], w[-1][:3]],
            r"\[4\] \(keep_h\): expected shape \(5, 4, 9\)",
        ),
        (("zoneout_c",), lambda w: [*w[:-1], w[-1].float()], r"weights\[4\] \(keep_c\): expected the dtype"),
        (
            ("recurrent_mask",),
            lambda w: [*w[:-1], w[-1][0]],
            r"\[4\] \(recurrent_mask\): expected shape",
        ),
    ],
)
def test_wrong_tensors(options, change, message):
    """Kernels read what a variant's tensors are checked to hold, and no further."""
    case = Case("lstm", options)
    p = problem(case)
    with pytest.raises(RuntimeError, match=message):
        ops.rnn_forward(p.x, p.h0, p.c0, change([*p.weights, *p.masks]), None, None, None, case.name, True, 1)


def test_packed_weights_are_of_plain_cells():
    p = problem(Case("lstm", ("peephole",)))
    with pytest.raises(RuntimeError, match="cell: expected"):
        ops.rnn_pack(p.weights, "lstm+peephole", True)


@pytest.mark.parametrize("cell", list(GATES))
def test_a_mask_of_ones_changes_nothing(cell):
    """Variants whose values are those of the plain cell give its numbers: k = 0 keeps, ones mask nothing."""
    p = problem(Case(cell, (), D=2, H=20))
    plain = ops.rnn_forward(p.x, p.h0, p.c0, p.weights, None, None, None, cell, True, 0)
    more = [torch.zeros(5, 4, 40, dtype=torch.float64), torch.ones(2, 4, 20, dtype=torch.float64)]
    name = f"{cell}+zoneout_h+recurrent_mask"
    variant = ops.rnn_forward(p.x, p.h0, p.c0, [*p.weights, *more], None, None, None, name, True, 0)
    for a, b in zip(plain[:3], variant[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_no_rows():
    """A batch of none, and a sequence whose rows are all of length zero."""
    case = Case("lstm", LSTM[-1], B=0)
    p = problem(case)
    w = [*p.weights, *p.masks]
    y, *_ = ops.rnn_forward(p.x, p.h0, p.c0, w, None, None, None, case.name, True, 1)
    assert y.shape == (5, 0, 9)
    case = case._replace(B=4)
    p = problem(case)
    w = [*p.weights, *p.masks]
    lengths = torch.zeros(4, dtype=torch.int64)
    y, hn, cn, gates, cells = ops.rnn_forward(p.x, p.h0, p.c0, w, None, lengths, None, case.name, True, 1)
    assert not y.any()
    assert torch.equal(hn, p.h0)
    assert torch.equal(cn, p.c0)
    *_, grads = ops.rnn_backward(
        y, hn, cn, None, p.x, p.h0, p.c0, w, None, lengths, None, y, gates, cells, case.name, True, 15
    )
    assert all(not g.any() for g in grads)
