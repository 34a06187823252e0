"""Fast, complete drop-in replacements for torch.nn's recurrent layers, on the CPU and on CUDA.

``from fastrnn import LSTM`` in place of ``from torch.nn import LSTM``: the same arguments, parameters,
checkpoints and numbers. ``fastrnn.functional`` is the stateless interface, ``fastrnn.reference`` the same
recurrences in plain torch.
"""

import sys

from . import compat, functional, reference, runtime
from ._ops import library as _library
from ._ops.library import release_scratch
from ._plan.explain import explain
from ._run import streaming as _streaming
from ._run.status import cuda_status
from ._run.streaming import Streamer
from ._run.tuning.tune import Tuning, tune
from ._run.wavefront import wavefront
from ._version import __version__
from .compat import _convert
from .compat._convert import convert, revert
from .compat._onnx import from_onnx
from .compat._patch import patch
from .modules import (
    GRU,
    LSTM,
    RNN,
    SLSTM,
    SRU,
    GRUCell,
    IndRNN,
    LayerStack,
    LSTMCell,
    MinGRU,
    MinLSTM,
    QuantizedGRU,
    QuantizedLSTM,
    QuantizedRNN,
    RNNCell,
    SRUCell,
    SRUpp,
    SRUppAttention,
    SRUppCell,
    SRUppProjectedLinear,
    quantize,
    stack,
)
from .runtime import get_cmake_dir, get_include, get_library

if _library.cpu_loaded:  # else there are no operators to say anything about
    from ._ops import (
        differentiable,  # noqa: F401 - registers the derivatives of what tracers write
        fakes,  # noqa: F401 - and what they are told of the results
        flops,  # noqa: F401 - and what torch's counter of operations counts for the operators
        onnx,  # noqa: F401 - what the operators are in ONNX, for torch.onnx.export to find
        onnx_elementwise,  # noqa: F401 - and those of the layers without a product
        script,  # noqa: F401 - registers what TorchScript calls and torch.jit.trace records
    )

# Where pickles look that were made before these modules moved: streamers, and layers of convert().
sys.modules[f"{__name__}.streaming"] = _streaming
sys.modules[f"{__name__}.convert"] = _convert

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
    "Streamer",
    "Tuning",
    "__version__",
    "compat",
    "convert",
    "cuda_status",
    "explain",
    "from_onnx",
    "functional",
    "get_cmake_dir",
    "get_include",
    "get_library",
    "patch",
    "quantize",
    "reference",
    "release_scratch",
    "revert",
    "runtime",
    "stack",
    "tune",
    "wavefront",
]
