"""What is odd about a machine is told, and stops nothing: bug reports come from machines where something is
wrong."""

from __future__ import annotations

import json
import os
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from fastrnn._ops import cuda, devices, library
from fastrnn._plan.tuning import identity
from fastrnn.cli import main
from fastrnn.proof import machine

CUDNN = "cuDNN version incompatibility: compiled against (9, 24, 0) but found (9, 1, 0).\nMore words."


OLD_DRIVER = "CUDA driver version is insufficient for CUDA runtime version"


def raises(error: Exception):
    def called(*args, **options):
        raise error

    return called


def wrong_cudnn(monkeypatch, _):
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", raises(RuntimeError(CUDNN)))


def gpu_that_does_not_start(monkeypatch, _):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    error = RuntimeError("CUDA error: device not ready\nCUDA kernel errors might be reported later.")
    monkeypatch.setattr(torch.cuda, "get_device_properties", raises(error))


def gpu_that_refuses_the_kernels(monkeypatch, _):
    properties = SimpleNamespace(name="a", major=9, minor=0, multi_processor_count=132, total_memory=2**35)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(machine, "driver", lambda: "525.60.13")
    monkeypatch.setattr(machine.gpus, "find", lambda device: SimpleNamespace(properties=dict))
    monkeypatch.setattr(library, "cuda_loaded", True)
    monkeypatch.setattr(devices, "_runs", {})
    monkeypatch.setattr(cuda, "unusable", {})
    monkeypatch.setattr(cuda, "ops", SimpleNamespace(cuda_has_image=raises(RuntimeError(OLD_DRIVER))))


def no_load(monkeypatch, _):
    monkeypatch.setattr(os, "getloadavg", raises(OSError("load averages are unobtainable")))


def cpuinfo(text: bytes):
    def odd(monkeypatch, tmp_path):
        (tmp_path / "cpuinfo").write_bytes(text)
        real = machine._read
        monkeypatch.setattr(machine, "_read", lambda path: real(tmp_path / path.name))

    return odd


def half_a_distribution(monkeypatch, _):
    def version(name):
        if name != "triton":
            raise KeyError("Version")

    monkeypatch.setattr(metadata, "version", version)


ODD = {
    "wrong cuDNN": (wrong_cudnn, "unusable: cuDNN version incompatibility: compiled against (9, 24, 0)"),
    "GPU that does not start": (gpu_that_does_not_start, "CUDA error: device not ready"),
    "GPU that refuses the kernels": (gpu_that_refuses_the_kernels, OLD_DRIVER),
    "no load": (no_load, ""),
    "AMD without a family": (cpuinfo(b"vendor_id\t: AuthenticAMD\nmodel name\t: Some\n\n"), "Some"),
    "AMD with an odd family": (
        cpuinfo(b"vendor_id : AuthenticAMD\ncpu family : ?\nmodel :\nmodel name : Some\n\n"),
        "Some",
    ),
    "bytes that are no text": (cpuinfo(b"model name\t: So\xffme\n\n"), "So\ufffdme"),
    "Arm, which has no name": (
        cpuinfo(b"processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n"),
        "implementer 0x41, part 0xd0c",
    ),
    "no cpuinfo": (cpuinfo(b""), ""),
    "half a distribution": (half_a_distribution, "triton unknown"),
}


@pytest.mark.filterwarnings("ignore:fastrnn's CUDA kernels cannot run")
@pytest.mark.parametrize("name", ODD)
def test_info_comes_to_its_end(name, monkeypatch, tmp_path, capsys):
    odd, told = ODD[name]
    odd(monkeypatch, tmp_path)
    assert main(["info"]) == 0
    assert told in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert told in json.dumps(json.loads(capsys.readouterr().out), ensure_ascii=False).replace('": "', " ")


def test_a_gpu_with_an_unusable_cudnn_has_an_identity(monkeypatch):
    """The kernels need no cuDNN: what they have proven is found on such a machine too."""
    properties = SimpleNamespace(name="a", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    wrong_cudnn(monkeypatch, None)
    found = identity.of.__wrapped__(0)
    assert found["gpu"] == "a"
    assert found["cudnn"] == "unusable: " + CUDNN.splitlines()[0]
    assert "\n" not in identity.text(found)
