"""Other packages' interfaces on fastrnn's layers: ``fastrnn.compat.sru`` for the ``sru`` package, and here
torch.nn's layers for programs that check ``isinstance(module, torch.nn.LSTM)``."""

from ._nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]
