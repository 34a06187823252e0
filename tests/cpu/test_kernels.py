"""The fused layer against the reference in float64: every output, every gradient, every instruction set.

The sizes are chosen around what the CPU kernels are cut into: vectors of 2 to 16 lanes, tiles of a few rows,
chunks of steps, and the direct path for a few steps of few rows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import layer_cases
import pytest
import torch
from layer_cases import (
    CELLS,
    DTYPES,
    PACKED,
    Case,
    Problem,
    differentiated,
    equal,
    names,
    problem,
    worst,
)
from tolerances import assert_close
from torch import Tensor

import fastrnn
from fastrnn import _C
from fastrnn._ops import library

ISAS = library.available_cpu_isas()
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@cache
def _problem(case: Case) -> Problem:
    return problem(case)


@cache
def _expected(case: Case) -> list[Tensor]:
    return layer_cases.expected(case, _problem(case))


def _check(case: Case) -> None:
    ratio, what = worst(case, differentiated(case, _problem(case)), _expected(case))
    assert ratio <= 1, f"{case}: {what}"


# T, B, I, H: direct with one row and with several, W_ih where it lies too and packed just before its use, one
# step too many for it, one row too many, single units and inputs, odd sizes on each side of every vector
# width, a batch of many tiles, chunks of steps.
SHAPES = [
    (1, 1, 1, 1),
    (1, 1, 5, 33),
    (2, 4, 3, 100),
    (1, 3, 40, 17),
    (3, 1, 2, 8),
    (3, 3, 5, 34),
    (10, 1, 7, 19),
    (11, 1, 7, 19),
    (1, 5, 2, 16),
    (3, 13, 1, 33),
    (7, 2, 17, 15),
    (4, 6, 9, 100),
    (5, 70, 3, 4),
    (40, 1, 3, 5),
    (300, 4, 2, 3),  # several chunks of the weight gradients
]


def _shape_cases() -> list[Case]:
    """Both native dtypes of every shape; the options take turns."""
    cases = []
    for cell in CELLS:
        for i, (T, B, IN, H) in enumerate(SHAPES):
            for dtype in (F32, F64):
                odd = (i + (dtype == F64)) % 2 == 1
                case = Case(cell, T, B, IN, H, D=1 + odd, bias=i % 3 != 2, dtype=dtype)
                cases.append(replace(case, save="recompute") if (i // 2 + odd) % 2 else case)
    return cases


def _half_cases() -> list[Case]:
    cases = []
    for cell in CELLS:
        for dtype in (BF16, F16):
            cases += [
                Case(cell, 1, 1, 5, 33, dtype=dtype, D=2),
                Case(cell, 2, 3, 4, 17, dtype=dtype, save="recompute"),
                Case(cell, 6, 13, 1, 33, dtype=dtype, D=2, save="recompute"),
                Case(cell, 5, 7, 18, 20, dtype=dtype),
                Case(cell, IN=6, H=19, dtype=dtype, sizes=PACKED, D=2),
            ]
        # Where relu's derivative jumps, the bias keeps the values of half types away: it is needed.
        if cell != "rnn_relu":
            cases += [Case(cell, dtype=dtype, bias=False) for dtype in (BF16, F16)]
    return cases


def _packed_cases() -> list[Case]:
    falling = tuple(range(19, 0, -1))
    cases = []
    for cell in CELLS:
        for sizes in (PACKED, (1, 1, 1), (9,), (1,), (4, 4, 4), falling, (30, 2, 1, 1, 1)):
            for D in (1, 2):
                cases.append(Case(cell, IN=3, H=18, D=D, dtype=F32, sizes=sizes, bias=D == 2))
        cases.append(Case(cell, IN=3, H=9, D=2, sizes=falling, save="recompute"))
        cases.append(Case(cell, IN=2, H=5, D=2, sizes=(300, 280, 280, 200, 50)))  # over 1024 rows
    return cases


def _projected_cases() -> list[Case]:
    cases = []
    for P, H in ((1, 2), (3, 7), (17, 33), (32, 40), (33, 65)):
        for D in (1, 2):
            plain = Case("lstm", IN=4, H=H, P=P, D=D, T=5, B=8)
            cases += [plain, replace(plain, dtype=F32, save="recompute", bias=False)]
    plain = Case("lstm", IN=4, H=21, P=6, D=2)
    cases += [replace(plain, dtype=t, sizes=PACKED, save=s) for t in DTYPES for s in ("gates", "recompute")]
    cases += [replace(plain, T=1, B=2, dtype=t) for t in DTYPES]
    return cases


@pytest.mark.parametrize("case", _shape_cases(), ids=str)
def test_sizes(isa, case):
    _check(case)


@pytest.mark.parametrize(("IN", "dtype"), [(24, F32), (44, F32), (110, F32), (12, F64)])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_weights_packed_in_passes(isa, cell, IN, dtype):
    """Protects x's gradient where W_ih is packed some gates at a time: more of them of a narrow panel than of
    a wide one, in the same memory."""
    _check(Case(cell, 3, 5, IN, 600, dtype=dtype))


@pytest.mark.parametrize("case", _half_cases(), ids=str)
def test_half_types(isa, case):
    _check(case)


@pytest.mark.parametrize("case", _packed_cases(), ids=str)
def test_packed(isa, case):
    _check(case)


@pytest.mark.parametrize("case", _projected_cases(), ids=str)
def test_projection(isa, case):
    _check(case)


# Enough work for more than one thread, and rows or units to share out.
THREADED = [
    *(Case(cell, 6, 40, 20, 48, D=D, dtype=F32) for cell in CELLS for D in (1, 2)),
    *(Case(cell, 9, 2, 30, 130, D=D, dtype=F32, save="recompute") for cell in CELLS for D in (1, 2)),
    *(Case(cell, 7, 13, 16, 100, dtype=F64) for cell in CELLS),
    Case("lstm", 6, 40, 20, 48, P=20, D=2, dtype=F32),
    Case("lstm", 9, 2, 30, 130, P=33, D=2),
    Case("gru", IN=30, H=65, D=2, sizes=(31, 31, 20, 17, 3, 2, 1)),
    Case("lstm", IN=30, H=65, P=9, sizes=(31, 31, 20, 17, 3, 2, 1), save="recompute"),
    Case("lstm", 6, 14, 20, 48, dtype=BF16),
    Case("gru", 6, 14, 20, 48, dtype=F16),
]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("case", THREADED, ids=str)
def test_threads(threads, case, count):
    threads(count)
    _check(case)


@pytest.mark.parametrize("case", [THREADED[0], THREADED[8], THREADED[-3]], ids=str)
def test_threads_of_every_isa(isa, threads, case):
    threads(4)
    _check(case)


@pytest.mark.parametrize("blocks", [9, 12, 13, 20])
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_gradients_of_shares_that_are_not_even(isa, threads, kind, blocks):
    """Panels of units that do not go into the number of threads are narrower in backward: every gradient is
    there, and the one that one thread finds."""
    module = kind(5, blocks * library.cpu_machine(torch.float32)["lanes"] - 3)
    x = torch.randn(3, 2, 5, requires_grad=True)
    found = []
    for count in (1, 2, 3):
        threads(count)
        y = module(x)[0]
        found.append(torch.autograd.grad(y.square().sum(), [x, *module.parameters()]))
    for other in found[1:]:
        for one, several in zip(found[0], other, strict=True):
            torch.testing.assert_close(several, one, rtol=1e-5, atol=1e-5)


def test_threads_reach_every_schedule():
    """The cases above split directions, batch and units: a plan that stops doing so takes the tests along."""
    schedules, free = set(), {"meeting_ns": 0, "region_ns": 0}  # as conftest.py has it
    for case in THREADED:
        for count in (2, 3, 4):
            T, B = (len(case.sizes), case.sizes[0]) if case.sizes else (case.T, case.B)
            dtype = str(case.dtype).removeprefix("torch.")
            plan = _C.plan(
                "cpu", case.cell, T, B, case.IN, case.H, case.P, case.D, dtype, threads=count, **free
            )
            schedules |= {k for k in ("direction_groups", "batch_groups", "unit_groups") if plan[k] > 1}
    assert schedules == {"direction_groups", "batch_groups", "unit_groups"}


@pytest.mark.parametrize("units", [1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 15])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_last_block_of_few_units(isa, cell, units):
    """Gates of a last block that few units fill lie one behind the other, in fewer vectors: where weights are
    packed ahead, just before their use or not at all, saved and recomputed, on all types of storage."""
    for H in (units, 32 + units):
        _check(Case(cell, 5, 14, 6, H, dtype=F32))
        _check(Case(cell, 1, 7, 20, H, dtype=F32, save="recompute"))
        _check(Case(cell, 2, 3, 4, H, dtype=F32, D=2))
    _check(Case(cell, 4, 9, 5, 16 + units, dtype=F64))
    _check(Case(cell, 4, 9, 5, 32 + units, dtype=F16))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_of_one_row(isa, threads, cell, dtype):
    """Where one row runs, several panels of packed weights are multiplied at once, forwards and, every other
    step, backwards: of sizes with panels left over and units that fill none, a projection's K, another
    thread's share of them, and the one row that a packed batch still has, among the memory of those that
    ended."""
    for H in (31, 64, 75, 150):
        _check(Case(cell, 12, 1, 5, H, dtype=dtype))
    _check(Case(cell, 13, 1, 20, 96, D=2, dtype=dtype, save="recompute"))
    _check(Case(cell, IN=4, H=70, dtype=dtype, sizes=(3, 3, *[1] * 12), D=2))
    if cell == "lstm":
        _check(Case(cell, 12, 1, 5, 64, P=19, dtype=dtype))
    threads(2)
    _check(Case(cell, 12, 1, 5, 150, dtype=dtype))


@pytest.mark.parametrize("rows", [15, 16, 17, 26, 32, 48, 77, 96, 97])
@pytest.mark.parametrize("cell", CELLS)
def test_one_step_of_many_rows(isa, threads, cell, rows):
    """The rows of one step that fill the lanes are multiplied with weights where they lie: sums of one block
    of terms and of several and of none, lanes without a row, a last block of units that one tile holds and
    one that it does not, weights that a thread takes by panels, both directions, and a projected state."""
    for IN, H in ((3, 16), (19, 24), (130, 45), (5, 133), (257, 260)):
        _check(Case(cell, 1, rows, IN, H, dtype=F32))
    _check(Case(cell, 1, rows, 20, 72, D=2, dtype=F32, save="recompute"))
    _check(Case(cell, IN=20, H=72, sizes=(rows,), dtype=F32))
    _check(Case(cell, 1, rows, 0, 72, dtype=F32))
    _check(Case(cell, 1, rows, 20, 72, dtype=F64))
    _check(Case(cell, 1, rows, 20, 72, dtype=F16))
    if cell == "lstm":
        _check(Case(cell, 1, rows, 20, 72, P=33, dtype=F32))
    threads(2)
    _check(Case(cell, 1, rows, 300, 260, dtype=F32))


@pytest.mark.parametrize("rows", [16, 32, 41])
def test_rows_of_one_step_are_apart(rows):
    """What is no number in one row stays there, and every row is that of a call of its own rows."""
    torch.manual_seed(0)
    layer = fastrnn.LSTM(70, 90)
    x, h, c = torch.randn(1, rows, 70), torch.randn(1, rows, 90), torch.randn(1, rows, 90)
    whole = layer(x, (h, c))[0]
    x[0, 3, 5], h[0, rows - 1, 2] = float("nan"), float("inf")
    apart = layer(x, (h, c))[0]
    others = [r for r in range(rows) if r not in (3, rows - 1)]
    assert equal([apart[:, others]], [whole[:, others]])
    assert apart[0, 3].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_long_rows_of_weights_where_they_lie(isa, cell, dtype):
    """A step of one row reads a weight's rows one after the other from a length on: whole chains, a vector
    that none is left for, the end of a row, and a last block that few units fill."""
    for H in (192, 203, 211, 256):
        _check(Case(cell, 2, 1, 3, H, dtype=dtype))
    _check(Case(cell, 1, 1, 333, 20, dtype=dtype))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("cell", "H"), [("lstm", 131), ("gru", 150), ("rnn_tanh", 260), ("rnn_relu", 260)])
def test_more_steps_of_weights_that_no_cache_holds(isa, threads, small_cache, cell, H, dtype):
    """One row's weights are read where they lie for more steps where packed ones would come from as far;
    outputs and gradients at the last such step and the one after, in both directions, on two threads too."""
    for T in (11, 16, 17):
        _check(Case(cell, T, 1, 9, H, dtype=dtype))
        assert library.cpu_last_plan()["kernel"] == ("direct" if T <= 16 else "packed")
    _check(Case(cell, 16, 1, 9, H, D=2, dtype=dtype, save="recompute"))
    _check(Case(cell, 16, 2, 9, H, dtype=dtype))
    assert library.cpu_last_plan()["kernel"] == "packed"
    threads(2)
    _check(Case(cell, 16, 1, 9, H, dtype=dtype))


@pytest.fixture
def small_cache():
    """The smallest second-level cache that calls plan for."""
    before = library.cpu_machine(F32)["l2_bytes"]
    library.set_cpu_machine(l2_bytes=1)
    yield
    library.set_cpu_machine(l2_bytes=before)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_caches_of_other_machines(isa, cell, dtype):
    """What is fetched ahead and how a sequence is cut up follow the caches: the numbers do not. Of the small
    one, gradients of weights sum over operands that it does not hold."""
    case = Case(cell, 140, 8, 70, 90, dtype=dtype)
    known = library.cpu_machine(dtype)
    try:
        for size in (1, 1 << 40):
            library.set_cpu_machine(l2_bytes=size, l3_bytes=size)
            _check(case)
    finally:
        library.set_cpu_machine(l2_bytes=known["l2_bytes"], l3_bytes=known["l3_bytes"])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("D", [1, 2])
def test_strided_inputs(isa, cell, D):
    """Nothing contiguous: input, states, weights, gradients."""
    _check(Case(cell, 4, 5, 6, 18, D=D, dtype=F32, strided=True))
    _check(Case(cell, IN=6, H=18, D=D, sizes=PACKED, strided=True, save="recompute"))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("case", [THREADED[0], THREADED[5], THREADED[-4]], ids=str)
def test_deterministic(threads, case, count):
    """Bit for bit from run to run."""
    threads(count)
    first = differentiated(case, _problem(case))
    assert all(equal(first, differentiated(case, _problem(case))) for _ in range(3))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("T", [1, 4])
def test_no_rows(cell, D, T):
    """B = 0: shapes as always, gradients of the weights are zeros."""
    case = Case(cell, T, 0, 3, 5, P=2 if cell == "lstm" else 0, D=D, dtype=F32)
    p = _problem(case)
    got = differentiated(case, p)
    for name, g, w in zip(names(case), got, _expected(case), strict=True):
        assert g.shape == w.shape, name
        assert not g.any(), name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [None, PACKED])
def test_no_features(isa, cell, sizes):
    """I = 0: the biases and the state alone."""
    _check(Case(cell, 4, 5, 0, 9, D=2, dtype=F32, sizes=sizes))
    _check(Case(cell, 1, 1, 0, 9, dtype=F32, save="recompute"))


def test_threads_of_python(threads):
    """Calls of one layer from many Python threads do not meet each other."""
    threads(2)
    case = THREADED[0]
    want = differentiated(case, _problem(case))
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: differentiated(case, _problem(case)), range(12)):
            # A thread of Python may run with another number of threads: other sums, not other results.
            for name, a, b in zip(names(case), got, want, strict=True):
                assert_close(a, b, case.dtype, gradient=name.startswith("grad"), what=name)
