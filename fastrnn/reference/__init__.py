"""Every recurrence of fastrnn in plain torch: the definition, the oracle and the fallback.

What a fused kernel computes is defined here. The functions are differentiable twice, work in every dtype
torch multiplies (complex included) and on every device, and are written to be read rather than to be fast.

The equations are those of ``torch.nn.LSTM``, ``GRU`` and ``RNN``: the LSTM of Hochreiter & Schmidhuber (1997)
with the forget gate of Gers et al. (2000) and the projection of Sak et al. (2014); the GRU of Cho et al.
(2014) with the reset gate applied after the recurrent product, as cuDNN does; Elman's RNN (1990).

Shapes: T steps, B rows, I inputs, H hidden units, P projected units (H without a projection), D directions.
Gate blocks lie along the first dimension of the weights: LSTM i, f, g, o; GRU r, z, n; RNN one.

bfloat16 and float16 are computed in float32 and rounded once at the end, as the kernels do. float32 is
computed in float32: for an oracle, pass float64.
"""

from .linear import indrnn, linear_scan
from .rnn import GATES, gradients, gru_cell, layer, lstm_cell, masked_layer, rnn_cell
from .scan import sru_scan, sru_scan_gradients
from .slstm import slstm

__all__ = [
    "GATES",
    "gradients",
    "gru_cell",
    "indrnn",
    "layer",
    "linear_scan",
    "lstm_cell",
    "masked_layer",
    "rnn_cell",
    "slstm",
    "sru_scan",
    "sru_scan_gradients",
]
