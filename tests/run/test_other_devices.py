"""Devices and dtypes that no kernel of fastrnn's covers: torch's own layers, and the reference where it
must."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CELLS, LAYERS, flat, pair, randn
from tolerances import assert_close

import fastrnn
from fastrnn import reference
from fastrnn._ops import cuda, devices
from fastrnn._run import native

COMPLEX = torch.complex64


def test_a_device_without_kernels():
    """toy_device_checks.py, in a process of its own: it makes a device, which cannot be taken back."""
    checks = Path(__file__).with_name("toy_device_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(checks)]
    ran = subprocess.run(command, cwd=checks.parents[1], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]


@pytest.mark.parametrize(
    ("archs", "runs"),
    [
        ("8.0", {(8, 0), (8, 6), (8, 9)}),
        ("8.6", {(8, 6), (8, 9)}),
        ("9.0a", {(9, 0)}),
        ("7.5+PTX", {(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}),
        ("9.0a+PTX", {(9, 0)}),
        ("10.0f", {(10, 0)}),
        ("8.0-virtual;9.0+PTX", {(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}),
        ("9.0-virtual", {(9, 0), (10, 0), (12, 0)}),
        ("8.0;9.0a;10.0;12.0+PTX", {(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}),
        ("8.0, 12.0", {(8, 0), (8, 6), (8, 9), (12, 0)}),
        ("", set()),
    ],
)
def test_which_gpus_a_build_runs_on(archs, runs):
    """A GPU that the kernels were not compiled for must get torch's layer: a launch there fails with "no
    kernel image". The rules are those of CUDA's compatibility of machine code and of PTX."""
    known = [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
    assert {gpu for gpu in known if devices.compiled_for(archs, *gpu)} == runs


def test_an_old_gpu(monkeypatch):
    """What decides about a GPU that is here, without one: its compute capability, asked for once, and where
    there is a library, what CUDA says of it."""
    asked, said = [], {0: None, 2: False}

    def capability(device):
        asked.append(device)
        return (7, 5) if device.index == 1 else (9, 0)

    monkeypatch.setattr(devices, "_runs", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(cuda, "has_image", said.__getitem__)
    first, second, third = (torch.device("cuda", n) for n in range(3))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.runs(second)  # on paper
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [devices.runs(d) for d in (first, second, first, second)] == [True, False, True, False]
    assert asked == [first, second]
    assert not devices.runs(third)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_complex_numbers_are_torchs(name, monkeypatch):
    """torch's own layer computes them: no step of the reference, the same bits and gradients."""

    def unwanted(*_, **__):
        raise AssertionError("the reference was called")

    monkeypatch.setattr(reference, "layer", unwanted)
    ours, theirs = pair(name, 4, 6, dtype=COMPLEX)
    x = randn(3, 4, dtype=COMPLEX) if name in CELLS else randn(5, 3, 4, dtype=COMPLEX)
    got, want = flat(ours(x)), flat(theirs(x))
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)
    sum(t.abs().sum() for t in got).backward()
    sum(t.abs().sum() for t in want).backward()
    for g, w in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(g.grad, w.grad)


def test_complex_numbers_where_torch_must_be_taken_apart(monkeypatch):
    """Under vmap and torch.compile the reference's steps, not torch's layer."""

    def unwanted(*_, **__):
        raise AssertionError("torch's layer was called")

    ours, theirs = pair("GRU", 4, 6, dtype=COMPLEX)
    x = randn(5, 3, 4, dtype=COMPLEX)
    want = theirs(x)[0]
    monkeypatch.setitem(native._LAYERS, "gru", unwanted)
    rows = torch.func.vmap(lambda row: ours(row)[0], in_dims=1, out_dims=1)(x)
    assert_close(rows, want, COMPLEX, slack=2.0)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    assert_close(compiled(x)[0], want, COMPLEX, slack=2.0)


def test_errors_of_complex_layers_are_ours():
    """Arguments are checked before torch sees them."""
    module = fastrnn.LSTM(4, 6, 2, dropout=0.5, dtype=COMPLEX)
    x = randn(5, 3, 4, dtype=COMPLEX)
    with pytest.raises(RuntimeError, match="Input and hidden tensors are not the same dtype"):
        module(x, (torch.zeros(2, 3, 6), torch.zeros(2, 3, 6)))
    module.dropout = 1.5
    with pytest.raises(ValueError, match=r"dropout probability has to be between 0 and 1, but got 1\.5"):
        module(x)
    with pytest.raises(RuntimeError, match=r"backend='fused': no kernel covers torch\.complex64 on cpu"):
        fastrnn.LSTM(4, 6, dtype=COMPLEX, backend="fused")(x)
