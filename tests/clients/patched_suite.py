"""A pytest plugin, ``-p patched_suite``: another project's tests run inside fastrnn.patch(), and fail as a
whole where none of them called a kernel of fastrnn's."""

from __future__ import annotations

import pytest
from helpers import KernelSpy

import fastrnn

CALLS = 0


def pytest_configure():
    fastrnn.patch.start()


def pytest_unconfigure():
    fastrnn.patch.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    global CALLS
    with KernelSpy() as spy:
        result = yield
    CALLS += spy.calls
    return result


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session):
    result = yield
    if CALLS == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"fastrnn's operators were called {CALLS} times")
