"""Other ways to run a layer on a GPU: torch.compile, haste, TorchRL's Triton kernels, FlashRNN.

Single layers in one direction, with torch.nn's weights in the layout that each wants, prepared outside of
what is timed. What compiles does so at its first call. haste, TorchRL and FlashRNN are optional.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastrnn import reference as plain
from fastrnn.proof.timing import Contender

from ..cases import GATES, SRU_CELLS
from ..problem import Problem
from .registry import Unsupported, torch_contender

#: What each contender imports, and the distribution whose version is told.
PACKAGES = {
    "haste": ("haste_pytorch", "haste_pytorch"),
    "torchrl": ("torchrl", "torchrl"),
    "flashrnn": ("flashrnn", "flashrnn"),
}
#: Steps that torch.compile gets at once, at most: it unrolls them. 16 compile in half a minute, forward and
#: backward; 128 would for several.
UNROLLED = 16


def _require(package: str) -> None:
    if importlib.util.find_spec(PACKAGES[package][0]) is None:
        raise Unsupported(f"{package} is not installed")


def versions() -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name, distribution in (*((k, d) for k, (_, d) in PACKAGES.items()), ("triton", "triton")):
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def _only(problem: Problem, cells: tuple[str, ...], dtypes: tuple[str, ...]) -> None:
    case = problem.case
    if case.path != "layers" or case.layers > 1 or case.directions > 1 or case.cell in SRU_CELLS:
        raise Unsupported("single layers only")
    if case.cell not in cells:
        raise Unsupported(f"{' and '.join(c.upper() for c in cells)} only")
    if case.dtype not in dtypes:
        raise Unsupported(f"{' and '.join(dtypes)} only")


def _leaf(weight: Tensor, problem: Problem) -> Tensor:
    return weight.contiguous().clone().requires_grad_(problem.case.training)


# torch.compile


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
                h, c = plain._lstm_step(g, h, c, w_hh, b_hh)
            elif self.cell == "gru":
                h = plain._gru_step(g, h, w_hh, b_hh)
            else:
                h = plain._rnn_step(g, h, w_hh, b_hh, torch.tanh)
            h = h.to(gx.dtype)
            hs.append(h)
        return torch.stack(hs), h, c


def compiled(problem: Problem, graphs: bool = False) -> Contender:
    """The plain cell through torch.compile, UNROLLED steps at a time, after one product for the input.

    graphs: in mode "reduce-overhead", which replays each of them as a CUDA graph.
    """
    case = problem.case
    _only(problem, ("lstm", "gru", "rnn"), ("float16", "bfloat16", "tf32", "float32"))
    w_ih, w_hh, b_ih, b_hh = (w.clone() for w in problem.weights())
    if case.training:
        w_hh, b_hh = w_hh.float(), b_hh.float()
    steps = _Steps(case.cell, w_hh, b_hh).requires_grad_(case.training)
    w_ih, b_ih = _leaf(w_ih, problem), _leaf(b_ih, problem)
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


# haste

#: Gate blocks of haste's weights in torch.nn's numbering: LSTM i, g, f, o; GRU z, r, h.
HASTE_ORDER = {"lstm": (0, 2, 1, 3), "gru": (1, 0, 2)}


def _from_haste(weight: Tensor, cell: str) -> Tensor:
    """(I, G*H) in haste's order as torch.nn's (G*H, I)."""
    blocks = weight.t().chunk(GATES[cell])
    return torch.cat([blocks[HASTE_ORDER[cell].index(g)] for g in range(GATES[cell])])


def haste(problem: Problem) -> Contender:
    """haste's layer, whose own method takes torch.nn's weights."""
    case = problem.case
    _only(problem, ("lstm", "gru"), ("float32", "tf32"))
    _require("haste")
    package = importlib.import_module("haste_pytorch")
    module = getattr(package, case.cell.upper())(case.I, case.H)
    module.from_native_weights(*(w.clone() for w in problem.weights()))
    module.to(case.device).train(case.training)

    def gradients():
        return _from_haste(module.kernel.grad, case.cell), _from_haste(
            module.recurrent_kernel.grad, case.cell
        )

    label = f"haste {versions().get('haste', '')}".strip()
    return torch_contender("haste", label, problem, module.parameters(), module, gradients=gradients)


# TorchRL


def torchrl(problem: Problem) -> Contender:
    """The functions behind TorchRL's recurrent_backend="triton", without its modules: less to do, so a bound.

    They take torch.nn's weights as they are, and choose among their configurations at the first call.
    """
    case = problem.case
    _only(problem, ("lstm", "gru"), ("float32", "tf32"))
    _require("torchrl")
    kernels = importlib.import_module("torchrl.modules.tensordict_module._rnn_triton")
    weights = [_leaf(w, problem) for w in problem.weights()]
    # The state that each step would restart from, and where it does: nowhere.
    states = [problem.x.new_zeros(case.B, case.T, case.H) for _ in range(2 if case.cell == "lstm" else 1)]
    begins = torch.zeros(case.B, case.T, dtype=torch.bool, device=case.device)
    function = kernels.lstm_triton if case.cell == "lstm" else kernels.gru_triton
    precision = "tf32" if case.dtype == "tf32" else "ieee"

    def run(x):
        return function(x, *states, *weights, begins, input_precision=precision)[0].transpose(0, 1)

    label = f"TorchRL {versions().get('torchrl', '')}, Triton".replace(" ,", ",")
    return torch_contender("torchrl", label, problem, weights, run, batch_first=True)


# FlashRNN

#: Its backends, and how each lays out the gates, the recurrent weights, the biases and the states, so that
#: nothing is permuted in a call. T, B as ever, G gates, H heads (one), D units, P those before, S states.
FLASHRNN = {
    "flashrnn": ("cuda_fused", "TBHDG", "HDGP", "HDG", "STBHD"),
    "flashrnn_step": ("cuda", "TBHGD", "HPGD", "HGD", "STBHD"),
    "flashrnn_triton": ("triton_fused", "BTGHD", "GHDP", "GHD", "TSBHD"),
}
_FLASHRNN_CELLS = {"lstm": "lstm", "gru": "gru", "rnn": "elman"}
#: What a backend does, as its documents and its configuration say.
_FLASHRNN_ONLY = {
    "flashrnn": (("lstm", "rnn"), ("float16", "bfloat16", "tf32")),
    "flashrnn_step": (("lstm", "gru", "rnn"), ("float16", "bfloat16", "float32")),
    "flashrnn_triton": (("lstm",), ("float16", "bfloat16", "tf32")),
}
#: FlashRNN's GRU has the recurrent part of n first, and a bias block of its own for it.
_FLASHRNN_GRU_RECURRENT = (2, 0, 1)


def flashrnn_weights(key: str, cell: str, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """torch.nn's weights as FlashRNN's: w_ih (G*H, I) in the order of its gates, R and b in its layouts."""
    w_ih, w_hh, b_ih, b_hh = weights
    G, units, inputs = GATES[cell], w_hh.size(1), w_ih.size(1)
    _, gates, recurrent, bias, _ = FLASHRNN[key]
    R = w_hh.view(G, 1, units, units)  # GHDP
    if cell == "gru":
        (i_r, i_z, i_n), (h_r, h_z, h_n) = b_ih.view(G, units), b_hh.view(G, units)
        R, b = R[list(_FLASHRNN_GRU_RECURRENT)], torch.stack([h_n, i_r + h_r, i_z + h_z, i_n])[:, None]
    else:
        b = (b_ih + b_hh).view(G, 1, units)
    if gates.endswith("DG"):
        w_ih = w_ih.view(G, units, inputs).transpose(0, 1).reshape(-1, inputs)
    return w_ih, R.permute(["GHDP".index(d) for d in recurrent]), b.permute(["GHD".index(d) for d in bias])


def flashrnn_gradients(key: str, cell: str, w_ih: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """The other way, for the gradients of w_ih and R."""
    _, gates, recurrent, _, _ = FLASHRNN[key]
    R = R.permute([recurrent.index(d) for d in "GHDP"])
    G, units, inputs = R.size(0), R.size(2), w_ih.size(1)
    if cell == "gru":
        R = R[[_FLASHRNN_GRU_RECURRENT.index(g) for g in range(G)]]
    if gates.endswith("DG"):
        w_ih = w_ih.view(units, G, inputs).transpose(0, 1).reshape(-1, inputs)
    return w_ih, R.reshape(G * units, units)


def flashrnn(problem: Problem, key: str = "flashrnn") -> Contender:
    """FlashRNN after one product for the input. nvcc compiles its CUDA backends for every size and batch:
    "cuda" once, in a minute, "cuda_fused" again and again until it has found what fits the GPU."""
    case = problem.case
    _only(problem, *_FLASHRNN_ONLY[key])
    if key == "flashrnn_triton" and case.H > 64:
        raise Unsupported("H up to 64 only")
    _require("flashrnn")
    package = importlib.import_module("flashrnn")
    backend, gates, recurrent, bias, states = FLASHRNN[key]
    config = package.FlashRNNConfig(
        head_dim=case.H,
        num_heads=1,
        batch_size=case.B,
        function=_FLASHRNN_CELLS[case.cell],
        backend=backend,
        dtype=case.storage,
        input_shape=gates,
        recurrent_shape=recurrent,
        bias_shape=bias,
        output_shape=states,
    )
    w_ih, R, b = (_leaf(w, problem) for w in flashrnn_weights(key, case.cell, problem.weights()))
    sizes = {"T": case.T, "B": case.B, "G": GATES[case.cell], "H": 1, "D": case.H}
    S = 2 if case.cell == "lstm" else 1
    zeros = problem.x.new_zeros([{**sizes, "S": S, "T": 1}[d] for d in states])

    def run(x):
        gx = linear(x, w_ih).view([sizes[d] for d in gates])
        found, _ = package.flashrnn(gx, R, b, states=zeros, config=config)
        return found.select(states.index("S"), 0).squeeze(2)

    label = f"FlashRNN {versions().get('flashrnn', '')} {backend}".replace("  ", " ")
    return torch_contender(
        key,
        label,
        problem,
        [w_ih, R, b],
        run,
        gradients=lambda: flashrnn_gradients(key, case.cell, w_ih.grad, R.grad),
        batch_first=gates.startswith("BT"),
    )


def build(key: str, problem: Problem) -> Contender:
    """Make a contender by its key; Unsupported where it does not do the case, or is not installed."""
    if key in FLASHRNN:
        return flashrnn(problem, key)
    if key in ("compile", "compile_graphs"):
        return compiled(problem, graphs=key == "compile_graphs")
    return {"haste": haste, "torchrl": torchrl}[key](problem)
