"""Which cases `make test` runs, and which are left to `make test-all`.

The rule for lists of cases: one stays in `make test` if it shows something that no case before it does. What
it shows are all pairs of its properties' values (what goes wrong nearly always needs one or two of them), every
size, and the combinations that a family of kernels has an instance for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import pytest

thorough = pytest.mark.thorough  # see conftest.py


def shows(case: Any, instance: Sequence[str] = ()) -> set:
    """What a dataclass of a test's parameters shows; `instance`: properties that count together.

    A property that is a number is a size, unless it counts the directions. Of lists of rows it matters only
    whether there is one.
    """
    values = asdict(case)
    sizes = {(k, v) for k, v in values.items() if type(v) is int and k != "D"}
    kinds = {
        k: v is not None if isinstance(v, tuple | None) else v
        for k, v in values.items()
        if (k, v) not in sizes
    }
    return sizes | set(combinations(sorted(kinds.items(), key=str), 2)) | {tuple(values[k] for k in instance)}


def strongest(cases: Iterable, *instance: str) -> list:
    """The cases as parameters of a test, marked thorough where they are left to `make test-all`."""
    seen, out = set(), []
    for case in cases:
        new = shows(case, instance) - seen
        seen |= new
        out.append(pytest.param(case, id=str(case), marks=() if new else thorough))
    return out


def some(values: Iterable, kept: Callable[[Any], bool]) -> list:
    """As parameters of a test: those that `kept` says yes to run in `make test`."""
    return [v if kept(v) else pytest.param(v, marks=thorough) for v in values]
