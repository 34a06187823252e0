"""The architectures in mixed and in half precision."""

from __future__ import annotations

import pytest
import torch

from fastrnn.models import CNNBiLSTM, ConvLSTM, MogrifierLSTM, NeuralTuringMachine, Seq2Seq

MODELS = {
    "convlstm": (lambda: ConvLSTM(2, 3, peephole=True), (4, 2, 2, 5, 5)),
    "cnn": (lambda: CNNBiLSTM(2, 4), (4, 2, 2)),
    "mogrifier": (lambda: MogrifierLSTM(2, 3), (4, 2, 2)),
    **{
        f"ntm-{controller}": (
            lambda controller=controller: NeuralTuringMachine(
                2, 3, 5, memory_slots=6, memory_width=3, write_heads=2, controller=controller
            ),
            (4, 2, 2),
        )
        for controller in ("lstm", "gru", "feedforward")
    },
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_autocast(name, dtype):
    """Protects mixed precision, forward and backward: inputs of either dtype are no error, and the numbers
    are those of float32 to the half type's rounding."""
    make, size = MODELS[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(size)
    expected = model(x)[0]
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    for given in (x, x.to(dtype)):
        with torch.autocast("cpu", dtype=dtype):
            got = model(given)[0]
        torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.03)
        grads = torch.autograd.grad(got.float().square().sum(), list(model.parameters()))
        for a, b in zip(grads, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0.05 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_machine_in_half_precision(dtype):
    """Protects the addressing from small weights that a half type rounds to zero: states follow float32's."""
    torch.manual_seed(0)
    model = NeuralTuringMachine(2, 3, 5, memory_slots=6, memory_width=3)
    x = torch.randn(6, 2, 2)
    _, expected = model(x)
    model.to(dtype)
    y, state = model(x.to(dtype))
    y.sum().backward()
    assert {y.dtype, state.memory.dtype, state.weightings.dtype} == {dtype}
    torch.testing.assert_close(state.weightings.float(), expected.weightings, rtol=0, atol=0.03)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_log_probabilities_are_summed_in_float32():
    """Protects a search's and a loss's figure under autocast: a sum over many steps in bfloat16 has two
    digits."""
    torch.manual_seed(0)
    model = Seq2Seq(7, 5, 8, bos=0, eos=1)
    source, target = torch.randint(7, (6, 3)), torch.randint(2, 5, (200, 3))
    expected = model.log_prob(source, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model.log_prob(source, target)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)
