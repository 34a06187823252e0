"""The stages of a step (csrc/cells/cell.h): policies that the library does not have, on both loops.

A variant of a cell is to be a policy of a stage and nothing else. So the loops run here with policies of the
gates and of the state, in every way in which a layer is cut up, and autograd says what must come out.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emu import build
from helpers import HANGS_S
from toolchain import cxx

HERE = Path(__file__).parent
CELLS = {"lstm": (0, 4), "gru": (1, 3), "rnn_tanh": (2, 1)}  # number in stages.cpp, gates
SAVED = {"lstm": 6, "gru": 5, "rnn_tanh": 2}  # with those of the policies


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    out = tmp_path_factory.mktemp("stages") / "stages.so"
    flags = ["-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"]
    flags += ["-ffp-contract=fast", f"-I{HERE.parents[1] / 'csrc'}", f"-I{HERE}"]
    subprocess.run([*cxx(), *flags, HERE / "stages.cpp", "-o", out], check=True, timeout=600)
    return ctypes.CDLL(str(out))


def share(t, direction, rows, units, salt):
    """share_at() of stages_policies.h, for every row and unit of a step."""
    row, unit = torch.meshgrid(rows, torch.arange(units), indexing="ij")
    return 0.05 + 0.1 * ((2 * t + 3 * row + 5 * unit + direction + salt) % 8).double()


def step(cell, gx, h, c, w, t, d, rows):
    """(h, c) after a step of one direction; gx holds b_ih, w is (w_ih, w_hh, b_ih, b_hh, w_hr or None)."""
    rec = h @ w[1].T + w[3]
    H = w[0].size(0) // CELLS[cell][1]
    if cell == "lstm":
        i, f, g, o = (gx + rec).chunk(4, 1)
        i = torch.tanh(i + 0.3 * c)
        candidate = f.sigmoid() * c + i.sigmoid() * g.tanh()
        out = o.sigmoid() * candidate.tanh()
        keep = share(t, d, rows, H, 4)
        c = candidate + keep * (c - candidate)
    elif cell == "gru":
        (r, z, n), (rr, rz, rn) = gx.chunk(3, 1), rec.chunk(3, 1)
        r, z = torch.tanh(r + rr).sigmoid(), (z + rz).sigmoid()
        n = torch.tanh(n + r * (rn * share(t, d, rows, H, 1)))
        out = n + z * (h - n)
    else:
        out = torch.tanh(torch.tanh(gx + rec))
    if w[4] is not None:
        out = out @ w[4].T
    return out + share(t, d, rows, out.size(1), 2) * (h - out), c


def expected(cell, x, h0, c0, weights, reset):
    """y, hn, cn, cells (D,T*B,H) of the variants, by torch's operations."""
    T, B = x.shape[:2]
    ys, hn, cn, cells = [], [], [], []
    for d, w in enumerate(weights):
        h, c, y, kept = h0[d], c0[d], [None] * T, [None] * T
        for s in range(T):
            t = T - 1 - s if d else s
            at = t + d  # a sequence begins at this step, or at the one after it in time
            if reset is not None and at < T:
                h, c = (v.masked_fill(reset[at].unsqueeze(1), 0) for v in (h, c))
            h, c = step(cell, x[t] @ w[0].T + w[2], h, c, w, t, d, torch.arange(B) + t * B)
            y[t], kept[t] = h, c
        ys.append(torch.stack(y))
        cells.append(torch.cat(kept))
        hn.append(h)
        cn.append(c)
    return torch.cat(ys, 2), torch.stack(hn), torch.stack(cn), torch.stack(cells)


def pointers(tensors):
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


GRID = [
    # T, B, H, P, D, batch groups, unit groups, chunk, direct
    (6, 5, 7, 0, 1, 1, 1, 6, 0),
    (6, 5, 7, 0, 2, 2, 1, 2, 0),
    (6, 5, 7, 0, 2, 1, 3, 4, 0),
    (2, 3, 5, 0, 1, 1, 1, 1, 1),
    (6, 5, 7, 3, 1, 1, 1, 6, 0),
    (6, 4, 9, 5, 2, 2, 2, 4, 0),
]


@pytest.mark.parametrize(
    ("cell", "shape"),
    [(c, s) for c, s in itertools.product(CELLS, GRID) if c == "lstm" or not s[3]],  # who projects
    ids=str,
)
@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("resets", [False, True], ids=["", "resets"])
def test_policies(loops, cell, shape, save, resets):
    """Outputs and every gradient of a layer whose gates and state stage have policies."""
    T, B, H, P, D, *plan = shape
    number, G = CELLS[cell]
    generator = torch.Generator().manual_seed(3)

    def draw(*sizes):
        return torch.rand(sizes, generator=generator, dtype=torch.float64) * 2 - 1

    IN, out = 4, P or H
    x, h0, c0 = draw(T, B, IN), draw(D, B, out), draw(D, B, H)
    sizes = [(G * H, IN), (G * H, out), (G * H,), (G * H,)] + [(P, H)] * bool(P)
    weights = [[draw(*s) for s in sizes] + [None] * (not P) for _ in range(D)]
    reset = torch.rand(T, B, generator=generator) < 0.3 if resets else None
    leaves = [x, h0, c0, *(w for ws in weights for w in ws if w is not None)]
    for leaf in leaves:
        leaf.requires_grad_()
    wanted = expected(cell, x, h0, c0, weights, reset)
    cotangents = [draw(*t.shape) for t in wanted]
    if cell != "lstm":  # one state
        wanted, cotangents = wanted[:2], cotangents[:2]
    gradients = torch.autograd.grad(wanted, leaves, cotangents, allow_unused=True)

    def nan(*sizes):
        return torch.full(sizes, torch.nan, dtype=torch.float64)

    def call(function, *rest):
        dims = (ctypes.c_int64 * 10)(T, B, IN, H, P, D, *plan)
        flat = pointers([w for ws in weights for w in ws])
        mask = None if reset is None else ctypes.c_void_p(reset.data_ptr())
        function(number, dims, flat, mask, *rest)

    y, hn, cn = nan(T, B, D * out), nan(D, B, out), nan(D, B, H)
    gates = nan(D, T * B, SAVED[cell] * H) if save == "gates" else None
    cells = nan(D, T * B, H) if cell == "lstm" else None
    call(loops.stages_forward, pointers([x, h0, c0, y, hn, cn, gates, cells]))
    found = [y, hn, cn, cells][: len(wanted)]
    for name, got, want in zip(("y", "hn", "cn", "cells"), found, wanted, strict=False):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")

    grad_x, grad_h0, grad_c0 = nan(D, T * B, IN), nan(*h0.shape), nan(*c0.shape)
    grad_weights = [[None if w is None else nan(*w.shape) for w in ws] for ws in weights]
    grad_y, grad_hn, grad_cn, grad_cells = [*cotangents, None, None][:4]
    data = [x, h0, c0, y, gates, cells, grad_y, grad_hn, grad_cn, grad_cells]
    data += [*[*grad_x, None][:2], grad_h0, grad_c0]
    flat = pointers([g for gs in grad_weights for g in gs])
    call(loops.stages_backward, pointers(data), flat)
    grads = [grad_x.sum(0).view(T, B, IN), grad_h0, grad_c0]
    grads += [g for gs in grad_weights for g in gs if g is not None]
    for i, (got, want) in enumerate(zip(grads, gradients, strict=True)):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11, msg=lambda m, i=i: f"leaf {i}: {m}")


def test_policies_on_cuda():
    """The stepwise tier's time loops, by the emulator, over kernels whose cells have policies."""
    library = build.stages()
    command = [sys.executable, "-m", "emu.stages_checks", str(library)]
    where = {"cwd": HERE.parent, "env": os.environ | {"PYTHONPATH": str(build.ROOT)}}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **where)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout)
    assert len(errors) == 9
    for case, found in errors.items():
        assert all(error < 1e-12 for error in found.values()), (case, found)


def test_a_scan_has_its_cells_counts(tmp_path):
    """A cell of the scan with two inputs and no gate: nothing in the loop counts as SRU does."""
    program = tmp_path / "scan_counts"
    flags = ["-std=c++20", "-O1", "-w", "-pthread", f"-I{HERE.parents[1] / 'csrc'}"]
    subprocess.run([*cxx(), *flags, HERE / "scan_counts.cpp", "-o", program], check=True, timeout=600)
    done = subprocess.run([program], capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stdout
