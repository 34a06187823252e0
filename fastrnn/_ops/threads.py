"""How many CPUs the kernels may count on, as far as files and settings say; csrc/cpu/ops/threads.cpp asks the
system.

More threads than CPUs make a layer slower, as its threads meet at every step. torch's own number counts the
CPUs that the process may run on when it starts, and knows nothing of a container's share of their time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

#: Settings that bind threads to CPUs, the first one when OpenMP starts: what it may run on says nothing then.
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
#: No limit: more than any machine has.
_ALL = 1 << 30


def limit(environment: Mapping[str, str], parallel_info: str, root: Path = Path("/")) -> tuple[int, bool]:
    """The most threads a kernel may use, and whether that is all there is to know (else: no more than CPUs).

    Args:
        environment: FASTRNN_CPUS says how many CPUs there are, whatever the system says; without it OpenMP's
            settings say whether the system can be asked.
        parallel_info: torch.__config__.parallel_info(). torch's own pool of threads, where it was built
            without OpenMP, does not run the pieces of a task at the same time when several callers share it,
            and pieces that wait for each other would wait for ever: one thread.
        root: where proc and sys are.

    Raises:
        ValueError: FASTRNN_CPUS is no whole number above 0.
    """
    if "ATen parallel backend: OpenMP" not in parallel_info:
        return 1, True
    told = environment.get("FASTRNN_CPUS")
    if told:
        if not told.isdecimal() or int(told) < 1:
            raise ValueError(f"FASTRNN_CPUS: expected a number of CPUs, at least 1, got {told!r}")
        return min(int(told), _ALL), True
    bound = any(environment.get(name, "false").lower() not in ("false", "") for name in _BINDING)
    return cgroup_cpus(root) or _ALL, bound


def cgroup_cpus(root: Path = Path("/")) -> int | None:
    """CPUs' worth of time that the control groups of this process grant it, rounded up; None for no limit."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            hierarchy, files = root / "sys/fs/cgroup", ("cpu.max",)
        elif "cpu" in controllers.split(","):
            hierarchy, files = root / "sys/fs/cgroup/cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        # In a container the path may be one of the host's, which is not to be seen; its own group is the top.
        inner = hierarchy / path.lstrip("/")
        for group in (inner, *inner.parents):
            words = " ".join(_read(group / name) for name in files).split()
            if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
                found.append(max(1, math.ceil(int(words[0]) / int(words[1]))))
            if group == hierarchy:
                break
    return min(found, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def from_here(**changes: str) -> tuple[int, bool]:
    """:func:`limit` of this process, its environment changed so."""
    import torch

    return limit({**os.environ, **changes}, torch.__config__.parallel_info())
