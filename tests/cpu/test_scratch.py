"""The scratch memory that is kept between calls (csrc/cpu/ops/scratch.h): how much, of what, and how it goes
back."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from harness import build
from helpers import HANGS_S, at_once, randn

import fastrnn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scratch memory is kept on Linux alone")
MIB = 1 << 20


def test_what_is_kept():
    """A large request does not throw a small one's memory away, 64 MB and eight pieces are the most, and no
    two threads have the same piece."""
    done = subprocess.run([build.program("spares")], capture_output=True, text=True, timeout=HANGS_S)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr


def in_huge_pages(tensor: torch.Tensor) -> int:
    """How many bytes of the mappings it lies in are, from what the system tells of this process."""
    begin, bytes_, inside = tensor.data_ptr(), 0, False
    end = begin + tensor.numel() * tensor.element_size()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) < end and begin < int(match[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            bytes_ += int(line.split()[1]) * 1024
    return bytes_


def test_what_is_the_hosts_is_not_asked_for_in_huge_pages():
    """A virtual machine whose host takes free pages back waits milliseconds for a huge one: a large result
    that is not made step after step is in small ones there."""
    features = Path("/sys/bus/virtio/drivers/virtio_balloon").glob("virtio*/features")
    if not any(path.read_text()[5:6] == "1" for path in features):
        pytest.skip(
            "no host takes the free pages of this machine: no virtio-balloon device that reports them"
        )
    if "[madvise]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("the system gives huge pages to all or to none, whoever asks")
    module, x = fastrnn.RNN(8, 1024), randn(9, 1024, 8)
    time.sleep(1.1)  # what another test had
    with torch.inference_mode():
        y = module(x)[0]  # 38 MB
    assert y.numel() * 4 > 32 * MIB
    assert in_huge_pages(y) == 0


def layer_and_input():
    """Two megabytes of packed weights and more."""
    return fastrnn.LSTM(256, 256), randn(5, 4, 256)


def test_release_scratch():
    """What a call kept goes back, once; the next call is as before."""
    module, x = layer_and_input()
    with torch.no_grad():
        before = module(x)[0]
        released = fastrnn.release_scratch()
        assert 2 * MIB <= released <= 64 * MIB
        assert fastrnn.release_scratch() == 0
        assert torch.equal(module(x)[0], before)
    assert fastrnn.release_scratch() > 0


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return pytest.skip("no VmRSS in /proc/self/status")


def test_the_process_is_smaller_afterwards():
    """Kept memory is the process's, released memory the system's."""
    module, x = fastrnn.LSTM(1024, 1024), randn(4, 8, 1024)
    fastrnn.release_scratch()
    with torch.no_grad():
        module(x)
        kept = resident()
        released = fastrnn.release_scratch()
    assert released >= 16 * MIB  # the recurrent weights
    assert kept - resident() > released / 2


def test_a_large_call_is_kept():
    """LSTM H=1024 at 50,32 needs 36 MB, which were mapped and cleared at every call (3 ms of it)."""
    module, x = fastrnn.LSTM(1024, 1024), randn(50, 32, 1024)
    fastrnn.release_scratch()
    with torch.no_grad():
        module(x)
    assert 32 * MIB < fastrnn.release_scratch() <= 64 * MIB


def test_release_while_others_call(threads):
    """Calls that are running keep what they have: every answer has the bits of a call alone."""
    threads(1)
    module, x = layer_and_input()
    with torch.no_grad():
        alone = module(x)[0]

    def call(i):
        torch.set_num_threads(1)
        if i == 0:
            fastrnn.release_scratch()
        with torch.no_grad():
            assert torch.equal(module(x)[0], alone)

    at_once(4, call, times=50)


def saved_of(x, layer):
    """What forward saves for backward: the gates of every step."""
    state = torch.zeros(1, 1, layer.hidden_size).expand(1, x.size(1), -1)
    weights = list(layer.parameters())
    return torch.ops.fastrnn.rnn_forward(x, state, state, weights, None, None, None, "lstm", True, 1)[3]


def test_saved_values_are_kept():
    """Those of a training step of 34 MB, which malloc maps anew at every step, are the next step's memory;
    those of two steps that are alive are two, and nothing is kept of what is larger than all that may be."""
    layer, x = fastrnn.LSTM(8, 512), randn(128, 33, 8)
    fastrnn.release_scratch()
    with torch.no_grad():
        first = saved_of(x, layer)
        second = saved_of(-x, layer)
        want, place = first.clone(), first.data_ptr()
        assert second.data_ptr() != place
        assert not torch.equal(first, second)
        assert torch.equal(first, want)
        del first
        assert saved_of(x, layer).data_ptr() == place
        assert torch.equal(saved_of(x, layer), want)
        del second
        assert 32 * MIB < fastrnn.release_scratch() <= 64 * MIB
        large = saved_of(randn(256, 33, 8), layer)
        del large
        assert fastrnn.release_scratch() < 64 * MIB


def test_gradients_with_memory_that_was_another_steps(threads):
    """A graph that is alive keeps what it saved, whatever is trained meanwhile, in other threads too."""
    threads(1)
    layer, x = fastrnn.LSTM(8, 512), randn(128, 33, 8)

    def gradient(y):
        return torch.autograd.grad(y.square().sum(), layer.weight_ih_l0)[0]

    def train(_):
        torch.set_num_threads(1)
        assert torch.equal(gradient(layer(x)[0]), want)

    want = gradient(layer(x)[0])
    kept = layer(x)[0]
    gradient(layer(-x)[0])
    at_once(3, train, times=2)
    assert torch.equal(gradient(kept), want)


def test_saved_values_of_an_slstm_are_kept():
    """Pieces of a MB, and the gradient of the gates, which malloc gave back to the system at every step."""
    layer, x = fastrnn.SLSTM(16, 128, num_heads=4), randn(50, 32, 16)
    want = torch.autograd.grad(layer(x)[0].square().sum(), layer.weight_hh_l0)[0]
    assert fastrnn.release_scratch() >= 6 * MIB
    kept = layer(x)[0]
    torch.autograd.grad(layer(-x)[0].square().sum(), layer.weight_hh_l0)
    assert torch.equal(torch.autograd.grad(kept.square().sum(), layer.weight_hh_l0)[0], want)


def test_training_keeps_one_piece():
    """Both passes of a step have the same memory: the forward pass takes as much as the backward pass will.
    Of a GRU at 35,20,650 they kept 12 and 14 MB, a quarter of the step's peak."""
    module, x = fastrnn.GRU(650, 650), randn(35, 20, 650).requires_grad_()
    fastrnn.release_scratch()
    y = module(x)[0]
    forward = fastrnn.release_scratch()
    y.sum().backward()
    assert fastrnn.release_scratch() == forward > 0
    for _ in range(2):
        module(x)[0].sum().backward()
    assert fastrnn.release_scratch() == forward


FREED = """
import ctypes, os, resource, sys
import torch
import fastrnn

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def faults(bytes_):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(bytes_)
    libc.memset(block, 1, bytes_)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


if sys.argv[1] == "training":
    layer = fastrnn.LSTM(64, 64)
    (layer(torch.randn(3, 1, 64))[0] * torch.randn(3, 1, 64)).sum().backward()
elif sys.argv[1] == "inference":
    with torch.no_grad():
        fastrnn.SRU(64, 64)(torch.randn(40, 5, 64))
found = [faults(int(sys.argv[2]) << 20) for _ in range(3)]
print(*found, sep=",")
if len(sys.argv) > 3:
    fastrnn.release_scratch()
    print(faults(int(sys.argv[2]) << 20))
"""
#: Of 24 MB in pages of 4 KB. Where all of memory comes in huge pages there are none to count.
MOST_FAULTS = 24 * MIB // 4096


def faults(*arguments: str, **settings: str) -> list[str]:
    """Pages that a process touches anew for each of three pieces of 24 MB, each freed before the next."""
    done = subprocess.run(
        [sys.executable, "-c", FREED, *arguments],
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        env={k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"} | settings,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc than glibc's")
def test_malloc_keeps_what_is_freed():
    """glibc gives the end of the heap back until it has seen a large mapping freed: a training step's
    gradients then come anew a page at a time. The first call of a layer shows it one."""
    first, second, _ = map(int, faults("nothing", "24")[0].split(","))
    if first < MOST_FAULTS // 2:
        pytest.skip("memory comes in larger pages here, or under a malloc that is not glibc's own")
    assert second > MOST_FAULTS // 2  # as it is without
    for what in ("training", "inference"):
        found = faults(what, "24", "release")
        first, second, third = map(int, found[0].split(","))
        assert first > MOST_FAULTS // 2, "the heap had it already, and nothing is seen"
        assert second + third < MOST_FAULTS // 20, what
        assert int(found[1]) > MOST_FAULTS // 2  # and back it went


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc than glibc's")
@pytest.mark.parametrize("setting", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_mallocs_settings_are_the_users(setting):
    """Whoever has said when memory goes back is obeyed."""
    first, second, third = map(int, faults("training", "24", **{setting: "131072"})[0].split(","))
    if first < MOST_FAULTS // 2:
        pytest.skip("memory comes in larger pages here, or under a malloc that is not glibc's own")
    assert min(second, third) > MOST_FAULTS // 2
