from .cells import GRUCell, LSTMCell, RNNCell
from .gru import GRU
from .lstm import LSTM
from .minimal import IndRNN, MinGRU, MinLSTM
from .quantized import QuantizedGRU, QuantizedLSTM, QuantizedRNN, quantize
from .rnn import RNN
from .slstm import SLSTM
from .sru import SRU
from .sru_cell import SRUCell
from .srupp import SRUpp, SRUppAttention, SRUppCell, SRUppProjectedLinear
from .stack import LayerStack, stack

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SLSTM",
    "SRU",
    "GRUCell",
    "IndRNN",
    "LSTMCell",
    "LayerStack",
    "MinGRU",
    "MinLSTM",
    "QuantizedGRU",
    "QuantizedLSTM",
    "QuantizedRNN",
    "RNNCell",
    "SRUCell",
    "SRUpp",
    "SRUppAttention",
    "SRUppCell",
    "SRUppProjectedLinear",
    "quantize",
    "stack",
]
