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
    """The same random numbers and as many threads as --threads says, whatever the tests before left behind.

    One by default: on a busy machine small problems spend their time waiting for other threads. A test about
    threads sets its own number.
    """
    torch.manual_seed(0)
    torch.set_num_threads(request.config.getoption("--threads"))


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


def pytest_addoption(parser):
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
