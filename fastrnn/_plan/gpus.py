"""What the planner needs to know of a GPU, of those that are here and of some that are not."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

import torch

from .._ops import library


@dataclass(frozen=True)
class Gpu:
    """Properties of a CUDA device.

    Attributes:
        compute_capability: 90 for 9.0. sms: multiprocessors. l2_bytes: of the L2 cache.
        shared_bytes_per_block: shared memory that a block can ask for.
        cooperative_launch: whether a grid can be launched whole.
    """

    name: str
    compute_capability: int
    sms: int
    shared_bytes_per_block: int
    l2_bytes: int
    cooperative_launch: bool = True

    def properties(self) -> dict:
        """All but the name, as fastrnn._C.plan takes them."""
        found = asdict(self)
        found.pop("name")
        return found


#: From NVIDIA's data sheets and the table of compute capabilities in its programming guide.
KNOWN = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 80, 108, 163 << 10, 40 << 20),
        Gpu("A10", 86, 72, 99 << 10, 6 << 20),
        Gpu("RTX 4090", 89, 128, 99 << 10, 72 << 20),
        Gpu("L4", 89, 58, 99 << 10, 48 << 20),
        Gpu("H100", 90, 132, 227 << 10, 50 << 20),
        Gpu("H200", 90, 132, 227 << 10, 60 << 20),
        Gpu("B200", 100, 148, 227 << 10, 126 << 20),
    )
}
#: Where nothing says which GPU is meant, and none is here.
DEFAULT = "H100"


def find(gpu: Gpu | str | None = None, device: torch.device | str | None = None) -> Gpu:
    """A GPU by name; by default the one of `device` where there is one, else DEFAULT.

    Raises:
        ValueError: a name that is not among KNOWN.
    """
    if isinstance(gpu, Gpu):
        return gpu
    if gpu is not None:
        if not isinstance(gpu, str) or gpu not in KNOWN:
            raise ValueError(f"gpu: expected one of {', '.join(KNOWN)}, got {gpu!r}")
        return KNOWN[gpu]
    if not torch.cuda.is_available():
        return KNOWN[DEFAULT]
    p = torch.cuda.get_device_properties(torch.device(device or "cuda"))
    return Gpu(
        p.name,
        10 * p.major + p.minor,
        p.multi_processor_count,
        p.shared_memory_per_block_optin,
        p.L2_cache_size,
    )


def compiled_for(archs: str, major: int, minor: int) -> bool:
    """Whether code for ``archs``, as FASTRNN_CUDA_ARCHS writes them ("8.0;9.0a;12.0+PTX"), runs on a GPU.

    Machine code runs on later GPUs of the same major number, PTX on every later one; an "a" means exactly
    that GPU, an "f" later ones of its family.
    """
    for arch in re.split(r"[;,\s]+", archs.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if not match:
            continue
        built = int(match[1]), int(match[2])
        if match[3] == "a":
            runs = built == (major, minor)
        else:
            runs = built <= (major, minor) and (built[0] == major or (bool(match[4]) and not match[3]))
        if runs:
            return True
    return False


#: setup.py's, for questions where no CUDA kernels were built.
_USUAL_ARCHS = "8.0;9.0a;10.0;12.0+PTX"


def built_for(compute_capability: int) -> bool:
    """Whether the CUDA kernels run on a GPU of, say, 90 for 9.0."""
    archs = library.build_info()["cuda_archs"] or _USUAL_ARCHS
    return compiled_for(archs, *divmod(compute_capability, 10))


_runs: dict[torch.device, bool] = {}


def runs(device: torch.device) -> bool:
    """Whether the CUDA kernels run on this GPU. Where there is none, tensors are on paper, and so is the
    answer."""
    found = _runs.get(device)
    if found is None:
        if not torch.cuda.is_available():
            return True
        major, minor = torch.cuda.get_device_capability(device)
        found = _runs[device] = built_for(10 * major + minor)
    return found


# What torch.compiler.assume_constant_result sets, without importing the compiler.
runs._dynamo_marked_constant = True
