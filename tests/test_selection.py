"""How `make test` leaves tests to `make test-all`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace


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
