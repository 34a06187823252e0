"""What `make test` keeps of the long lists of cases, and how the rest is left to `make test-all`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import layer_cases
import pytest
import sru_cases
import test_cuda_emulated
import test_cuda_emulated_persistent as persistent
import test_sru_cuda_emulated
from selection import shows, strongest

#: A test that chooses, all of its cases, and the properties of which it keeps every combination.
FAMILIES = {
    "layer": (test_cuda_emulated.test_layer, layer_cases.grid(), ("cell", "dtype", "D")),
    "lengths and resets": (
        test_cuda_emulated.test_lengths_and_resets,
        layer_cases.masked_grid(),
        ("cell", "D", "save"),
    ),
    "persistent": (persistent.test_layer, persistent.cases(), ("cell", "precision", "tier")),
    "scan": (test_sru_cuda_emulated.test_grid, sru_cases.grid(), ("skip", "dtype", "D")),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_and_every_pair_stays(family):
    """Protects `make test`: each instance of a kernel, each size and each pair of properties is in a case
    that it runs; and it runs fewer than all."""
    test, cases, instance = FAMILIES[family]
    parameters = next(mark for mark in test.pytestmark if mark.name == "parametrize").args[1]
    assert [p.values[0] for p in parameters] == cases
    kept = [p.values[0] for p in parameters if not p.marks]
    assert set().union(*(shows(c, instance) for c in kept)) == set().union(
        *(shows(c, instance) for c in cases)
    )
    assert len(kept) < 0.6 * len(cases)


def test_one_of_two_equal_cases_is_left():
    """The first of those that show the same stays; of lists of rows it counts whether there is one."""
    case = layer_cases.Case
    cases = [
        case("lstm"),
        case("lstm", T=9),
        case("lstm"),
        case("lstm", sizes=(2, 1)),
        case("lstm", sizes=(3,)),
    ]
    assert [bool(p.marks) for p in strongest(cases)] == [False, False, True, False, True]


def test_thorough_tests_are_left_out(request):
    """Without --all they are deselected, and reported so; not with it, and not where a test is named."""
    rule = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    plain = SimpleNamespace(get_closest_marker=lambda name: None)
    long = SimpleNamespace(get_closest_marker=lambda name: name == "thorough")

    def left(all_: bool, *args: str):
        reported, items = [], [plain, long]
        hook = SimpleNamespace(pytest_deselected=lambda items: reported.extend(items))
        config = SimpleNamespace(getoption={"--all": all_}.get, args=args, hook=hook)
        rule.pytest_collection_modifyitems(config, items)
        assert [i for i in (plain, long) if i not in items] == reported
        return items

    assert left(False, "tests") == [plain]
    assert left(True, "tests") == left(False, "tests/test_x.py::test_y") == [plain, long]
