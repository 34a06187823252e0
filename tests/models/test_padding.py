"""What lies in the padding reaches no row of any architecture, NaN included."""

from __future__ import annotations

import pytest
import torch

from fastrnn.models import (
    CNNBiLSTM,
    ConvLSTM,
    Forecaster,
    MogrifierLSTM,
    NeuralTuringMachine,
    PointerNetwork,
)

T, B, F, K = 6, 3, 2, 2
LENGTHS = [6, 2, 3]
WITHIN = torch.arange(T).unsqueeze(1) < torch.tensor(LENGTHS)
ORDER = torch.tensor([[1] * B, [2] * B, [0] * B])


def _covariates(padding: float) -> torch.Tensor:
    """(T + K, B, F), of each row as many steps as it has and K more."""
    known = torch.arange(T + K).unsqueeze(1) < torch.tensor(LENGTHS) + K
    drawn = torch.randn(T + K, B, F, generator=torch.Generator().manual_seed(1))
    return drawn.masked_fill(~known[..., None], padding)


def _every_forecast(model, x, padding):
    return model(x, _covariates(padding), lengths=LENGTHS, every_step=True).movedim(1, 2)[WITHIN]


def _pointer(cell: str, both: bool):
    return (
        lambda: PointerNetwork(F, 4, cell=cell, bidirectional=both),
        lambda model, x, _: model.log_prob(x, ORDER, LENGTHS),
    )


CASES = {
    "mogrifier": (lambda: MogrifierLSTM(F, 3, 2), lambda model, x, _: model(x, lengths=LENGTHS)[0]),
    "ntm": (
        lambda: NeuralTuringMachine(F, 3, 4, memory_slots=4, memory_width=2),
        lambda model, x, _: model(x, lengths=LENGTHS)[0],
    ),
    "convlstm": (
        lambda: ConvLSTM(F, 3, dims=1, bidirectional=True, num_layers=2),
        lambda model, x, _: model(x.unsqueeze(3), lengths=LENGTHS)[0],
    ),
    "cnn": (lambda: CNNBiLSTM(F, 4, head="classify"), lambda model, x, _: model(x, LENGTHS)),
    **{
        f"forecaster-{cell}": (
            lambda cell=cell: Forecaster(F, K, cell=cell, covariates=F),
            lambda model, x, padding: model(x, _covariates(padding), lengths=LENGTHS),
        )
        for cell in ("LSTM", "SRU")
    },
    **{
        f"forecaster-{cell}-every-step": (
            lambda cell=cell: Forecaster(F, K, cell=cell, covariates=F),
            _every_forecast,
        )
        for cell in ("LSTM", "SRU")
    },
    **{f"pointer-{cell}": _pointer(cell, False) for cell in ("lstm", "gru", "sru")},
    **{f"pointer-{cell}-both-ways": _pointer(cell, True) for cell in ("lstm", "sru")},
}


@pytest.mark.parametrize("case", CASES)
def test_nan_in_the_padding_is_as_zero(case):
    """Protects outputs and the gradients of every weight: zero times NaN is NaN, in a product that takes the
    padding along as in a mask's gradient."""
    make, call = CASES[case]
    torch.manual_seed(0)
    model, drawn = make(), torch.randn(T, B, F)
    found = []
    for padding in (0.0, float("nan")):
        model.zero_grad()
        y = call(model, drawn.masked_fill(~WITHIN.unsqueeze(2), padding), padding)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in model.parameters())])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, rtol=0, atol=0)
