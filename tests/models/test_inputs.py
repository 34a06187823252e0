"""The checks that all architectures share."""

from __future__ import annotations

import pytest
import torch

from fastrnn.models import _inputs


def test_what_fits_passes():
    """Protects right calls: bounds belong to what is allowed, and what comes back is what the models use."""
    assert _inputs.size("Model", "hidden_size", 1) == 1
    assert _inputs.token("Model", "eos", 4, 5) == 4
    lengths = _inputs.row_lengths("Model", torch.tensor([0, 3], dtype=torch.int32), 2, 3, least=0)
    assert lengths.dtype == torch.int64
    within = _inputs.steps_within(lengths, 3, torch.device("cpu"))
    assert within.tolist() == [[False, True]] * 3
    words = torch.tensor([[0, 4]])
    assert _inputs.tokens("Model", "source", words, 5, ("T", "B")) is words
    state = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert _inputs.lstm_state("Model", list(state), 1, 2, 3) == state


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _inputs.size("Model", "hops", True), ValueError, "hops should be an integer >= 1, got True"),
        (lambda: _inputs.size("Model", "hops", 2.0), ValueError, "hops should be an integer >= 1, got 2.0"),
        (
            lambda: _inputs.token("Model", "eos", 5, 5),
            ValueError,
            "eos should be an integer from 0 to 4, got 5",
        ),
        (lambda: _inputs.token("Model", "eos", 1.0, 5), ValueError, "eos should be an integer .* got 1.0"),
        (
            lambda: _inputs.row_lengths("Model", [-1, 3], 2, 3, least=0),
            ValueError,
            "lengths should be from 0 to 3, the steps, got -1",
        ),
        (
            lambda: _inputs.row_lengths("Model", [1, 4], 2, 3),
            ValueError,
            "lengths should be from 1 to 3, the steps, got 4",
        ),
        (
            lambda: _inputs.row_lengths("Model", [True, True], 2, 3),
            TypeError,
            "should be integers, got torch.b",
        ),
        (lambda: _inputs.row_lengths("Model", [1], 2, 3), ValueError, r"of size \(2,\), got \[1\]"),
        (lambda: _inputs.shaped("Model", "x", None, "T"), TypeError, "x should be a Tensor, got NoneType"),
        (
            lambda: _inputs.shaped("Model", "x", torch.zeros(0, 2), "T", 2),
            ValueError,
            r"x should be of size \(T, 2\), none of them 0, got \[0, 2\]",
        ),
        (
            lambda: _inputs.lstm_state("Model", torch.zeros(2, 3), 2, 3),
            TypeError,
            r"hx should be a tuple \(h_0, c_0\), got a Tensor of size \[2, 3\]",
        ),
        (
            lambda: _inputs.lstm_state("Model", (torch.zeros(2, 3), torch.zeros(2, 2)), 2, 3),
            ValueError,
            r"hx\[1\] should be of size \(2, 3\), got \[2, 2\]",
        ),
    ],
)
def test_each_error_names_the_argument(call, error, message):
    """Protects the one wording: model, argument, what was expected, what came."""
    with pytest.raises(error, match=f"^Model: .*{message}"):
        call()
