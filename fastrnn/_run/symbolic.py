"""Layers under symbolic tracing (torch.fx): leaves of the graph, as torch.nn's own are.

A tracer of torch.fx knows a leaf by its class being torch.nn's. It enters all other modules, and calls their
forward() with stand-ins, Proxies, in place of tensors. There is no tensor to look at then, and the checks of
the arguments fail; that is where a layer or a function of this package writes itself into the graph, whole,
through the Proxy's own tracer. So every tracer sees a leaf, whatever it takes for one, and nothing is asked
of a call with tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError

#: What the checks, or an access, raise for a Proxy.
ERRORS = (TypeError, AttributeError, TraceError)


def module_call(module: nn.Module, forward: Callable, arguments: dict) -> Proxy | None:
    """The call of a module as a node, for its forward() in which one of the ERRORS was raised; None where
    nothing is being traced, or nothing that the node could stand for.

    Args:
        forward: the function that failed. A subclass may have its own around it, which is what a tracer then
            looks into: there the node would stand for the wrong call.
        arguments: the function's locals.
    """
    proxy = _proxy(forward, arguments)
    if proxy is None or type(module).forward is not forward or "forward" in vars(module):
        return None
    try:
        path = proxy.tracer.path_of_module(module)
    except (NameError, AttributeError):
        path = ""
    if not path:  # the layer itself is the model that is traced
        return None
    return proxy.tracer.create_proxy("call_module", path, *_as_called(forward, arguments))


def function_call(function: Callable, arguments: dict) -> Proxy | None:
    """The same for a function: its call as a node."""
    proxy = _proxy(function, arguments)
    if proxy is None:
        return None
    return proxy.tracer.create_proxy("call_function", function, *_as_called(function, arguments))


def _proxy(function: Callable, arguments: dict) -> Proxy | None:
    return next(_proxies([arguments[name] for name in _parameters(function)]), None)


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(function).parameters)
    found.pop("self", None)
    return found


def _as_called(function: Callable, arguments: dict) -> tuple[tuple, dict]:
    """Arguments by place and by name, without those at the end, and by name, that have their default."""
    args, kwargs = [], {}
    count = 0
    for name, parameter in _parameters(function).items():
        value = arguments[name]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            args.append(value)
            if value is not parameter.default:
                count = len(args)
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs |= value
        elif value is not parameter.default:
            kwargs[name] = value
    return tuple(args[:count]), kwargs


def _proxies(value) -> Iterator[Proxy]:
    if isinstance(value, Proxy):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _proxies(item)
