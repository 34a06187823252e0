"""fastrnn's layers for programs that ask ``isinstance(module, torch.nn.LSTM)``.

fastrnn's own classes are no subclasses of torch's: torch.compile refuses to look into those. Here are both in
one, with fastrnn's methods first.
"""

from __future__ import annotations

from torch import nn

from .. import modules

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class LSTM(modules.LSTM, nn.LSTM):
    """:class:`fastrnn.LSTM`, and an instance of :class:`torch.nn.LSTM`.

    torch.compile breaks its graph at every call of it, as at torch's, unless
    ``torch._dynamo.config.allow_rnn`` is set.
    """


class GRU(modules.GRU, nn.GRU):
    """:class:`fastrnn.GRU`, and an instance of :class:`torch.nn.GRU`; see :class:`LSTM`."""


class RNN(modules.RNN, nn.RNN):
    """:class:`fastrnn.RNN`, and an instance of :class:`torch.nn.RNN`; see :class:`LSTM`."""


class LSTMCell(modules.LSTMCell, nn.LSTMCell):
    """:class:`fastrnn.LSTMCell`, and an instance of :class:`torch.nn.LSTMCell`."""


class GRUCell(modules.GRUCell, nn.GRUCell):
    """:class:`fastrnn.GRUCell`, and an instance of :class:`torch.nn.GRUCell`."""


class RNNCell(modules.RNNCell, nn.RNNCell):
    """:class:`fastrnn.RNNCell`, and an instance of :class:`torch.nn.RNNCell`."""
