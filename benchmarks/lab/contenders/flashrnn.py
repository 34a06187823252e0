"""FlashRNN's three backends, below its modules."""

from __future__ import annotations

import importlib
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastrnn.proof.timing import Contender

from ..cases import GATES
from ..problem import Problem
from .contender import Row, Unsupported, labelled, leaf, only, require, torch_contender

#: Its backends, and how each lays out the gates, the recurrent weights, the biases and the states, so that
#: nothing is permuted in a call. T, B as ever, G gates, H heads (one), D units, P those before, S states.
BACKENDS = {
    "flashrnn": ("cuda_fused", "TBHDG", "HDGP", "HDG", "STBHD"),
    "flashrnn_step": ("cuda", "TBHGD", "HPGD", "HGD", "STBHD"),
    "flashrnn_triton": ("triton_fused", "BTGHD", "GHDP", "GHD", "TSBHD"),
}
_CELLS = {"lstm": "lstm", "gru": "gru", "rnn": "elman"}
#: What a backend does, as its documents and its configuration say.
_ONLY = {
    "flashrnn": (("lstm", "rnn"), ("float16", "bfloat16", "tf32")),
    "flashrnn_step": (("lstm", "gru", "rnn"), ("float16", "bfloat16", "float32")),
    "flashrnn_triton": (("lstm",), ("float16", "bfloat16", "tf32")),
}
#: FlashRNN's GRU has the recurrent part of n first, and a bias block of its own for it.
_GRU_RECURRENT = (2, 0, 1)


def from_torch(key: str, cell: str, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """torch.nn's weights as FlashRNN's: w_ih (G*H, I) in the order of its gates, R and b in its layouts."""
    w_ih, w_hh, b_ih, b_hh = weights
    G, units, inputs = GATES[cell], w_hh.size(1), w_ih.size(1)
    _, gates, recurrent, bias, _ = BACKENDS[key]
    R = w_hh.view(G, 1, units, units)  # GHDP
    if cell == "gru":
        (i_r, i_z, i_n), (h_r, h_z, h_n) = b_ih.view(G, units), b_hh.view(G, units)
        R, b = R[list(_GRU_RECURRENT)], torch.stack([h_n, i_r + h_r, i_z + h_z, i_n])[:, None]
    else:
        b = (b_ih + b_hh).view(G, 1, units)
    if gates.endswith("DG"):
        w_ih = w_ih.view(G, units, inputs).transpose(0, 1).reshape(-1, inputs)
    return w_ih, R.permute(["GHDP".index(d) for d in recurrent]), b.permute(["GHD".index(d) for d in bias])


def to_torch(key: str, cell: str, w_ih: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """The other way, for the gradients of w_ih and R."""
    _, gates, recurrent, _, _ = BACKENDS[key]
    R = R.permute([recurrent.index(d) for d in "GHDP"])
    G, units, inputs = R.size(0), R.size(2), w_ih.size(1)
    if cell == "gru":
        R = R[[_GRU_RECURRENT.index(g) for g in range(G)]]
    if gates.endswith("DG"):
        w_ih = w_ih.view(units, G, inputs).transpose(0, 1).reshape(-1, inputs)
    return w_ih, R.reshape(G * units, units)


def build(problem: Problem, threads: int = 1, key: str = "flashrnn") -> Contender:
    """FlashRNN after one product for the input. nvcc compiles its CUDA backends for every size and batch:
    "cuda" once, in a minute, "cuda_fused" again and again until it has found what fits the GPU."""
    case = problem.case
    only(problem, *_ONLY[key])
    if key == "flashrnn_triton" and case.H > 64:
        raise Unsupported("H up to 64 only")
    require("flashrnn")
    package = importlib.import_module("flashrnn")
    backend, gates, recurrent, bias, states = BACKENDS[key]
    config = package.FlashRNNConfig(
        head_dim=case.H,
        num_heads=1,
        batch_size=case.B,
        function=_CELLS[case.cell],
        backend=backend,
        dtype=case.storage,
        input_shape=gates,
        recurrent_shape=recurrent,
        bias_shape=bias,
        output_shape=states,
    )
    w_ih, R, b = (leaf(w, problem) for w in from_torch(key, case.cell, problem.weights()))
    sizes = {"T": case.T, "B": case.B, "G": GATES[case.cell], "H": 1, "D": case.H}
    S = 2 if case.cell == "lstm" else 1
    zeros = problem.x.new_zeros([{**sizes, "S": S, "T": 1}[d] for d in states])

    def run(x):
        gx = linear(x, w_ih).view([sizes[d] for d in gates])
        found, _ = package.flashrnn(gx, R, b, states=zeros, config=config)
        return found.select(states.index("S"), 0).squeeze(2)

    label = f"{labelled('FlashRNN', 'flashrnn')} {backend}"
    return torch_contender(
        key,
        label,
        problem,
        [w_ih, R, b],
        run,
        gradients=lambda: to_torch(key, case.cell, w_ih.grad, R.grad),
        batch_first=gates.startswith("BT"),
    )


ROWS = tuple(
    Row(
        key,
        name,
        partial(build, key=key),
        color,
        marker,
        ("flashrnn",),
        device="cuda",
        compiling_s=compiling_s,
    )
    for key, name, color, marker, compiling_s in (
        ("flashrnn", "FlashRNN", "#b0303a", "D", 400.0),
        ("flashrnn_step", "FlashRNN, a step at a time", "#d16a72", "d", 200.0),
        ("flashrnn_triton", "FlashRNN, Triton", "#7d1f27", "p", 150.0),
    )
)
