"""Processes that measure. No torch and no fastrnn in here: the GPU check begins before anything is built."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path


def environment(threads: int) -> dict[str, str]:
    """A measuring process's: every library on so many threads, JAX on the CPU, this package and fastrnn."""
    env = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PJRT_NPROC", "NPROC"):
        env[name] = str(threads)
    env["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        env["XLA_FLAGS"] = (env.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false").strip()
    # However this process came to find the two, the other one finds the same.
    package = Path(importlib.util.find_spec("fastrnn").origin).parents[1]
    folders = dict.fromkeys(map(str, (package, Path(__file__).absolute().parents[2])))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [*folders, env.get("PYTHONPATH")]))
    return env
