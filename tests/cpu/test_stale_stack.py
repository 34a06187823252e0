"""What lies on the stack when a kernel begins is in no result.

Tiles and sums live there, and lanes behind the last unit are computed with the others, of whatever is in
them. Here the stack is filled before each call, once with zeros and once with NaN: every output and gradient
has the same bits.
"""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from collections.abc import Callable

import pytest
import torch
from toolchain import cc, is_installed

import fastrnn

SOURCE = """
#include <string.h>
__attribute__((noinline)) void fill(int byte) {
  volatile char stack[1 << 18];
  memset((void*)stack, byte, sizeof(stack));
  __asm__ volatile("" : : "r"(stack) : "memory");
}
"""
SIZES = (1, 2, 3, 4, 5, 7, 8, 11, 13, 17, 20, 33, 40)
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@pytest.fixture(scope="module")
def fill(tmp_path_factory) -> Callable[[int], None]:
    compiler = next(filter(is_installed, (cc("cc"), ["gcc"], ["clang"])), None)
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("stack")
    (folder / "fill.c").write_text(SOURCE)
    made = folder / "fill.so"
    subprocess.run([*compiler, "-O1", "-shared", "-fPIC", "-o", made, folder / "fill.c"], check=True)
    library = ctypes.PyDLL(str(made))  # holds the lock: nothing of Python's runs on the stack in between
    return library.fill


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bits(tensors) -> list[bytes]:
    return [t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors if t is not None]


def results(fill, byte: int, layer, x, training: bool) -> list[bytes]:
    """Of a forward pass, and of the backward pass to the input and every weight."""
    x = x.clone().requires_grad_(training)
    with torch.set_grad_enabled(training):
        fill(byte)
        y, state = layer(x)
    outputs = [y, *(state if isinstance(state, tuple) else [state])]
    if not training:
        return bits(outputs)
    layer.zero_grad(set_to_none=True)
    loss_of = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    fill(byte)
    y.backward(loss_of)
    return bits([*outputs, x.grad, *(p.grad for p in layer.parameters())])


def check(fill, layer, shapes, dtype, modes=(False, True)) -> None:
    for T, B in shapes:
        x = torch.randn(T, B, layer.input_size, dtype=dtype)
        for training in modes:
            zeros, nans = (results(fill, byte, layer, x, training) for byte in (0, 0xFF))
            assert zeros == nans, (T, B, training)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_layers(fill, cell, dtype):
    """Weights read where they lie, packed for one call, of one row and of many, in both directions."""
    torch.manual_seed(0)
    for H in SIZES:
        layer = getattr(fastrnn, cell)(4, H, bidirectional=H % 2 == 1, dtype=dtype)
        check(fill, layer, [(1, 1), (2, 1), (3, 3), (2, 4), (12, 1), (9, 7)], dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "layer"},
        {"peephole": True},
        {"coupled": True},
        {"heads": 2},
        {"proj_size": 3},
        {"zoneout": 0.2},
    ],
    ids=str,
)
def test_variants(fill, options):
    """Of the LSTM, whose stages keep values of a step apart."""
    torch.manual_seed(0)
    for H in (4, 6, 12, 18, 34):
        layer = fastrnn.LSTM(5, H, **options).eval()
        check(fill, layer, [(1, 1), (3, 3), (9, 7)], F32)


@pytest.mark.parametrize("cell", ["SRU", "MinGRU", "MinLSTM", "IndRNN", "SLSTM"])
def test_other_cells(fill, cell):
    """Scans and the sLSTM, which have kernels of their own."""
    torch.manual_seed(0)
    for H in SIZES:
        check(fill, getattr(fastrnn, cell)(4, H), [(1, 1), (3, 3), (9, 7)], F32)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_what_is_computed_again(fill, cell):
    """Gates that the backward pass makes anew, on rows of unequal length."""
    torch.manual_seed(0)
    for H in SIZES:
        layer = getattr(fastrnn, cell)(4, H, dtype=F64)
        layer.save = "recompute"
        check(fill, layer, [(3, 3), (9, 7)], F64, modes=(True,))
        found = []
        for byte in (0, 0xFF):
            torch.manual_seed(1)
            x = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 4, dtype=F64) for n in (3, 2, 1)])
            fill(byte)
            y, state = layer(x)
            found.append(bits([y.data, *(state if isinstance(state, tuple) else [state])]))
        assert found[0] == found[1], H


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_weights_of_low_precision(fill, cell, weights):
    """Whose rows of h are rounded by the largest of them, and of no more."""
    torch.manual_seed(0)
    for H in SIZES:
        layer = fastrnn.quantize(getattr(fastrnn, cell)(4, H).eval(), weights)
        check(fill, layer, [(1, 1), (3, 3), (9, 7)], F32, modes=(False,))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell", "RNNCell"])
def test_single_steps(fill, cell, dtype):
    """A cell's step, forward and backward, from a state of its own."""
    torch.manual_seed(0)
    for H, B in itertools.product(SIZES, (1, 3, 9)):
        layer = getattr(fastrnn, cell)(4, H, dtype=dtype)
        x, hx = torch.randn(B, 4, dtype=dtype), torch.randn(B, H, dtype=dtype)
        found = []
        for byte in (0, 0xFF):
            layer.zero_grad(set_to_none=True)
            fill(byte)
            state = layer(x, (hx, hx) if cell == "LSTMCell" else hx)
            h = state[0] if isinstance(state, tuple) else state
            fill(byte)
            h.backward(torch.ones_like(h))
            found.append(bits([h, *(p.grad for p in layer.parameters())]))
        assert found[0] == found[1], (H, B)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_streams(fill, cell):
    """On weights that were packed once."""
    torch.manual_seed(0)
    for H in SIZES:
        layer = getattr(fastrnn, cell)(4, H).eval()
        with torch.inference_mode():
            stream = layer.streamer()
            x = torch.randn(6, 1, 4)
            found = []
            for byte in (0, 0xFF):
                fill(byte)
                y, state = stream(x)
                found.append(bits([y, *(state if isinstance(state, tuple) else [state])]))
        assert found[0] == found[1], H
