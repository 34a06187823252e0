"""Options of the pytest-benchmark suite, and its cases: those of ``python -m benchmarks.lab``.

pytest benchmarks --benchmark-only                       every case, some minutes
pytest benchmarks --benchmark-only --preset quick        a part of them
pytest benchmarks --benchmark-only --peers -k "gru-training"
"""

import pytest
import torch

from benchmarks.lab import cases, presets
from benchmarks.lab.contenders.contender import missing
from benchmarks.lab.contenders.registry import PEERS, ROW

#: What always stands side by side in a group.
CORE = ("fastrnn", "torch", "reference")


def pytest_addoption(parser):
    group = parser.getgroup("fastrnn")
    group.addoption("--preset", choices=sorted(presets.PRESETS), default="full", help="which cases to run")
    group.addoption(
        "--peers", action="store_true", help="also ONNX Runtime, OpenVINO, JAX and sru where installed"
    )
    group.addoption("--bench-threads", type=int, default=None, help="torch's number of threads")


@pytest.fixture(scope="session", autouse=True)
def threads(request) -> int:
    """Torch's threads for the whole suite."""
    wanted = request.config.getoption("--bench-threads")
    if wanted:
        torch.set_num_threads(wanted)
    return torch.get_num_threads()


def _contenders(case: cases.Case, peers: bool) -> list[str]:
    if not peers or case.path != "layers":
        return list(CORE)
    if case.cell in cases.BESIDE:
        others = [k for k in ROW if k not in CORE and case.cell in ROW[k].own]
        return [*CORE, *(k for k in others if missing(ROW[k].packages) is None)]
    able = [k for k in PEERS if ROW[k].training or not case.training]
    return [*CORE, *(k for k in able if missing(ROW[k].packages) is None)]


def pytest_generate_tests(metafunc):
    """A test with `case` and `contender` runs every case of its path with everyone who can do it."""
    if "case" not in metafunc.fixturenames:
        return
    path = metafunc.function.path
    options = metafunc.config
    chosen = presets.select(presets.PRESETS[options.getoption("--preset")], modes=[path])
    parameters = [
        pytest.param(case, key, id=f"{case.cell}-{case.work}-T{case.T}B{case.B}H{case.H}-{key}")
        for case in chosen
        if not case.sweep
        for key in _contenders(case, options.getoption("--peers"))
    ]
    metafunc.parametrize(("case", "contender"), parameters)
