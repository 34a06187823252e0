"""Sequence architectures from the literature on fastrnn's fused layers, one file each.

Each is a plain ``torch.nn.Module`` to read beside its paper, to train and to change. ``fastrnn.demos`` trains
them on tasks that show what they are good for.
"""

from .cnn_bilstm import CNNBiLSTM
from .forecaster import Forecaster
from .language_model import LanguageModel
from .mogrifier import MogrifierLSTM, MogrifierLSTMCell

__all__ = ["CNNBiLSTM", "Forecaster", "LanguageModel", "MogrifierLSTM", "MogrifierLSTMCell"]
