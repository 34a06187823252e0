"""Settings of every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Before the package reads it: tests of more threads than this machine has cores are to have them.
os.environ.setdefault("FASTRNN_CPUS", "64")

from fastrnn._ops import library


@pytest.fixture(autouse=True)
def _same_start(request):
    """The same random numbers, as many threads as --threads says, and an emulated device without troubles,
    which has proven nothing and has nothing in quarantine: whatever the tests before left behind.

    One by default: on a busy machine small problems spend their time waiting for other threads. A test about
    threads sets its own number.
    """
    torch.manual_seed(0)
    torch.set_num_threads(request.config.getoption("--threads"))
    # As if threads met in no time: a test that asks for threads gets them, though its layer is small.
    if library.cpu_loaded:
        library.set_cpu_machine(meeting_ns=0, region_ns=0)
    if hasattr(torch.ops.fastrnn_emulated, "take_status"):  # the emulator of tests/emu, where it is loaded
        torch.ops.fastrnn_emulated.begin_anew()


@pytest.fixture(params=library.available_cpu_isas())
def isa(request):
    """The name of each instruction set that runs here, in use for the test; afterwards the one before."""
    before = library.cpu_isa()
    library.set_cpu_isa(request.param)
    yield request.param
    library.set_cpu_isa(before)


@pytest.fixture
def threads():
    """Sets the number of threads, and afterwards the one before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pytest_configure(config):
    config.addinivalue_line("markers", "thorough: left to `make test-all`, see selection.py")


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config, items):
    """Without --all what is marked thorough is left out, unless somebody names the test (file.py::test)."""
    if config.getoption("--all") or any("::" in argument for argument in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("thorough")]


def pytest_addoption(parser):
    parser.addoption(
        "--all",
        action="store_true",
        help="also what is marked thorough, see make test-all",
    )
    parser.addoption(
        "--threads",
        type=int,
        default=1,
        help="threads that torch and the kernels have in tests that set no number themselves",
    )
    parser.addoption(
        "--full",
        action="store_true",
        help="train every model to its full target (tests/models), see make models",
    )
    parser.addoption(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="with --full: write what the models reached into a folder",
    )
