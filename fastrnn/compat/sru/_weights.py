"""Weights as sru 2.6 stored them, (inputs, outputs), of linear maps that store them the other way round."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import _checks
from ..._checks import scan as scan_checks


class TransposedWeight(Tensor):
    """A view of a Parameter of two dimensions, transposed: the same numbers, the same gradient.

    ``grad`` and ``requires_grad`` are the Parameter's, read and written through; operations see an ordinary
    tensor, whose gradient goes to the Parameter. A deep copy, and what is pickled, is a Parameter of its own
    in this shape, as in sru 2.6. An optimizer needs the Parameter itself: ``cell.parameters()`` has it.
    """

    # Results are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl
    _parameter: Tensor

    @classmethod
    def of(cls, parameter: Tensor) -> TransposedWeight:
        view = parameter.t().as_subclass(cls)
        view._parameter = parameter
        return view

    def __deepcopy__(self, memo: dict) -> nn.Parameter:
        parameter = self._parameter
        memo[id(self)] = own = nn.Parameter(
            parameter.detach().t().clone(memory_format=torch.contiguous_format), parameter.requires_grad
        )
        return own

    def __reduce_ex__(self, protocol: int) -> tuple:
        parameter = self._parameter
        return nn.Parameter(parameter.detach().t(), parameter.requires_grad).__reduce_ex__(protocol)

    @property
    def grad(self) -> Tensor | None:
        grad = self._parameter.grad
        return None if grad is None else grad.t()

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._parameter.grad = None if value is None else value.t()

    @property
    def requires_grad(self) -> bool:
        return self._parameter.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._parameter.requires_grad = value

    def requires_grad_(self, requires_grad: bool = True) -> TransposedWeight:
        self._parameter.requires_grad_(requires_grad)
        return self


#: Marks Parameters that were assigned before and so have the stored shape already.
_TAKEN = "_stored_transposed"


def stored(what: str, value: object, shape: torch.Size) -> nn.Parameter:
    """The Parameter for a linear map of this weight's shape, (outputs, inputs), from one in sru 2.6's.

    It stays the same object, so that optimizers that hold it go on training the layer.
    """
    if isinstance(value, TransposedWeight):
        value, taken = value._parameter, True
    elif isinstance(value, nn.Parameter):
        taken = hasattr(value, _TAKEN)
    else:
        raise TypeError(f"{what}: expected a torch.nn.Parameter, got {_checks.kind(value)}")
    got = value.shape[::-1] if taken else value.shape
    if got != shape[::-1]:
        raise scan_checks.SizeError(
            f"{what}: expected a Parameter of size {list(shape[::-1])}, got {list(got)}"
        )
    if not taken:
        grad, value.grad = value.grad, None
        value.data = value.data.t().contiguous()
        value.grad = None if grad is None else grad.t().contiguous()
        setattr(value, _TAKEN, True)
    return value
