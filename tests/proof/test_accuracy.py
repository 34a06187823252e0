"""How exact the CPU's float32 is: sums that do not lose digits as they grow longer, and errors against
float64 that stay near torch.nn's own (``fastrnn.proof._accuracy``)."""

import pytest
import torch

from fastrnn import functional
from fastrnn._ops import library
from fastrnn.cli import main
from fastrnn.proof import _accuracy, numbers

ISAS = library.available_cpu_isas()
CASES = [
    *((cell, "layers", 1) for cell in numbers.CELLS),
    *((cell, "cells", 1) for cell in numbers.CELLS if cell not in numbers.SCANS),
    ("lstm", "proj", 1),
    ("lstm", "packed", 2),
    ("gru", "packed", 2),
]


@pytest.fixture(autouse=True)
def _isa_restored():
    before = library.cpu_isa()
    yield
    library.set_cpu_isa(before)


@pytest.mark.parametrize(("cell", "path", "directions"), CASES)
def test_no_less_exact_than_torch(cell, path, directions):
    """Every output and gradient, inputs of 1e-3 to 1e3: at most 1.5 times torch.nn's own error."""
    check = numbers.Check(cell, path, directions, "float32")
    for isa, found in _accuracy.measure(check, ISAS, library.set_cpu_isa).items():
        assert 0 < found.ratio <= _accuracy.allowed(isa), f"{isa}: {found}"


def test_verify_fails_where_rounding_is_worse(monkeypatch, capsys):
    """Results within the tolerance, but a few roundings worse than torch.nn's, fail by that column alone."""
    genuine = _accuracy.run_functional

    def worse(data, dtype, backend, mode):
        found = genuine(data, dtype, backend, mode)
        return {n: t * (1 + 4e-7) for n, t in found.items()} if dtype == torch.float32 else found

    monkeypatch.setattr(_accuracy, "run_functional", worse)
    arguments = ["verify", "--cell", "gru", "--dtype", "float32", "--path", "cells", "--isa", ISAS[-1]]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "missed" in out
    assert "times torch.nn's error: input of" in out


def test_error_counts_nan_and_nothing_below_the_floor():
    ones = torch.ones(3, dtype=torch.float64)
    assert _accuracy.error(torch.tensor([1.0, float("nan"), 1.0]), ones) == float("inf")
    assert _accuracy.error(ones.float(), ones) == _accuracy.FLOOR
    assert _accuracy.error(torch.zeros(0), torch.zeros(0)) == _accuracy.FLOOR


def _relative(actual, exact):
    return float((actual.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _compare(run, names):
    found, exact = run(torch.float32, "fused"), run(torch.float64, "reference")
    for name, actual, expected in zip(names, found, exact, strict=True):
        assert _relative(actual, expected) < 4e-7, name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [(1, 1), (1, 3), (1, 7), (3, 1), (3, 2), (3, 24)])
@pytest.mark.parametrize("size", ["I", "H"])
def test_sums_over_inputs_and_units_are_made_in_blocks(isa, rows, size):
    """A row of 16384 inputs or 2048 units, with and without packed weights, in several heights of a tile:
    chains as long as these are off by 5e-7 to 4e-6, blocks stay below 4e-7. Forward, and the gradients of x
    and h0, which are sums over units."""
    library.set_cpu_isa(isa)
    T, B = rows
    I, H = (16384, 24) if size == "I" else (24, 2048)  # noqa: E741
    g = torch.Generator().manual_seed(0)
    # Nothing that ReLU would cut: all is linear, and an error comes of sums alone.
    x, h0, gy = (torch.rand(*shape, generator=g) for shape in ((T, B, I), (1, B, H), (T, B, H)))
    weights = [torch.rand(H, I, generator=g) / I, torch.rand(H, H, generator=g) / H, *torch.zeros(2, H)]

    def run(dtype, backend):
        leaves = [t.to(dtype).requires_grad_() for t in (x, h0, *weights)]
        y, _ = functional.rnn(leaves[0], leaves[1], leaves[2:], nonlinearity="relu", backend=backend)
        return [y.detach(), *torch.autograd.grad(y, leaves[:2], gy.to(dtype))]

    _compare(run, ("y", "grad of x", "grad of h0"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [(1, 20000), (2000, 5)])
def test_sums_over_rows_are_made_in_blocks(isa, rows):
    """Gradients of weights and biases of 20000 and 10000 rows: many in a step, and many steps. All terms have
    one sign, so that the error of a chain grows with its length: 1e-6 in chains of a thousand."""
    library.set_cpu_isa(isa)
    T, B = rows
    H = 20
    g = torch.Generator().manual_seed(0)
    x, h0 = torch.rand(T, B, H, generator=g), torch.rand(1, B, H, generator=g)
    weights = [torch.rand(*shape, generator=g) / H for shape in ((H, H), (H, H), (H,), (H,))]

    def run(dtype, backend):
        leaves = [t.to(dtype).requires_grad_() for t in weights]
        y, _ = functional.rnn(x.to(dtype), h0.to(dtype), leaves, nonlinearity="relu", backend=backend)
        return torch.autograd.grad(y.sum(), leaves)

    _compare(run, ("w_ih", "w_hh", "b_ih", "b_hh"))
