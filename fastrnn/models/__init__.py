"""Sequence architectures from the literature on fastrnn's fused layers, one file each.

Each is a plain ``torch.nn.Module`` to read beside its paper, to train and to change. The repository's
examples/ train them on tasks that show what they are good for.
"""

from .cnn_bilstm import CNNBiLSTM
from .conv_lstm import ConvLSTM, ConvLSTMCell
from .forecaster import Forecaster
from .language_model import LanguageModel
from .memory_network import MemoryNetwork
from .mogrifier import MogrifierLSTM, MogrifierLSTMCell
from .ntm import NeuralTuringMachine, NTMState
from .pointer_network import PointerNetwork
from .seq2seq import Seq2Seq

__all__ = [
    "CNNBiLSTM",
    "ConvLSTM",
    "ConvLSTMCell",
    "Forecaster",
    "LanguageModel",
    "MemoryNetwork",
    "MogrifierLSTM",
    "MogrifierLSTMCell",
    "NTMState",
    "NeuralTuringMachine",
    "PointerNetwork",
    "Seq2Seq",
]
