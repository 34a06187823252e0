"""Fast, complete drop-in replacements for torch.nn's recurrent layers, on the CPU and on CUDA.

``from fastrnn import LSTM`` in place of ``from torch.nn import LSTM``: the same arguments, parameters,
checkpoints and numbers. ``fastrnn.functional`` is the stateless interface, ``fastrnn.reference`` the same
recurrences in plain torch.
"""

from . import (
    _differentiable_ops,  # noqa: F401 - registers the derivatives of what tracers write
    _flops,  # noqa: F401 - and what torch's counter of operations counts for the operators
    _onnx,  # noqa: F401 - what the operators are in ONNX, for torch.onnx.export to find
    _script_ops,  # noqa: F401 - registers what TorchScript calls and torch.jit.trace records
    compat,
    functional,
    reference,
)
from ._version import __version__
from ._wavefront import wavefront
from .convert import convert, revert
from .explain import explain
from .modules import (
    GRU,
    LSTM,
    RNN,
    SRU,
    GRUCell,
    LSTMCell,
    RNNCell,
    SRUCell,
    SRUpp,
    SRUppAttention,
    SRUppCell,
    SRUppProjectedLinear,
)
from .patch import patch
from .streaming import Streamer

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SRU",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "SRUCell",
    "SRUpp",
    "SRUppAttention",
    "SRUppCell",
    "SRUppProjectedLinear",
    "Streamer",
    "__version__",
    "compat",
    "convert",
    "explain",
    "functional",
    "patch",
    "reference",
    "revert",
    "wavefront",
]
