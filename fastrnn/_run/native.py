"""torch's own layers, with the weights and arguments of fastrnn's.

``backend="cudnn"`` asks for them, for comparisons, and for the shapes where somebody has measured torch to be
faster. torch's limits hold there: no double backward on a GPU, no backward in eval mode, no gradient of a
packed sequence's unused rows.

``backend="auto"`` goes to them on a GPU that has not proven a kernel of fastrnn's to be right and faster
(``tuning``), and where no kernel covers the input: on Apple's, Intel's and AMD's GPUs, on NVIDIA's that are
older than the kernels, with complex numbers. They are tens of times faster there than the reference, whose
every step is a dozen small operations. What torch cannot do, the kernels or the reference still do.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import _checks
from .._cells import RNN
from .._ops import cuda, torch_state

# torch's functions and module modes by the kernels' name of a recurrence.
_LAYERS = {cell: getattr(torch._VF, cell) for cell in RNN}
_CELLS = {cell: getattr(torch._VF, f"{cell}_cell") for cell in _LAYERS}


def per_sample(weights) -> bool:
    """Whether gradients are wanted for each sample by torch.nn.utils' call_for_per_sample_grads: then weights
    know torch's functions and no others."""
    module = sys.modules.get("torch.nn.utils._expanded_weights.expanded_weights_impl")
    return module is not None and any(isinstance(w, module.ExpandedWeight) for w in weights)


@contextlib.contextmanager
def taken_apart() -> Iterator[None]:
    """Within it torch computes layers of such weights, which do not know oneDNN's LSTM."""
    # torch.backends.mkldnn.flags() sets other flags as well, and warns of them.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def layers(stack, x: Tensor, h, c, weights, rows: int, batch_sizes: Tensor | None):
    """A stack of layers (see ``rnn.Stack``) over x, (T, B, I) or packed rows (N, I).

    h and c are (L*D, B, .) or None for zeros. Returns y, h_n and c_n (None unless LSTM).
    """
    lstm = RNN[stack.cell].has_cell
    if h is None:
        states = stack.num_layers * (2 if stack.bidirectional else 1)
        h = x.new_zeros((states, rows, stack.proj_size or stack.hidden_size))
        c = x.new_zeros((states, rows, stack.hidden_size)) if lstm else None
    hx, weights = ((h, c) if lstm else h), list(weights)
    options = (stack.bias, stack.num_layers, stack.dropout, stack.training, stack.bidirectional)
    if batch_sizes is None:
        y, *states = _LAYERS[stack.cell](x, hx, weights, *options, False)
    else:
        y, *states = _LAYERS[stack.cell](x, batch_sizes, hx, weights, *options)
    return y, states[0], (states[1] if lstm else None)


def cell(name: str, x: Tensor, h: Tensor | None, c: Tensor | None, weights):
    """One step. x (B, I); h and c (B, H) or None for zeros. Returns h and c (None unless LSTM)."""
    lstm = RNN[name].has_cell
    if h is None:
        h = c = x.new_zeros((x.size(0), weights[1].size(1)))
    biases = weights[2:] or (None, None)
    out = _CELLS[name](x, (h, c) if lstm else h, *weights[:2], *biases)
    return out if lstm else (out, None)


def layers_instead(stack, x: Tensor, h, c, weights, rows: int, batch_sizes: Tensor | None):
    """``layers`` where they were not asked for: None where torch cannot."""
    if batch_sizes is not None:
        _checks.batch_sizes_values(batch_sizes, x.size(0))
    if not stack.training and torch_state.gradients():
        # In eval mode a GPU's library gives no gradients; one in training without dropout is the same layer.
        stack = stack._replace(training=True, dropout=0.0)
    elif stack.training and stack.num_layers > 1:
        _checks.probability(stack.name, stack.dropout)
    return _attempt(layers, stack, x, h, c, weights, rows, batch_sizes)


def cell_instead(name: str, x: Tensor, h: Tensor | None, c: Tensor | None, weights):
    """``cell`` where it was not asked for: None where torch cannot."""
    return _attempt(cell, name, x, h, c, weights)


def _attempt(function: Callable, *args):
    """function(*args), or None where torch cannot.

    What torch's layers cover differs by device and release (projections and half types above all), and no
    list of it would stay right; they answer by an error, before they have computed anything.
    """
    try:
        found = function(*args)
        cuda.of_torch["forward"] += args[1].is_cuda
        return found
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None
