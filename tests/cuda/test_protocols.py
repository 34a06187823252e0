"""The exchanges' models, tests/protocols: right as they stand, and wrong with each planted mistake.

`make models-check` runs all of them and prints how large each is; here are those that take seconds.
"""

from __future__ import annotations

import pytest
from protocols import check
from selection import some

absent = check.missing()
pytestmark = pytest.mark.skipif(bool(absent), reason=f"the models are not checked: {absent}")

SMALL = [c for c in check.RIGHT if not any(d.startswith(("LOSE", "HASTY")) for d in c.defines)]


@pytest.mark.parametrize("model", some(check.RIGHT, lambda c: c in SMALL), ids=str)
def test_no_error(model):
    """In any order of everything that can happen."""
    assert check.run(model).error == ""


@pytest.mark.parametrize("model", some(check.WRONG, lambda c: c.fault != "READS_LATE"), ids=str)
def test_a_mistake_is_found(model):
    """So a model that finds nothing has looked."""
    assert check.run(model).error
