"""What the planner needs to know of a GPU, of those that are here and of some that are not."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch


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
        """All but the name, as library.plan takes them."""
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
