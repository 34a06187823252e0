"""Which GPUs the CUDA kernels of this build run on."""

from __future__ import annotations

import re

import torch

from . import cuda, library


def compiled_for(archs: str, major: int, minor: int) -> bool:
    """Whether code for ``archs``, as FASTRNN_CUDA_ARCHS writes them, runs on a GPU: such as
    "8.0-virtual;9.0a;12.0+PTX".

    Machine code runs on later GPUs of the same major number, PTX ("+PTX", or "-virtual" where there is no
    machine code) on every later one; an "a" means exactly that GPU, an "f" later ones of its family.
    """
    for arch in re.split(r"[;,\s]+", archs.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX|-virtual)?", arch)
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
#: The oldest GPUs that the kernels are written for.
OLDEST = 80


def built_for(compute_capability: int) -> bool:
    """Whether the CUDA kernels run on a GPU of, say, 90 for 9.0."""
    archs = library.build_info()["cuda_archs"] or _USUAL_ARCHS
    return compute_capability >= OLDEST and compiled_for(archs, *divmod(compute_capability, 10))


_runs: dict[torch.device, bool] = {}


def runs(device: torch.device) -> bool:
    """Whether the CUDA kernels run on this GPU: new enough for them, and CUDA finds code for it in the
    library, which it is asked once a device. Where there is no GPU, tensors are on paper, and so is the
    answer."""
    found = _runs.get(device)
    if found is None:
        if not torch.cuda.is_available():
            return True
        major, minor = torch.cuda.get_device_capability(device)
        image = None
        if 10 * major + minor >= OLDEST:
            image = cuda.has_image(torch.cuda.current_device() if device.index is None else device.index)
        found = _runs[device] = built_for(10 * major + minor) if image is None else image
    return found


# What torch.compiler.assume_constant_result sets, without importing the compiler.
runs._dynamo_marked_constant = True
