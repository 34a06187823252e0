"""Exchange torch.nn's recurrent layers inside a model for fastrnn's, and back.

What changes is a module's class, nothing else: its parameters, buffers, hooks, mode and whatever else hangs
on it stay the very objects they were, and so do all references to it. Both kinds keep the same state.
"""

from __future__ import annotations

import types
from functools import cache

import torch
from torch import nn
from torch.nn.utils import parametrize

from .. import _checks, compat, modules
from .._checks import tools
from ..modules import _overrides

__all__ = ["convert", "revert"]

_NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
_OURS = {getattr(nn, name): getattr(modules, name) for name in _NAMES}
_COMPAT = {getattr(nn, name): getattr(compat, name) for name in _NAMES}
_TORCHS = {ours: theirs for table in (_OURS, _COMPAT) for theirs, ours in table.items()}


def convert(
    model: nn.Module,
    *,
    compat: bool = False,
    own_forward: bool = False,
    save: str | None = None,
    backend: str | None = None,
) -> nn.Module:
    """Make fastrnn's layers of torch.nn's LSTM, GRU, RNN and their cells in a model, in place.

    Parameters, buffers, hooks, parametrizations, training mode, device, dtype, requires_grad and optimizers
    that hold the parameters are not touched. A module in several places stays one module. Layers that are
    already fastrnn's stay as they are.

    A subclass of torch.nn.LSTM that has no forward() of its own becomes a class of the same name between it
    and :class:`fastrnn.compat.LSTM`. One that has, and a module whose forward was replaced on the instance,
    is left alone: nobody knows what it does there.

    Args:
        model: any module; it may itself be one of the layers.
        compat: make instances of ``fastrnn.compat``'s classes, which pass ``isinstance(m, torch.nn.LSTM)``
            and are not for torch.compile.
        own_forward: convert subclasses with a forward() of their own too. The part of it that goes through
            ``super().forward()`` then runs fastrnn's kernels.
        save, backend: for the converted layers, as in :class:`fastrnn.LSTM`.

    Returns:
        The model.

    Warns:
        UserWarning: once, where a layer was prepared for a tool that knows layers by their exact class:
            quantization of torch.ao, BackPACK.

    Raises:
        TypeError: ``model`` is no module. ValueError: an unknown ``save`` or ``backend``.
    """
    _module("convert", model)
    own = {"save": save, "backend": backend}
    for (argument, value), allowed in zip(own.items(), (_checks.SAVE, _checks.BACKENDS), strict=True):
        if value is not None:
            _checks.one_of("convert", argument, value, allowed)

    def target(cls: type) -> type | None:
        if cls in _OURS:
            return (_COMPAT if compat else _OURS)[cls]
        stock = next((base for base in cls.__mro__ if base in _OURS), None)
        if stock is None or issubclass(cls, tuple(_OURS.values())):
            return None
        return _accelerated(cls, stock) if own_forward or cls.forward is stock.forward else None

    for module in model.modules():
        if "forward" in vars(module) or not _change(module, target):
            continue
        for mark in tools.MARKS:
            if vars(module).get(mark):
                tools.warn(mark, type(module).__name__)
        if isinstance(module, nn.RNNBase):
            for name in _overrides.NAMES & vars(module).keys():
                setattr(module, name, vars(module)[name])  # has forward() call them
            for argument, value in own.items():
                if value is not None:
                    setattr(module, argument, value)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undo :func:`convert`: make torch.nn's layers of fastrnn's in a model, in place, and return the model.

    Layers built as fastrnn's become torch.nn's too, losing ``save`` and ``backend``. SRU, SRU++, variants of
    a cell and classes derived from fastrnn's, for which torch has nothing, stay. Weights on a GPU are put
    into one piece of memory again, as cuDNN wants them.

    Raises TypeError where ``model`` is no module.
    """
    _module("revert", model)

    def target(cls: type) -> type | None:
        return _TORCHS.get(cls) or vars(cls).get("_converted_from")

    for module in model.modules():
        if "variant" in vars(module):  # torch has no such layer
            continue
        if _change(module, target):
            for attribute in _own_attributes(_stock(type(module))):
                vars(module).pop(attribute, None)
            vars(module).pop("_run", None)
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
    return model


def _module(name: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: model should be a torch.nn.Module, got {_checks.kind(model)}")


def _change(module: nn.Module, target) -> bool:
    """Give a module the class that target() names for its own, if it names one."""
    cls = type(module)
    # A parametrized module has a class all its own on top of the one it had before, with a property for each
    # parametrized tensor. A copy of the module shares it, so another is made instead of changing its bases.
    parametrized = parametrize.is_parametrized(module)
    new = target(cls.__bases__[0] if parametrized else cls)
    if new is None:
        return False
    if parametrized:
        body = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        new = type(f"Parametrized{new.__name__}", (new,), body)
    module.__class__ = new
    return True


@cache
def _accelerated(cls: type, stock: type) -> type:
    """A subclass of torch.nn's layer with fastrnn's forward where it had torch.nn's.

    Its order of resolution is: what cls defines, what fastrnn's layer defines, what torch.nn's does.
    """

    def reduce(module, protocol):
        # Pickle and copy cannot find a class made at run time; they find the one it was made from.
        state = module.__getstate__() if hasattr(module, "__getstate__") else vars(module)
        return _rebuild, (cls, stock), state

    body = {
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__reduce_ex__": reduce,
        "_converted_from": cls,
    }
    return types.new_class(cls.__name__, (cls, _COMPAT[stock]), {}, lambda namespace: namespace.update(body))


def _rebuild(cls: type, stock: type) -> nn.Module:
    return object.__new__(_accelerated(cls, stock))


def _stock(cls: type) -> type:
    """torch.nn's class that cls is or derives from."""
    return next(base for base in cls.__mro__ if base in _OURS)


@cache
def _own_attributes(stock: type) -> frozenset[str]:
    """Attributes of instances that fastrnn's layer has and torch.nn's has not."""
    device = torch.device("meta")
    ours, theirs = (cls(1, 1, device=device) for cls in (_OURS[stock], stock))
    return frozenset(vars(ours).keys() - vars(theirs).keys())
