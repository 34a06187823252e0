"""Elman's RNN, one gate with tanh or relu."""

import torch
from torch.nn.functional import linear

from .card import Card, Node


def tanh_step(gx, state, w_hh, b_hh=None, w_hr=None):
    return (torch.tanh(gx + linear(state[0], w_hh, b_hh)),)


def relu_step(gx, state, w_hh, b_hh=None, w_hr=None):
    return (torch.relu(gx + linear(state[0], w_hh, b_hh)),)


_FACTS = {"gates": 1, "saved": 0, "has_cell": False, "split": False}
TANH = Card("rnn_tanh", "RNN_TANH", "rnn", **_FACTS, activation="tanh", step=tanh_step, onnx=Node("RNN"))
RELU = Card(
    "rnn_relu",
    "RNN_RELU",
    "rnn",
    **_FACTS,
    activation="relu",
    step=relu_step,
    onnx=Node("RNN", attributes={"activations": ["Relu"]}),
)
