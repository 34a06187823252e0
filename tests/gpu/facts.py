"""What a call runs on, as a line of its results; exit status 1 where the CUDA kernels cannot run at all."""

from __future__ import annotations

import sys

import lines
import torch

from fastrnn._ops import library
from fastrnn.proof import machine


def wrong() -> str | None:
    """Why nothing could run here; None where it can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if not library.cuda_loaded:
        return "fastrnn's CUDA library is not loaded"
    return None


def main() -> int:
    why = wrong()
    found = {"machine": machine.describe(), "versions": machine.versions(), "build": library.build_info()}
    lines.write("facts", **found, **({"why": why} if why else {}))
    for name, value in found["versions"].items():
        print(name, value)
    print(why or ", ".join(d["name"] for d in found["machine"]["devices"]))
    return int(why is not None)


if __name__ == "__main__":
    sys.exit(main())
