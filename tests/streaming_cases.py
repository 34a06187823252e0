"""What the tests of streaming share: tolerances, comparisons, a walk through a sequence."""

import torch

WEIGHTS = ("float32", "bfloat16", "int8")
#: Rounding of one step's state, which the following steps carry on.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def flat(state):
    return state if isinstance(state, tuple) else (state,)


def close(actual, expected, tolerance=1e-12):
    for a, e in zip(flat(actual), flat(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance)


def walk(step, x, state, time):
    """Output and state of a sequence, step by step."""
    outputs = []
    for x_t in x.unbind(time):
        y, state = step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, time), state


def state_of(layer, *rows, dtype=torch.float32):
    """A state that the layer may have, of so many rows."""
    h = torch.randn(layer.num_layers, *rows, layer.proj_size or layer.hidden_size).tanh().to(dtype)
    if layer.mode != "LSTM":
        return h
    return h, torch.randn(layer.num_layers, *rows, layer.hidden_size).to(dtype)
