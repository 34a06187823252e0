"""Elman's RNN, one gate with tanh or relu."""

import torch
from torch.nn.functional import linear

from .card import Card, Node


def tanh_step(gx, state, w_hh, b_hh=None, w_hr=None):
    return (torch.tanh(gx + linear(state[0], w_hh, b_hh)),)


def relu_step(gx, state, w_hh, b_hh=None, w_hr=None):
    return (torch.relu(gx + linear(state[0], w_hh, b_hh)),)


def tanh_gates(variant, own, gx, recur, state):
    return (torch.tanh(gx + recur(0, 1)),)


def relu_gates(variant, own, gx, recur, state):
    return (torch.relu(gx + recur(0, 1)),)


_FACTS = {"gates": 1, "saved": 0, "has_cell": False, "split": False}
TANH = Card(
    "rnn_tanh",
    "RNN_TANH",
    "rnn",
    **_FACTS,
    activation="tanh",
    step=tanh_step,
    gates_of=tanh_gates,
    onnx=Node("RNN"),
)
RELU = Card(
    "rnn_relu",
    "RNN_RELU",
    "rnn",
    **_FACTS,
    activation="relu",
    step=relu_step,
    gates_of=relu_gates,
    onnx=Node("RNN", attributes={"activations": ["Relu"]}),
)
