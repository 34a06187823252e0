"""The numeric, dtype and error tests once more, as other machines: `make test-machines`.

A test that fits the processor it was written on passes there, and fails on the first other one. Each machine
is a process of pytest with the settings that make torch, oneDNN and fastrnn's kernels behave as on it. All
run at once, some 80 seconds of one core each; what pytest printed comes machine by machine, those that failed
last, so that the output ends in pytest's own summary. Arguments go to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Machine(NamedTuple):
    """isa: the kernels (see fastrnn._ops). aten, onednn: the instructions of torch's own, None for all there
    are."""

    name: str
    threads: int
    isa: str | None = None
    aten: str | None = None
    onednn: str | None = None

    def environment(self) -> dict[str, str]:
        settings = {
            "FASTRNN_CPU_ISA": self.isa,
            "ATEN_CPU_CAPABILITY": self.aten,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "OMP_NUM_THREADS": str(self.threads),
            # Threads without work sleep: the machines share the cores.
            "OMP_WAIT_POLICY": "passive",
        }
        return {name: value for name, value in settings.items() if value is not None}


MACHINES = [
    Machine("AVX2 without AVX-512, one thread", 1, "avx2", "avx2", "AVX2"),
    Machine("no AVX at all, two threads", 2, "baseline", "default", "SSE41"),
    Machine("this one with more threads than cores", 2 * CORES + 1),
]

#: Files whose answers could depend on the processor or on threads, and which take seconds. What compiles,
#: exports or starts programs is left to `make test`.
FILES = [
    "accuracy",
    "activations",
    "backends",
    "convert",
    "explain",
    "extreme_values",
    "functional",
    "kernels",
    "layer_autograd",
    "masked",
    "masked_done",
    "module_db",
    "modules_autocast",
    "modules_autograd",
    "modules_errors",
    "modules_forward",
    "nan",
    "not_a_number",
    "patch",
    "plan",
    "reference",
    "sru_errors",
    "sru_golden",
    "sru_kernels",
    "sru_modules",
    "sru_step",
    "srupp",
    "streaming",
    "streaming_packed",
    "threads",
    "transforms",
    "wavefront",
]
#: Of these, what takes longest and sets its own threads and instruction set in any case, and compilers; and a
#: race against torch, which has its own instruction set here, while the other machines' tests take the cores.
LEFT_OUT = (
    "not results_larger_than_the_cache and not huge_strides and not compile and not as_fast_as_by_torch"
)


def run(machine: Machine, arguments: list[str]) -> tuple[Machine, int, str]:
    """The machine, pytest's exit status and what it printed."""
    files = [str(next(ROOT.glob(f"tests/*/test_{name}.py"))) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    ran = subprocess.run(
        [*command, "--threads", str(machine.threads), *files, *arguments],
        cwd=ROOT,
        env={**os.environ, **machine.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return machine, ran.returncode, ran.stdout


def playable(machine: Machine) -> bool:
    """Whether this machine has the instructions."""
    from fastrnn._ops import library

    return machine.isa is None or machine.isa in library.available_cpu_isas()


def main(arguments: list[str]) -> int:
    machines = []
    for machine in MACHINES:
        if playable(machine):
            machines.append(machine)
        else:
            print(f"== not here: {machine.name}")
    with ThreadPoolExecutor(len(machines)) as pool:
        done = list(pool.map(lambda machine: run(machine, arguments), machines))
    for machine, status, output in sorted(done, key=lambda one: one[1] != 0):
        settings = " ".join(f"{name}={value}" for name, value in machine.environment().items())
        print(f"== {machine.name}: {settings} --threads {machine.threads}")
        print(output, end="", flush=True)
        if status:
            print(f"== failed as another machine: {machine.name}", file=sys.stderr)
    return max(status for _, status, _ in done)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
