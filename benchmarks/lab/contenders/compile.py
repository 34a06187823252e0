"""torch.compile of the plain cell, several steps at a time, after one product for the input."""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastrnn._cells import gru, lstm, rnn
from fastrnn.proof.timing import Contender

from ..problem import Problem
from .contender import Row, leaf, only, torch_contender

#: Steps that it gets at once, at most: it unrolls them. 16 compile in half a minute, forward and backward;
#: 128 would for several.
UNROLLED = 16


class _Steps(nn.Module):
    """A few steps of the plain reference's cell, in the input's dtype; the LSTM's c stays float32.

    In training the weights are float32 and cast here, as under autocast: summed over a thousand steps in
    float16, their gradients would be 1% off.
    """

    def __init__(self, cell: str, w_hh: Tensor, b_hh: Tensor):
        super().__init__()
        self.cell, self.w_hh, self.b_hh = cell, nn.Parameter(w_hh), nn.Parameter(b_hh)

    def forward(self, gx: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        w_hh, b_hh = self.w_hh.to(gx.dtype), self.b_hh.to(gx.dtype)
        hs = []
        for g in gx.unbind(0):
            if self.cell == "lstm":
                h, c = lstm.step(g, (h, c), w_hh, b_hh)
            elif self.cell == "gru":
                (h,) = gru.step(g, (h,), w_hh, b_hh)
            else:
                (h,) = rnn.tanh_step(g, (h,), w_hh, b_hh)
            h = h.to(gx.dtype)
            hs.append(h)
        return torch.stack(hs), h, c


def build(problem: Problem, threads: int = 1, graphs: bool = False) -> Contender:
    """The plain cell through torch.compile, UNROLLED steps at a time, after one product for the input.

    graphs: in mode "reduce-overhead", which replays each of them as a CUDA graph.
    """
    case = problem.case
    only(problem, ("lstm", "gru", "rnn"), ("float16", "bfloat16", "tf32", "float32"))
    w_ih, w_hh, b_ih, b_hh = (w.clone() for w in problem.weights())
    if case.training:
        w_hh, b_hh = w_hh.float(), b_hh.float()
    steps = _Steps(case.cell, w_hh, b_hh).requires_grad_(case.training)
    w_ih, b_ih = leaf(w_ih, problem), leaf(b_ih, problem)
    unrolled = max(n for n in range(1, UNROLLED + 1) if case.T % n == 0)
    options = {"mode": "reduce-overhead"} if graphs else {}
    run_steps = torch.compile(steps, dynamic=False, fullgraph=True, **options)

    def zeros(dtype):
        # Of the same kind as the states that come out of the steps, or the first call is compiled apart.
        return torch.zeros(case.B, case.H, dtype=dtype, device=case.device, requires_grad=case.training)

    def run(x):
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        h, c = zeros(x.dtype), zeros(torch.float32) if case.cell == "lstm" else None
        outputs = []
        for gx in linear(x, w_ih, b_ih).split(unrolled):
            y, h, c = run_steps(gx, h, c)
            outputs.append(y)
        return torch.cat(outputs)

    key = "compile_graphs" if graphs else "compile"
    mode = " reduce-overhead" if graphs else ""
    label = f"torch.compile{mode}, {unrolled} steps at a time"
    return torch_contender(key, label, problem, [w_ih, steps.w_hh, b_ih, steps.b_hh], run)


def forget() -> None:
    """Drop what torch.compile keeps of the cases before: it gives up after a few of one function."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


ROWS = (
    Row("compile", "torch.compile", build, "#5b6f9e", "v", ("triton",), device="cuda", compiling_s=180.0),
    Row(
        "compile_graphs",
        "torch.compile, CUDA graphs",
        partial(build, graphs=True),
        "#3f74b5",
        "^",
        ("triton",),
        device="cuda",
        compiling_s=180.0,
    ),
)
