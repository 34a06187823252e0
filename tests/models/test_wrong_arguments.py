"""What the architectures refuse, beyond the checks that the tests of each one hold."""

from __future__ import annotations

import pytest
import torch

import fastrnn
from fastrnn.models import (
    CNNBiLSTM,
    ConvLSTM,
    Forecaster,
    LanguageModel,
    MogrifierLSTM,
    MogrifierLSTMCell,
    NeuralTuringMachine,
    PointerNetwork,
    Seq2Seq,
)
from fastrnn.models.sampling import probabilities


def _seq2seq(**options):
    return Seq2Seq(**{"source_size": 7, "target_size": 5, "hidden_size": 8, "bos": 0, "eos": 1, **options})


def _ntm(**options):
    return NeuralTuringMachine(2, 3, 4, **{"memory_slots": 6, "memory_width": 3, **options})


def _seq(*sizes):
    return torch.zeros(sizes)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (_seq2seq, {"hidden_size": -1}),
        (_seq2seq, {"hidden_size": 8.0}),
        (_seq2seq, {"embedding_size": 0}),
        (_seq2seq, {"num_layers": 0}),
        (_seq2seq, {"num_layers": "2"}),
        (_seq2seq, {"dropout": 2.0}),
        (_seq2seq, {"dropout": None}),
        (lambda **o: PointerNetwork(2, 8, **o), {"num_layers": 1.5}),
        (lambda **o: PointerNetwork(2, 8, **o), {"dropout": -0.5}),
        (lambda **o: Forecaster(2, 3, **o), {"hidden_size": 2.5}),
        (lambda **o: Forecaster(2, 3, **o), {"num_layers": 0}),
        (lambda **o: Forecaster(2, 3, **o), {"dropout": 3.0}),
        (lambda **o: Forecaster(2, 3, **o), {"quantiles": 0.5}),
        (lambda **o: Forecaster(2, 3, **o), {"quantiles": ("a",)}),
        (lambda **o: CNNBiLSTM(2, 4, **o), {"hidden_size": 0}),
        (lambda **o: CNNBiLSTM(2, 4, **o), {"num_layers": 0}),
        (lambda **o: CNNBiLSTM(2, 4, **o), {"dropout": 2.0}),
        (lambda **o: CNNBiLSTM(2, 4, **o), {"channels": (0, 3)}),
        (lambda **o: CNNBiLSTM(2, 4, **o), {"channels": 8}),
        (lambda **o: CNNBiLSTM(2, 4, **o), {"strides": (0, 1)}),
        (lambda **o: CNNBiLSTM(2, 4, **o), {"strides": ((2, 1), (2, 1))}),
        (lambda **o: CNNBiLSTM(2, 4, **o), {"strides": 3}),
        (lambda **o: CNNBiLSTM(2, 4, height=8, **o), {"strides": (2, 1)}),
        (lambda **o: CNNBiLSTM(2, 4, height=8, **o), {"strides": ((2, 1, 1), (2, 1))}),
        (lambda **o: CNNBiLSTM(2, 4, height=8, **o), {"strides": ((0, 1), (2, 1))}),
        (lambda **o: ConvLSTM(2, 3, **o), {"kernel_size": None}),
        (lambda **o: ConvLSTM(2, 3, **o), {"dilation": 1.0}),
        (lambda **o: MogrifierLSTM(2, 3, **o), {"dropout": 2.0}),
        (lambda **o: MogrifierLSTMCell(2, 3, **o), {"rounds": -1}),
        (lambda **o: MogrifierLSTMCell(2, 3, **o), {"rank": 0}),
        (lambda **o: MogrifierLSTMCell(hidden_size=3, **o), {"input_size": 0}),
        (_ntm, {"shift_range": 1.5}),
        (_ntm, {"shift_range": None}),
        (lambda **o: LanguageModel(fastrnn.GRU(3, 4), 5, **o), {"dropout": 1.5}),
        (lambda **o: _seq2seq().generate(torch.zeros(2, 1).long(), **o), {"length_penalty": "a"}),
        (lambda **o: probabilities(_seq(1, 3), **o), {"temperature": None}),
        (lambda **o: probabilities(_seq(1, 3), **o), {"top_p": "a"}),
    ],
)
def test_options(make, wrong):
    """Protects the message: the argument's name and what came, before torch stumbles over it elsewhere."""
    ((name, value),) = wrong.items()
    got = value[0] if isinstance(value, tuple) and name != "quantiles" else value
    with pytest.raises(ValueError, match=rf"{name}\S* should .*got .*") as caught:
        make(**wrong)
    assert str(got if not isinstance(got, tuple) else got[0]) in str(caught.value)


def test_numbers_at_their_bounds_pass():
    """Protects what is right: bounds belong to what is allowed, and integers are numbers."""
    _seq2seq(dropout=1, num_layers=2)
    assert probabilities(_seq(1, 3), temperature=0, top_p=1).tolist() == [[1, 0, 0]]
    CNNBiLSTM(2, 4, height=8, channels=[3], strides=[[2, 1]])
    Forecaster(2, 3, quantiles=[0.5])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: ConvLSTM(2, 3)(_seq(3, 2, 2, 4, 4).double()),
            ValueError,
            "x should be torch.float32 on cpu",
        ),
        (lambda: CNNBiLSTM(2, 4)(_seq(3, 2, 2).double()), ValueError, "x should be .* got torch.float64"),
        (lambda: MogrifierLSTM(2, 3)(_seq(3, 2, 2).half()), ValueError, "x should be .* got torch.float16"),
        (lambda: MogrifierLSTMCell(2, 3)(_seq(1, 5), None), ValueError, r"x should be of size \(B, 2\)"),
        (lambda: MogrifierLSTMCell(2, 3)(_seq(1, 2), None), TypeError, "hx should be a tuple"),
        (lambda: _ntm()(_seq(3, 2, 2).double()), ValueError, "x should be .* got torch.float64"),
        (lambda: _ntm()(_seq(3, 2, 2), (1, 2)), TypeError, "state should be an NTMState"),
        (lambda: Forecaster(2, 3).loss(_seq(3, 1, 2, 3), None), TypeError, "target should be a Tensor"),
        (lambda: LanguageModel(torch.nn.Linear(3, 3), 5), TypeError, "rnn should be a layer .* got Linear"),
        (lambda: LanguageModel(fastrnn.LSTMCell(3, 3), 5), TypeError, "rnn should be .* got LSTMCell"),
        (lambda: Seq2Seq.forward(_seq2seq(), *_tokens(), "ab"), TypeError, "lengths should be .* got 'ab'"),
        (lambda: Seq2Seq.forward(_seq2seq(), *_tokens(), [2**70, 1]), TypeError, "lengths should be"),
        (lambda: _ctc(None), TypeError, "lengths should be .* got None"),
        (lambda: _ctc([6, 7]), ValueError, "lengths should be from 1 to 6, the steps, got 7"),
    ],
)
def test_calls(call, error, text):
    """Protects what a call says of tensors of the wrong kind, and of objects that are none."""
    with pytest.raises(error, match=text):
        call()


def _tokens():
    return torch.zeros(3, 2).long(), torch.zeros(4, 2).long()


def _ctc(lengths):
    model = CNNBiLSTM(2, 4)
    return model.loss(model(_seq(6, 2, 2))[0], lengths, torch.ones(2, 1).long(), [1, 1])
