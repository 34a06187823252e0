"""Which tests `make test` leaves to `make test-all`: what takes long while others show the same on another
model, dtype or backend.

The emulated kernels' cases all stay: to run takes a tenth of what it takes to compile them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

thorough = pytest.mark.thorough  # see conftest.py


def some(values: Iterable, kept: Callable[[Any], bool]) -> list:
    """As parameters of a test: those that `kept` says yes to run in `make test`, all in `make test-all`."""
    return [v if kept(v) else pytest.param(v, marks=thorough) for v in values]
