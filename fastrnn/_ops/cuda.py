"""What the CUDA library says of its devices: what it may run there unasked, what ran, what went wrong.

The operators are csrc/cuda/ops/trust.cpp's. Where the library is not loaded nothing has run and nothing can.
"""

from __future__ import annotations

import torch

from . import library

#: Where the operators are; the emulator's tests put theirs here.
ops = torch.ops.fastrnn


#: Calls of torch's own layers on a GPU, which "auto" chose, by pass. Of what autograd does then nobody knows.
of_torch = {"forward": 0, "backward": 0}


def loaded() -> bool:
    return library.cuda_loaded or ops is not torch.ops.fastrnn


def ran() -> dict[str, dict[str, int]]:
    """How many passes each tier of the CUDA kernels has run in this process, by tier and "forward" or
    "backward"; clusters as "cluster" and by their size too; "cudnn" where "auto" took torch's own layer. All
    that is counted was launched: a tier that made way for another has nothing here."""
    counts: dict[str, dict[str, int]] = {}
    for line in ops.cuda_ran().splitlines() if loaded() else ():
        tier, name, number = line.split("\t")
        counts.setdefault(tier, {})[name] = int(number)
    return counts | {"cudnn": dict(of_torch)}


def clear_ran() -> None:
    """Begin to count anew."""
    of_torch.update(forward=0, backward=0)
    if loaded():
        ops.cuda_clear_ran()


def trust(device: int, lines: str) -> None:
    """Tell a device's planner what was proven there: a line each, see csrc/plan/trust.h."""
    if loaded():
        ops.cuda_trust(device, lines)


def quarantine(device: int, tier: str, why: str) -> None:
    """Keep a tier from running unasked; "" lets go of all."""
    if loaded():
        ops.cuda_quarantine(device, tier, why)


def quarantined(device: int) -> dict[str, str]:
    """The tiers in quarantine, and why."""
    lines = ops.cuda_quarantined(device).splitlines() if loaded() else ()
    return dict(line.split("\t", 1) for line in lines)


def status(device: int) -> str:
    """What a kernel that gave up waiting has left word of, once; "" where none has."""
    return ops.cuda_status(device) if loaded() else ""


#: Devices on which CUDA has said that nothing of this library runs, and what it said.
unusable: dict[int, str] = {}


def has_image(device: int) -> bool | None:
    """Whether this build has code that a device runs, by CUDA's own word; None where no kernels are loaded.

    An error of CUDA's is a no, told once: the library has a CUDA runtime of its own, so a driver that is too
    old for it, and not for torch, shows here and nowhere before.
    """
    if not loaded():
        return None
    try:
        return ops.cuda_has_image(device)
    except RuntimeError as error:
        if device not in unusable:
            unusable[device] = str(error).partition("\n")[0]
            library._warn(
                f"fastrnn's CUDA kernels cannot run on cuda:{device}, torch's own layers run there: "
                f"{unusable[device]}. `python -m fastrnn info` says more"
            )
        return False
