"""What a device is, as far as an outcome may hang on it: the GPU, and everything that runs on it."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path

import torch

from ..._ops import library


@functools.cache
def of(index: int) -> dict[str, str]:
    """The GPU with this index. An outcome holds where all of this is the same."""
    p = torch.cuda.get_device_properties(index)
    return {
        "gpu": p.name,
        "compute_capability": f"{p.major}.{p.minor}",
        "sms": str(p.multi_processor_count),
        "sharing": _sharing(p.name),
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "cudnn": cudnn(),
        "torch": torch.__version__,
        "library": library_hash(),
    }


def cudnn() -> str:
    """cuDNN's version, or why torch cannot use the one that it found (an older one on LD_LIBRARY_PATH, say):
    torch raises it. None of the kernels need cuDNN."""
    try:
        return str(torch.backends.cudnn.version())
    except RuntimeError as error:
        return "unusable: " + str(error).partition("\n")[0]


def text(device: dict[str, str]) -> str:
    """An identity as one line, which is its name in a cache."""
    return "; ".join(f"{name}={value}" for name, value in device.items())


def covers(table: dict[str, str], device: dict[str, str]) -> bool:
    """Whether a shipped table's device is this one. What the table leaves open may be anything."""
    return bool(table) and all(device.get(name) == value for name, value in table.items())


def _sharing(name: str) -> str:
    """ "none", or how others share the GPU: a tier that needs all of it at once is another matter there."""
    found = ["MIG"] if "MIG" in name or "MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", "") else []
    mps = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    if any(os.environ.get(variable) for variable in mps) or Path("/tmp/nvidia-mps/control").exists():
        found.append("MPS" + os.environ.get(mps[1], ""))
    return "+".join(found) or "none"


def _driver() -> str:
    """NVIDIA's driver, or, where the system does not say, the CUDA version that it is for."""
    try:
        found = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)", _read("/proc/driver/nvidia/version"))
    except OSError:
        found = None
    return found[1] if found else f"CUDA {torch._C._cuda_getDriverVersion()}"


def _read(path: str) -> str:
    return Path(path).read_text(errors="replace")


@functools.cache
def library_hash() -> str:
    """Of the CUDA library, or "none": another build is another program, and has proven nothing."""
    path = Path(library.__file__).parents[1] / "libfastrnn_cuda.so"
    if not path.exists():
        return "none"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
