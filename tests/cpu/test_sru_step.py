"""SRU.step(), and the kernel for a step of few rows behind it."""

import pytest
import torch
from streaming_cases import TOLERANCE, close, walk

import fastrnn
from fastrnn._ops import library


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rescale": True, "highway_bias": -1.0, "batch_first": True},
        {"has_skip_term": False, "use_tanh": True},
        {"layer_norm": True},
        {"layer_norm": True, "normalize_after": True, "projection_size": 5},
        {"v1": True, "nn_rnn_compatible_return": True},
    ],
)
@pytest.mark.parametrize("inputs", [33, 10])
def test_sru_step_by_step_equals_the_sequence(isa, options, inputs):
    """SRU.step() for one row, a few rows (one kernel for a layer) and more (product and scan), K = 3 and 4,
    with and without gradients."""
    torch.manual_seed(0)
    layer = fastrnn.SRU(inputs, 33, 2, dtype=torch.float64, **options).eval()
    time = int(layer.batch_first)
    for rows in (1, 3, 6):
        x = torch.randn(5, rows, inputs, dtype=torch.float64)
        x = x.transpose(0, 1) if time else x
        c0 = torch.randn(2, rows, 33, dtype=torch.float64)
        y, last = layer(x, c0)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                got, end = walk(layer.step, x, c0, time)
            assert got.requires_grad == grad
            close(got, y)
            close(end, last)
    with torch.no_grad():
        one, state = x.select(1 - time, 2), c0[:, 2]
        got, end = walk(layer.step, one, state, 0)
        close(got, y.select(1 - time, 2))
        close(end, last[:, 2])


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_sru_step_kernel(isa, dtype):
    """The kernel for a step of few rows against product and scan, in every dtype, for sizes that fill no
    register and sizes that do."""
    for inputs, features, rows in ((1, 1, 1), (33, 33, 2), (64, 64, 4), (40, 18, 3), (16, 16, 7)):
        k = 3 if inputs == features else 4
        torch.manual_seed(inputs)
        x, c0 = torch.randn(rows, inputs).to(dtype), torch.randn(rows, features).to(dtype)
        weight = (torch.randn(features * k, inputs) * inputs**-0.5).to(dtype)
        gates = [torch.randn(2 * features).to(dtype) for _ in range(2)]
        skip = x if k == 3 else None
        got = library.sru_step(x, weight, skip, *gates, c0, False, 1.0)
        exact = [t.double() for t in (x, c0, weight, *gates)]
        expected = fastrnn.functional.sru(
            exact[0][None], exact[1], *exact[2:], backend="reference", has_skip_term=True
        )
        close(got[0].double(), expected[0][0], 4 * TOLERANCE[dtype])
        close(got[1].double(), expected[1], 4 * TOLERANCE[dtype])


def test_sru_errors():
    """Wrong arguments of SRU.step() and of its operator."""
    with pytest.raises(RuntimeError, match="one direction, got bidirectional=True"):
        fastrnn.SRU(4, 4, bidirectional=True).step(torch.zeros(1, 4))
    layer = fastrnn.SRU(4, 4, 1)
    with pytest.raises(ValueError, match=r"\(B, I\) or \(I,\) for a step"):
        layer.step(torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match="input_size = 4, got 5"):
        layer.step(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"c0 should have size \[1, 4\]"):
        layer.step(torch.zeros(4), torch.zeros(1, 1, 4))
    # A transform module of another size: K = 4 where the layer has 3 is no step of the kernel's.
    own = fastrnn.SRU(4, 4, 1, transform_module=torch.nn.Linear(4, 16, bias=False), has_skip_term=False)
    with torch.no_grad(), pytest.raises(ValueError, match="transform_module should return U"):
        own.step(torch.zeros(1, 4))
    x, weight, gate = torch.zeros(2, 4), torch.zeros(12, 4), torch.zeros(8)
    for match, call in {
        "x: expected shape": lambda: library.sru_step(x[0], weight, None, gate, gate, x, False, 1.0),
        "c0: expected shape": lambda: library.sru_step(x, weight, None, gate, gate, x[0], False, 1.0),
        "weight: expected shape": lambda: library.sru_step(x, weight[1:], None, gate, gate, x, False, 1.0),
        "weight: expected the dtype": lambda: library.sru_step(
            x, weight.double(), None, gate, gate, x, False, 1.0
        ),
        "skip: expected shape": lambda: library.sru_step(x, weight, x[:1], gate, gate, x, False, 1.0),
        "skip: expected none with K = 4": lambda: library.sru_step(
            x, torch.zeros(16, 4), x, gate, gate, x, False, 1.0
        ),
        "bias: expected shape": lambda: library.sru_step(x, weight, None, gate, gate[1:], x, False, 1.0),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            call()
