"""Faults planted in the persistent kernels: the cases and the race check have to find each of them."""

from __future__ import annotations

import pytest
from emu.faults import assert_found, outcomes
from emu.planted.persistent import FAULTS


@pytest.fixture(scope="module")
def found(request):
    return outcomes(request, FAULTS, "emu.persistent_checks")


def test_no_fault_no_race(found):
    """Every access to shared memory and to the exchange is ordered, and the results are right."""
    assert found[None].get("worst", 2) <= 1, found[None]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(found, fault):
    """The cases and the race check would not let these pass."""
    assert_found(fault, found[fault])
