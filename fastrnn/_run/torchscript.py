"""How a module tells torch.jit.script what to compile in place of its forward().

Eager forward() looks at what it was given, takes arguments that TorchScript has no types for, and ends in
fastrnn's operators. A scripted program is to run and load where there is no fastrnn, so what is compiled are
plain functions of torch's own operations, beside the modules in ``modules/_script_*.py``: methods in all but
their place. The module that is scripted stays as it is, and so does the model around it, which torch's own
hook for this purpose (``__prepare_scriptable__``) would rebuild in place.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable


def scripts_as(form: Callable) -> Callable:
    """Decorates a forward() for which torch.jit.script compiles the function ``form``.

    torch.jit reads a function's source as ``inspect`` finds it, which looks through ``__wrapped__``; nobody
    else does anything different, and nothing is added to a call. A subclass with a forward() of its own is
    compiled from that, as always.
    """

    def mark(forward: Callable) -> Callable:
        forward.__signature__ = inspect.signature(forward)  # or it would be the other's
        forward.__wrapped__ = form
        return forward

    return mark


class Overloads:
    """The class attribute ``__overloads__``: methods that torch.jit.script compiles in place of forward(), of
    which a scripted caller gets the first that its arguments fit.

    torch sets the attribute on every instance that it scripts, and reads it there again. A module that is
    converted from torch.nn's class, or to it, would keep the other class's; here instances have none.
    """

    def __init__(self, *methods: str) -> None:
        self._methods = methods

    def __set_name__(self, owner: type, name: str) -> None:
        self._forward = owner.forward

    def __get__(self, module, owner=None) -> dict[str, list[str]]:
        # A subclass's forward(), or an instance's, is what is to be compiled.
        if module is None or type(module).forward is not self._forward or "forward" in vars(module):
            return {}
        return {"forward": list(self._methods)}

    def __set__(self, module, value) -> None:
        pass


class NoVariants:
    """The class attribute ``__prepare_scriptable__``, which torch.jit.script asks a module for.

    There is none. But a variant of a cell has one that says that it cannot be scripted: what would be
    compiled is torch's own layer.
    """

    def __get__(self, module, owner=None):
        if module is not None and "variant" in vars(module):
            return functools.partial(refuse, module, f" with {', '.join(module.variant.words())}")
        raise AttributeError("__prepare_scriptable__")


def refuse(module, which: str = ""):
    """Say that a module cannot be scripted: a ``__prepare_scriptable__``."""
    raise RuntimeError(
        f"torch.jit.script: {type(module).__name__}{which} has no form in TorchScript, which knows torch's "
        "own layers; use torch.export or torch.jit.trace"
    )
