"""Run fastrnn's kernels where a program calls torch.nn's own recurrent layers, for as long as one likes.

torch.nn.LSTM.forward() ends in a call of ``torch._VF.lstm``, and its siblings likewise. That is what is
replaced, so that classes, modules, checkpoints and pickles stay torch's, and subclasses are reached too.
"""

from __future__ import annotations

import functools
import threading
from contextlib import ContextDecorator

import torch
from torch import Tensor
from torch.jit._builtins import _register_builtin

from .. import functional
from .._ops import library
from .._plan import route
from .._run import native

__all__ = ["patch"]


class patch(ContextDecorator):
    """``with fastrnn.patch():`` lets torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell run fastrnn's
    kernels inside the block, wherever the modules were built and whoever calls them.

    It is a decorator too, and without a block ``start()`` and ``stop()`` are its two ends. Blocks may be
    nested, overlap and lie in several threads: the whole process is served from the first beginning to the
    last end, so that threads which a program starts inside the block (autograd's own, data parallel workers)
    take part. An exception ends a block as always.

    What fastrnn has no kernel for (complex numbers, devices other than the CPU and CUDA) goes to torch as
    before. torch.export inside the block writes fastrnn's operators into the program, and warns that it then
    needs fastrnn where it is loaded. torch.jit.script and torch.compile look at source code, and see
    torch.nn's: a scripted program holds torch's own operators, inside the block as outside. For torch.compile
    take :func:`fastrnn.convert`.
    """

    _lock = threading.Lock()
    _users = 0
    _originals: dict[str, object] = {}  # noqa: RUF012 (one for the process, as intended)

    def __enter__(self) -> patch:
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    @classmethod
    def start(cls) -> None:
        """Begin. Every start() wants a stop()."""
        with cls._lock:
            if cls._users == 0:
                for name in _REPLACEMENTS:
                    cls._originals[name] = vars(torch._VF).get(name)
                    setattr(torch._VF, name, _stand_in(name, getattr(torch._VF, name)))
            cls._users += 1
            library.patched = cls._users

    @classmethod
    def stop(cls) -> None:
        """End. RuntimeError without a start()."""
        with cls._lock:
            if cls._users == 0:
                raise RuntimeError("fastrnn.patch: stop() without a start()")
            cls._users -= 1
            library.patched = cls._users
            if cls._users == 0:
                for name, original in cls._originals.items():
                    # torch._VF looks up what it does not have itself.
                    if original is None:
                        delattr(torch._VF, name)
                    else:
                        setattr(torch._VF, name, original)
                cls._originals.clear()


@functools.cache
def _stand_in(name: str, original):
    """What is put in the place of torch._VF's function. torch.jit.script, which looks through the module into
    it, is told that it is torch's operator, and writes that into its program.

    torch.jit knows functions by their ids, so that one it was told of must never go: hence the cache.
    """
    function = _REPLACEMENTS[name](original)
    _register_builtin(function, f"aten::{name}")
    return function


def _covered(x: Tensor) -> bool:
    return x.layout == torch.strided and route.supported(x)


def _layer(ours, **options):
    """Makes a stand-in for _VF.lstm, gru, rnn_tanh or rnn_relu.

    They have two signatures: (input, hx, params, bias, num_layers, dropout, train, bidirectional,
    batch_first), and for packed batches without the last and with batch_sizes in the second place.
    """

    def make(original):
        def call(*args, **kwargs):
            if kwargs or len(args) != 9 or not _covered(args[0]):
                return original(*args, **kwargs)
            if isinstance(args[2], Tensor) or (isinstance(args[1], Tensor) and ours is functional.lstm):
                x, sizes, hx, params, bias, num_layers, dropout, training, bidirectional = args
                batch_first = False
            else:
                x, hx, params, bias, num_layers, dropout, training, bidirectional, batch_first = args
                sizes = None
            try:
                y, state = ours(
                    x,
                    hx,
                    params,
                    bias=bias,
                    num_layers=num_layers,
                    dropout=dropout,
                    training=training,
                    bidirectional=bidirectional,
                    batch_first=batch_first,
                    batch_sizes=sizes,
                    **options,
                )
            except RuntimeError:
                if not native.per_sample(params):
                    raise
                with native.taken_apart():
                    return original(*args)
            return (y, *state) if isinstance(state, tuple) else (y, state)

        return call

    return make


def _cell(ours, **options):
    """Makes a stand-in for _VF.lstm_cell and its siblings: (input, hx, w_ih, w_hh, b_ih, b_hh)."""

    def make(original):
        def call(*args, **kwargs):
            if kwargs or len(args) != 6 or not _covered(args[0]):
                return original(*args, **kwargs)
            return ours(*args, **options)

        return call

    return make


_REPLACEMENTS = {
    "lstm": _layer(functional.lstm),
    "gru": _layer(functional.gru),
    "rnn_tanh": _layer(functional.rnn, nonlinearity="tanh"),
    "rnn_relu": _layer(functional.rnn, nonlinearity="relu"),
    "lstm_cell": _cell(functional.lstm_cell),
    "gru_cell": _cell(functional.gru_cell),
    "rnn_tanh_cell": _cell(functional.rnn_cell, nonlinearity="tanh"),
    "rnn_relu_cell": _cell(functional.rnn_cell, nonlinearity="relu"),
}
