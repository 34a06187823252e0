"""For the tests of the command line."""

import pytest

from fastrnn.cli import console


@pytest.fixture
def plain(monkeypatch):
    """As where rich is not installed."""
    monkeypatch.setattr(console, "rich", None)
