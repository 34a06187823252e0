"""fastrnn.cuda_status: what the CUDA kernels of this process did, and what went wrong."""

from __future__ import annotations

import torch

from .._ops import cuda, library
from .._plan.tuning import trust

_AFTER = ": its results are NaN, and the tier is in quarantine"


def cuda_status(device: torch.device | str | int | None = None) -> dict:
    """Wait for the GPUs, and say what the CUDA kernels did and whether all went well.

    A persistent kernel whose wait for its own blocks does not end gives up, fills its results with NaN and
    leaves word. The next call of a layer on the device raises; so does this function, which a program calls
    where it synchronises, before it trusts its last results.

        fastrnn.cuda_status()["ran"]["grid"]["forward"]

    Args:
        device: one GPU; by default all that torch sees.

    Returns:
        A dict: "kernels_loaded", whether the CUDA kernels are; "tune", what FASTRNN_TUNE says; "ran", passes
        by tier ("one_cta", "cluster", "grid", "stepwise", "stepwise_graph", clusters by size as well, and
        "cudnn" for calls of torch's own layers where those were chosen) and "forward" or "backward", since
        the process began;
        "devices", for each GPU its "name", the tiers in "quarantined" with the reason, and "proven", the
        kinds of layers and of stacks with an outcome and what runs their passes.

    Raises:
        RuntimeError: a kernel gave up since the last question, with its tier, the layer's sizes and the
        step. The
            tier is in quarantine from then on, in this process and in the cache: it runs by name alone.
        ValueError: a device that is no GPU.
    """
    found = {"kernels_loaded": library.cuda_loaded, "tune": trust.mode(), "devices": {}}
    bad = []
    for index in _indices(device):
        torch.cuda.synchronize(index)
        if text := trust.status(index):
            bad.append(text)
        here = trust.device(index)
        found["devices"][index] = {
            "name": torch.cuda.get_device_name(index),
            "quarantined": trust.quarantined(here),
            "proven": here.proven(),
        }
    if bad:
        raise RuntimeError("; ".join(bad) + _AFTER)
    return found | {"ran": cuda.ran()}


def _indices(device) -> list[int]:
    if device is not None:
        return [index_of(device)]
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def index_of(device: torch.device | str | int) -> int:
    """The number of a GPU that is here; a ValueError for everything else."""
    try:
        asked = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected a GPU, got {device!r}") from error
    if asked.type != "cuda":
        raise ValueError(f"device: expected a GPU, got {device!r}")
    if not torch.cuda.is_available():
        raise ValueError(f"device: expected a GPU that is here, got {device!r}: torch sees none")
    if asked.index is None:
        return torch.cuda.current_device()
    if asked.index > 0 and asked.index >= torch.cuda.device_count():
        raise ValueError(f"device: expected one of {torch.cuda.device_count()} GPUs, got {device!r}")
    return asked.index
