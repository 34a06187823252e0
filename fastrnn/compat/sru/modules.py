"""SRU, SRUCell, SRUpp and SRUppCell as ``sru.modules`` has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from ..._checks import scan as scan_checks
from ...modules import sru as _sru
from ...modules import sru_cell as _sru_cell
from ...modules.srupp import SRUpp, SRUppAttention, SRUppCell, SRUppProjectedLinear
from ._signatures import VERSIONS, bind, version_of
from ._weights import TransposedWeight, stored

__all__ = ["SRU", "SRUCell", "SRUpp", "SRUppAttention", "SRUppCell", "SRUppProjectedLinear"]


def _resolve(name: str, cell: bool, args: tuple, kwargs: dict, version: str | None) -> tuple[str, dict]:
    """The version of a call and its arguments by name."""
    from .. import sru  # its attribute default_version may be set by the user

    default = sru.default_version
    for value in (version, default):
        if value is not None and value not in VERSIONS:
            raise ValueError(f"{name}: sru_version should be {' or '.join(VERSIONS)}, got {value!r}")
    version = version or version_of(cell, args, kwargs, default)
    bound = bind(name, cell, args, kwargs, version)
    bound["init"] = "2.6" if version == "2.6.0" else "3.0"
    return version, bound


def _effective(projection: int, inputs: int, outputs: int) -> int:
    """sru 2.6 has a projection only where it is narrower than both sides."""
    return projection if 0 < projection < inputs and projection < outputs else 0


class SRUCell(_sru_cell.SRUCell):
    """:class:`fastrnn.SRUCell` with the arguments of sru 2.6's or 3.0's SRUCell, and 2.6's attributes."""

    __jit_unused_properties__: ClassVar[list[str]] = [
        *_sru_cell.SRUCell.__jit_unused_properties__,
        "custom_m",
        "weight",
        "weight_proj",
    ]

    def __init__(self, *args, sru_version: str | None = None, **kwargs) -> None:
        name = type(self).__name__
        version, bound = _resolve(name, True, args, kwargs, sru_version)
        if version == "2.6.0":
            projection = bound.pop("n_proj", None) or bound.get("projection_size") or 0
            outputs = bound.get("hidden_size", 0) * (2 if bound.get("bidirectional") else 1)
            bound["projection_size"] = _effective(projection, bound.get("input_size", 0), outputs)
        super().__init__(**bound)

    @property
    def custom_m(self) -> nn.Module | Callable | None:
        """The transform module or function, where it is the user's. Another may be assigned."""
        if not self._custom:
            return None
        transform = self.transform_module
        return transform.function if isinstance(transform, _sru_cell.FunctionTransform) else transform

    @property
    def weight(self) -> Tensor:
        """(inputs, O*K), as 2.6 stored it: a view of the transform module's last weight, with its ``grad``.

        A Parameter of this shape may be assigned: it becomes the layer's own, which is stored the other way
        round, and its shape with that. Another layer's ``weight`` ties the two.
        """
        if self._custom:
            raise AttributeError(f"{type(self).__name__} with a module of its own has no attribute 'weight'")
        return TransposedWeight.of(self._linear("weight").weight)

    @property
    def weight_proj(self) -> Tensor | None:
        """(I, P), as 2.6 stored it, or None without projection; otherwise as ``weight``."""
        linear = self._linear("weight_proj")
        return None if linear is None else TransposedWeight.of(linear.weight)

    def _linear(self, attribute: str) -> nn.Linear | None:
        """The linear map that holds the weight of this name in 2.6."""
        if self._custom:
            return None
        if attribute == "weight_proj":
            return self.transform_module[0] if self.projection_size else None
        return self.transform_module[1] if self.projection_size else self.transform_module

    def __setattr__(self, name: str, value) -> None:
        # Not by setters: of a Parameter or a module torch would make a new entry, and ask for no property.
        if name == "custom_m":
            scan_checks.transform_module(type(self).__name__, value)
            if value is None:
                raise TypeError(f"{type(self).__name__}: custom_m should be a module or a function, got None")
            self._custom = True
            self.transform_module = _sru_cell.as_module(value)
        elif name in ("weight", "weight_proj"):
            linear = self._linear(name)
            if linear is None:
                raise AttributeError(f"{type(self).__name__} has no {name} to assign to")
            linear.weight = stored(f"{type(self).__name__}.{name}", value, linear.weight.shape)
        else:
            super().__setattr__(name, value)


class _StackedCell(SRUCell):
    """A layer of SRU, whose arguments are known by name and in fastrnn's terms."""

    def __init__(self, *args, **kwargs) -> None:
        _sru_cell.SRUCell.__init__(self, *args, **kwargs)


class SRU(_sru.SRU):
    """:class:`fastrnn.SRU` with the arguments of sru 2.6's or 3.0's SRU; ``sru_version`` says whose."""

    def __init__(self, *args, sru_version: str | None = None, **kwargs) -> None:
        version, bound = _resolve(type(self).__name__, False, args, kwargs, sru_version)
        projection = bound.get("projection_size", 0)
        if version == "2.6.0" and isinstance(projection, int):
            outputs = bound.get("hidden_size", 0) * (2 if bound.get("bidirectional") else 1)
            first = outputs if bound.get("proj_input_to_hidden_first") else bound.get("input_size", 0)
            layers = bound.get("num_layers", 2)
            bound["projection_size"] = [
                _effective(projection, outputs if i else first, outputs) for i in range(layers)
            ]
        super().__init__(**bound)
        self.projection_size = projection

    _cell = _StackedCell

    def make_backward_compatible(self) -> None:
        """Does nothing: sru 2.6 brought modules of its own older pickles up to date here."""
