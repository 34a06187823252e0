"""What the tests of the CUDA kernels share."""

from __future__ import annotations

import pytest
import torch
from emu.build import NAMESPACE, library


@pytest.fixture(scope="module")
def ops():
    """The operators over the emulator, on no GPU: plans are of the stepwise tier."""
    torch.ops.load_library(str(library()))
    return getattr(torch.ops, NAMESPACE)


@pytest.fixture
def ieee():
    """float32 products in float32, unless a test says otherwise."""
    # flags() rather than an assignment, which torch.testing's own helpers forbid once they are imported.
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    matmul.allow_tf32 = before
