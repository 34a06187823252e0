"""fastrnn, torch.nn and the plain reference as contenders; others are in peers.py and gpu/peers.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from fastrnn import _gpus
from fastrnn.proof.timing import Contender

from ..cases import SRU_CELLS, Case
from ..problem import Problem, Unsupported, module_options

#: In the order of tables and plots. The first is what everything else is compared with.
KEYS = (
    *("fastrnn", "torch", "sru", "onnxruntime", "openvino", "jax"),
    *("compile", "compile_graphs", "haste", "torchrl", "flashrnn", "flashrnn_step", "flashrnn_triton"),
    "reference",
)
#: fastrnn held to one tier of its CUDA kernels: for the table that its plan chooses by, not for comparisons.
TIERS = ("one_cta", "cluster", "grid", "stepwise")
PEERS = ("onnxruntime", "openvino", "jax")
#: Those of a GPU; all but haste compile at their first call, some for minutes.
CUDA_PEERS = KEYS[KEYS.index("compile") : KEYS.index("reference")]
NAMES = {
    "fastrnn": "fastrnn",
    "torch": "torch.nn",
    "sru": "sru",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jax": "JAX",
    "compile": "torch.compile",
    "compile_graphs": "torch.compile, CUDA graphs",
    "haste": "haste",
    "torchrl": "TorchRL",
    "flashrnn": "FlashRNN",
    "flashrnn_step": "FlashRNN, a step at a time",
    "flashrnn_triton": "FlashRNN, Triton",
    "reference": "reference",
}


class _OpNames(TorchDispatchMode):
    """Collects the names of the aten ops that run."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def torch_library(problem: Problem, module: nn.Module | None = None) -> str:
    """The library that does torch.nn's work in this case: looked up in the ops that it runs."""
    module = problem.module if module is None else module
    with _OpNames() as seen, torch.set_grad_enabled(problem.case.training):
        _run(own_copy(module), problem, problem.x)
    names = " ".join(seen.names)
    if "cudnn_rnn" in names:
        return "cuDNN"
    if problem.case.device != "cpu":
        return "cuBLAS"
    if "mkldnn" in names:
        return "oneDNN"
    if problem.case.dtype in ("bfloat16", "float16"):
        return "oneDNN a step" if torch.backends.mkldnn.is_available() else "native"
    return "MKL a step" if torch.backends.mkl.is_available() else "BLAS a step"


def own_copy(module: nn.Module) -> nn.Module:
    """A copy with weights of its own, in one piece of memory: cuDNN would gather what lies apart, as a bare
    copy's weights do, at every call."""
    copied = copy.deepcopy(module)
    if isinstance(copied, nn.RNNBase):
        copied.flatten_parameters()
    return copied


def _run(module: nn.Module, problem: Problem, x: Tensor):
    if problem.lengths is not None:
        return module(pack_padded_sequence(x, problem.lengths))
    if problem.case.path != "cells":
        return module(x)
    state = problem.state if problem.case.cell == "lstm" else problem.state[0]
    return module(x, state)


def _output(result) -> Tensor:
    """The tensor that gradients start from: every step's output, a packed sequence's rows, a cell's h."""
    while not isinstance(result, Tensor):
        result = result.data if isinstance(result, PackedSequence) else result[0]
    return result


def _synchronize(case: Case) -> Callable[[], None]:
    return torch.cuda.synchronize if case.device.startswith("cuda") else lambda: None


def torch_contender(
    key: str,
    label: str,
    problem: Problem,
    weights: Iterable[Tensor],
    run: Callable[[Tensor], object],
    *,
    gradients: Callable[[], tuple[Tensor, Tensor]] | None = None,
    batch_first: bool = False,
    **options,
) -> Contender:
    """A contender whose work is run(x), by torch's autograd in training. Its output is (T, B, H).

    Args:
        weights: what is trained; w_ih and w_hh first, unless there are gradients.
        gradients: those of w_ih and w_hh in torch.nn's layout, where the weights have another.
        batch_first: run's x is (B, T, I).
    """
    weights = list(weights)
    x = problem.x.transpose(0, 1).contiguous() if batch_first else problem.x

    if not problem.case.training:

        @torch.inference_mode()
        def call():
            return run(x)

        def result():
            return {"y": _output(call())}

        return Contender(key, label, call, result, sync=_synchronize(problem.case), **options)

    x = x.clone().requires_grad_()
    incoming: list[Tensor] = []

    def prepare():
        """What an optimiser leaves behind: no gradients, and weights that count as changed."""
        x.grad = None
        for w in weights:
            w.grad = None
        with torch.no_grad():
            for w in weights:
                w.view(-1)[:1].add_(0)

    def backward(y):
        if not incoming:  # laid out as the output is, so that nobody has to copy it
            incoming.append(torch.empty_like(y).copy_(problem.grad))
        y.backward(incoming[0])

    def call():
        backward(_output(run(x)))

    def result():
        prepare()
        y = _output(run(x))
        backward(y)
        grad_w_ih, grad_w_hh = (w.grad for w in weights[:2]) if gradients is None else gradients()
        return {
            "y": y.detach(),
            "grad_x": (x.grad.transpose(0, 1) if batch_first else x.grad).clone(),
            "grad_w_ih": grad_w_ih.clone(),
            "grad_w_hh": grad_w_hh.clone(),
        }

    return Contender(key, label, call, result, prepare, sync=_synchronize(problem.case), **options)


def torch_nn(problem: Problem) -> Contender:
    module = own_copy(problem.module)
    label = f"torch.nn ({torch_library(problem)})"
    return torch_contender("torch", label, problem, module.parameters(), lambda x: _run(module, problem, x))


def fused(problem: Problem, key: str = "fastrnn") -> Contender:
    """fastrnn's layer; with a tier for a key, by that tier alone."""
    import fastrnn

    from .. import step_floor

    case = problem.case
    name = case.cell.upper() + ("Cell" if case.path == "cells" else "")
    options = module_options(case)
    if key in TIERS:
        if case.path != "layers" or case.cell in SRU_CELLS or not case.device.startswith("cuda"):
            raise Unsupported("layers on a GPU only")
        if step_floor.passes_of(case, _gpus.find(device=case.device).properties(), key) is None:
            raise Unsupported("layers that fit only")
        options["backend"] = key
    module = getattr(fastrnn, name)(case.I, case.H, device=case.device, dtype=problem.x.dtype, **options)
    module.load_state_dict(problem.module.state_dict())
    module.train(case.training)
    label = f"fastrnn ({key})" if key in TIERS else "fastrnn"
    return torch_contender(key, label, problem, module.parameters(), lambda x: _run(module, problem, x))


def reference(problem: Problem) -> Contender:
    from fastrnn import reference as plain

    case = problem.case
    if case.layers > 1 or case.directions > 1:
        raise Unsupported("single layers only")
    weights = [w.clone().requires_grad_(case.training) for w in problem.weights()]
    if case.path == "cells":
        cell = getattr(plain, f"{case.cell}_cell")

        def run(x):
            return cell(x, *problem.state, *weights)
    else:
        cell = "rnn_tanh" if case.cell == "rnn" else case.cell
        h0 = problem.x.new_zeros(1, case.B, case.P or case.H)
        c0 = problem.x.new_zeros(1, case.B, case.H) if case.cell == "lstm" else None

        def run(x):
            if problem.lengths is None:
                return plain.layer(x, h0, c0, weights, cell=cell, bias=True)
            packed = pack_padded_sequence(x, problem.lengths)
            sizes = packed.batch_sizes
            return plain.layer(packed.data, h0, c0, weights, cell=cell, bias=True, batch_sizes=sizes)

    return torch_contender("reference", "reference", problem, weights, run, few=True)


def build(key: str, problem: Problem, threads: int) -> Contender:
    """Make a contender for this case. Unsupported where it does not do it, ValueError for another key."""
    if key not in (*KEYS, *TIERS):
        raise ValueError(f"unknown contender {key!r}: expected one of {', '.join((*KEYS, *TIERS))}")
    if key in TIERS:
        return fused(problem, key)
    if key == "sru" or problem.case.cell in SRU_CELLS:
        from . import sru

        return sru.build(key, problem)
    if key == "torch":
        return torch_nn(problem)
    if key == "fastrnn":
        return fused(problem)
    if key == "reference":
        return reference(problem)
    from . import flashrnn as gpu_peers
    from . import onnx as peers

    case = problem.case
    if key in CUDA_PEERS:
        if not case.device.startswith("cuda"):
            raise Unsupported("on a GPU only")
        return gpu_peers.build(key, problem)
    if case.path != "layers" or case.dtype != "float32" or case.device != "cpu":
        raise Unsupported("float32 layers on the CPU only")
    if case.training and key != "jax":
        raise Unsupported("inference only")
    return peers.BUILDERS[key](problem, threads)


#: Largest difference from torch.nn, relative to the largest value, that still counts as the same work.
AGREEMENT = {"float32": 2e-3, "float64": 1e-9, "bfloat16": 8e-2, "float16": 1e-2, "tf32": 1e-2}


def standard(case: Case) -> str:
    """The contender whose results the others must have."""
    return "reference" if case.cell in SRU_CELLS else "torch"


def disagreement(result: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any output or gradient, relative to that tensor's largest value."""
    worst = 0.0
    for name, tensor in result.items():
        got = tensor.double()
        want = expected[name].to(got)
        if got.shape != want.shape:
            raise ValueError(f"{name} has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        if want.numel():
            # A NaN must not hide: comparisons with it are false.
            difference = float((got - want).abs().max() / want.abs().max().clamp_min(1e-12))
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst
