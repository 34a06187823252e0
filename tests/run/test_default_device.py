"""Results of calls without the dispatcher are on their arguments' device, whatever torch's default is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="memory without access is mmap's")
def test_another_default_device():
    """After torch.set_default_tensor_type(torch.cuda.FloatTensor) torch.empty() makes tensors on the GPU: a
    kernel of the CPU's that took one for its result would write to an address that is not the process's."""
    child = Path(__file__).with_name("default_device_child.py")
    ran = subprocess.run([sys.executable, str(child)], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, f"{ran.returncode}: {ran.stderr[-4000:]}"
