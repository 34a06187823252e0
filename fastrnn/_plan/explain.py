"""fastrnn.explain: which kernel will run a layer, why, and what it costs at least.

The choice itself is a pure function of shapes and machine (csrc/plan/cpu.cpp); nothing is computed here, so a
plan can be asked for shapes that would not fit into memory, and for a GPU on a machine without one.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _C, _checks
from .._ops import autograd, library
from .._run import native, wavefront
from . import gpus, scan_costs
from .explanation import Explanation, LayerPlan

__all__ = ["Explanation", "LayerPlan", "explain"]

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
#: T, B where a module is explained without an input.
ASSUMED = (100, 16)
#: Up to here the plan's sums of operations and bytes are exact: steps and rows, units and features.
_MOST_STEPS, _MOST_UNITS = 2**31 - 1, 2**24

_MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


@functools.cache
def _fma_peak() -> float:
    return torch.ops.fastrnn.cpu_fma_peak()


@functools.cache
def _read_bandwidth(size: int) -> float:
    return torch.ops.fastrnn.cpu_read_bandwidth(size)


def _floor(plan: dict, T: int, dtype: str, threads: int, training: bool) -> tuple[float, str]:
    """Seconds at least on this CPU, and what sets them."""
    peak = _fma_peak() * threads / (2 if dtype == "float64" else 1)
    # The bandwidth of a power of two near the size, so that few sizes are ever measured.
    size = 1 << max(12, (plan["step_weight_bytes"] // threads).bit_length())
    read = _read_bandwidth(min(size, 1 << 26)) * threads
    arithmetic = plan["flops"] / peak
    reading = T * plan["step_weight_bytes"] * (2 if training else 1) / read
    return max((arithmetic, "arithmetic"), (reading, "reading the weights"))


def _elsewhere(backend: str, device: str) -> str | None:
    """Why a backend runs no kernel of fastrnn's, None where it does."""
    if backend == "reference":
        return "backend='reference' was asked for"
    if backend == "cudnn":
        return "backend='cudnn' was asked for: torch's own layer"
    if backend in _checks.TIERS and device != "cuda":
        return f"backend={backend!r} is a tier of the CUDA kernels: an error on the {device.upper()}"
    return None


def _missing(dtype: torch.dtype, device: str, gpu: gpus.Gpu | None) -> str | None:
    """Why no kernel covers this, None where one does. gpu: the one that is meant by "cuda"."""
    if not autograd.supported(torch.empty(0, dtype=dtype, device="meta")):
        return f"no kernel computes in {str(dtype).removeprefix('torch.')}"
    if device not in ("cpu", "cuda"):
        return f"no kernel runs on {device}"
    if device == "cuda" and not library.cuda_loaded:
        return "the CUDA kernels are not loaded: fastrnn or torch was built without CUDA"
    if device == "cuda" and not gpus.built_for(gpu.compute_capability):
        major, minor = divmod(gpu.compute_capability, 10)
        return f"the CUDA kernels were not built for compute capability {major}.{minor}"
    return None


def _count(argument: str, value: object, least: int, most: int) -> int:
    """A whole number from ``least`` to ``most``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}: expected an integer, got {value!r}") from None
    if not least <= number <= most:
        bound = f"at least {least}" if number < least else f"at most {most}"
        raise ValueError(f"{argument}: expected {bound}, got {number}")
    return number


def _sizes(input, batch_first: bool, features: int) -> tuple[int, int, bool]:
    """T, B and whether packed, of an input or a (T, B) pair."""
    if isinstance(input, (PackedSequence, Tensor)):
        found = (input.data if isinstance(input, PackedSequence) else input).shape[-1:]
        if found and found[0] != features:
            raise ValueError(f"input: expected {features} features, the module's, got {found[0]}")
    if isinstance(input, PackedSequence):
        return len(input.batch_sizes), int(input.batch_sizes[0]), True
    if isinstance(input, Tensor):
        if input.dim() not in (2, 3):
            raise ValueError(f"input: expected 2 or 3 dimensions, got {input.dim()}")
        if input.dim() == 2:
            return input.size(0), 1, False
        T, B = input.shape[:2]
        return (B, T, False) if batch_first else (T, B, False)
    try:
        T, B = (operator.index(n) for n in input)
    except (TypeError, ValueError):
        raise TypeError(f"input: expected a tensor, a PackedSequence or (T, B), got {input!r}") from None
    return T, B, False


def explain(
    module_or_shape: nn.Module | Sequence[int],
    input: Tensor | PackedSequence | tuple[int, int] | None = None,
    *,
    cell: str = "lstm",
    num_layers: int = 1,
    bidirectional: bool = False,
    proj_size: int = 0,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    training: bool | None = None,
    packed: bool = False,
    masked: bool = False,
    threads: int | None = None,
    measure: bool = False,
    gpu: str | None = None,
    tf32: bool | None = None,
    backend: str | None = None,
) -> Explanation:
    """Say which kernel will run, why, and with what cost.

        print(fastrnn.explain(module, x))
        print(fastrnn.explain((100, 16, 128, 256), cell="gru", training=True))

    Args:
        module_or_shape: a recurrent module or cell of fastrnn or torch.nn, or the shape (T, B, I, H).
        input: for a module: its input, or (T, B); without it T=100, B=16 is assumed. A cell has one step and
            takes a (B, I) tensor or (1, B).
        cell, num_layers, bidirectional, proj_size, packed: for a shape; a module and its input know them.
        masked: whether lengths, reset or return_all_states will be given.
        dtype, device: by default the module's, or float32 on the CPU. No GPU is needed to ask about "cuda",
            and no such device about any other.
        training: whether gradients will be asked for; by default whether the module is in training mode.
        threads: by default torch.get_num_threads(), or fewer where there are fewer CPUs.
        gpu: the GPU that is meant, "H100", "A100", "RTX 4090" and so on, for device "cuda", which it implies;
            by default the one that is here, else an H100.
        tf32: whether float32 products may round to TensorFloat-32, by default as torch is set.
        backend: by default the module's, or "auto".
        measure: also measure this CPU's limits, a fraction of a second once a process, for the shortest time
            that any kernel could take.

    Raises:
        TypeError: something that is no recurrent module, shape or input, an option of another type.
        ValueError: sizes below 1 (B below 0) or beyond any machine, an input that is not the module's, an
            unknown cell, GPU or backend.
    """
    notes: list[str] = []
    if backend is not None:
        _checks.one_of("explain", "backend", backend, _checks.BACKENDS)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype, got {dtype!r}")
    if tf32 is not None and not isinstance(tf32, bool):
        raise TypeError(f"tf32: expected a bool, got {tf32!r}")
    if gpu is not None and device is None:
        device = "cuda"
    sru_layers = None
    if _is_sru(module_or_shape):
        module, sru_layers = module_or_shape, scan_costs.layers_of(module_or_shape)
        dtype, device = dtype or _first_weight(module).dtype, device or _first_weight(module).device
        training = module.training if training is None else training
        backend = backend or getattr(module, "rnn_lst", [module])[0].backend
        inputs, hidden = module.input_size, module.hidden_size
        given = ASSUMED if input is None else input
        T, B, packed = _sizes(given, getattr(module, "batch_first", False), inputs)
        if input is None:
            notes.append(f"no input was given: T={T}, B={B} assumed")
        subject = f"{type(module).__name__}({inputs}, {hidden})"
    elif isinstance(module_or_shape, nn.Module):
        module = module_or_shape
        single = isinstance(module, nn.RNNCellBase)
        if not single and not isinstance(module, nn.RNNBase):
            raise TypeError(f"module_or_shape: {type(module).__name__} is no recurrent module")
        cell = _cell_of(module, single)
        weight = module.weight_hh if single else module.weight_hh_l0
        dtype, device = dtype or weight.dtype, device or weight.device
        training = module.training if training is None else training
        backend = backend or getattr(module, "backend", "auto")
        inputs, hidden = module.input_size, module.hidden_size
        if single:
            num_layers, bidirectional, proj_size = 1, False, 0
            T, B = 1, _cell_rows(input, inputs)
        else:
            num_layers, bidirectional = module.num_layers, module.bidirectional
            proj_size = module.proj_size
            T, B, packed = _sizes(ASSUMED if input is None else input, module.batch_first, inputs)
        if input is None:
            notes.append(f"no input was given: T={T}, B={B} assumed")
        subject = f"{type(module).__name__}({inputs}, {hidden})"
        if not type(module).__module__.startswith("fastrnn"):
            notes.append(
                f"this is {type(module).__module__.split('.')[0]}'s module: fastrnn's would run like this"
            )
    else:
        if isinstance(module_or_shape, (str, bytes)):
            raise TypeError(f"module_or_shape: expected a module or (T, B, I, H), got {module_or_shape!r}")
        if input is not None:
            raise TypeError(f"input: a shape has T and B, expected None, got {_checks.kind(input)}")
        try:
            T, B, inputs, hidden = (operator.index(n) for n in module_or_shape)
        except (TypeError, ValueError):
            raise TypeError(
                f"module_or_shape: expected a module or (T, B, I, H), got {module_or_shape!r}"
            ) from None
        _count("num_layers", num_layers, 1, 1 << 16)
        most_projected = hidden - 1 if cell == "lstm" else 0
        if _count("proj_size", proj_size, 0, _MOST_UNITS) > max(0, most_projected):
            raise ValueError(
                f"proj_size: expected less than H={hidden} for an LSTM and 0 for others, got {proj_size}"
            )
        if cell == "sru":
            sru_layers, D = [], 2 if bidirectional else 1
            for number in range(num_layers):
                features = D * hidden if number else inputs
                sru_layers.append(scan_costs.Layer(features, hidden, D, 3 if features == D * hidden else 4))
        elif cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, sru, got {cell!r}")
        subject = f"{cell}({inputs}, {hidden})"

    for argument, size, least, most in (
        ("T", T, 1, _MOST_STEPS),
        ("B", B, 0, _MOST_STEPS),
        ("I", inputs, 1, _MOST_UNITS),
        ("H", hidden, 1, _MOST_UNITS),
    ):
        _count(argument, size, least, most)

    dtype, training, backend = dtype or torch.float32, bool(training), backend or "auto"
    kind = torch.device("cpu" if device is None else device).type
    if kind == "meta":
        raise ValueError("device: expected one that computes, such as 'cpu' or 'cuda', got 'meta'")
    if gpu is not None and kind != "cuda":
        raise ValueError(f"gpu: expected none for device {kind!r}, got {gpu!r}")
    on_device, chosen_gpu = {}, None
    if kind == "cuda":
        chosen_gpu = gpus.find(gpu, device)
        wanted = backend if backend in _checks.TIERS else "auto"
        tf32 = autograd.rnn_tf32() if tf32 is None else tf32
        on_device = {"gpu": chosen_gpu.properties(), "tf32": tf32, "tier": wanted}
        table = _C.plan_table_provenance()
        from_where = (
            "estimates, not measurements" if table.startswith("estimated") else f"from the timings of {table}"
        )
        notes.append(f"planned for {chosen_gpu.name}; times a step are {from_where}")
    threads = library.cpu_threads() if threads is None else _count("threads", threads, 1, 1 << 20)
    directions = 2 if bidirectional else 1
    name = str(dtype).removeprefix("torch.")
    isa = library.cpu_isa() if kind == "cpu" else None
    if kind == "cpu":
        on_device = library.cpu_tile(dtype)
    why_not = _elsewhere(backend, kind) or _missing(dtype, kind, chosen_gpu)
    elsewhere = "cudnn" if backend == "cudnn" else "reference"
    if why_not and backend == "fused":
        why_not += ": an error with backend='fused'"
    elif sru_layers is None and not masked and native.preferred(backend, why_not is None):
        elsewhere = "cudnn"
        why_not += ": torch's own layer, or the reference where torch has none for the case"

    if sru_layers is not None:
        if why_not is None and (note := scan_costs.largest_product(sru_layers, T, B, kind, name)):
            notes.append(note)
        layers = _sru_plans(sru_layers, T, B, name, training, why_not)
        return Explanation(subject, kind, name, isa, threads, training, layers, notes)
    layers = []
    for number in range(num_layers):
        shape = {"T": T, "B": B, "I": inputs, "H": hidden, "P": proj_size, "directions": directions}
        if why_not is not None:
            layers.append(LayerPlan(number, **shape, kernel=elsewhere, reason=why_not))
        else:
            plan = _C.plan(
                device=kind,
                cell=cell,
                **shape,
                dtype=name,
                training=training,
                packed=packed,
                threads=threads,
                **on_device,
            )
            for repeated in ("device", "packed"):
                plan.pop(repeated, None)
            chosen = {"kernel": plan.pop("kernel"), "reason": plan.pop("reason"), "plan": plan}
            if measure and kind == "cpu":
                chosen["floor_s"], chosen["bound"] = _floor(plan, T, name, threads, training)
            layers.append(LayerPlan(number, **shape, **chosen))
        inputs = directions * (proj_size or hidden)
    dropped = training and getattr(module_or_shape, "dropout", 0.0) > 0
    whole = num_layers == 1 or bidirectional or masked or packed or dropped
    if kind == "cuda" and why_not is None and backend in ("auto", "fused") and not whole:
        notes += _wavefront_notes(
            cell, num_layers, T, B, hidden, proj_size, name, training, on_device["tf32"], chosen_gpu
        )
    if masked:
        notes.append(
            "masked: the same kernels, forward and backward; operations and bytes are those of rows that all "
            "last T steps" + ("" if why_not is None else ", and the reference takes them one by one")
        )
    if packed:
        notes.append("packed: operations and bytes are those of rows that all last T steps")
    return Explanation(subject, kind, name, isa, threads, training, layers, notes)


def _wavefront_notes(*stack) -> list[str]:
    """What there is to say of stacked layers that could overlap in time."""
    pieces = wavefront.planned(*stack)
    if pieces == 1:
        return []
    text = f"the layers overlap in time as a wavefront of {pieces} pieces"
    if not wavefront.measured():
        text += f" if asked to, with fastrnn.wavefront({pieces}): by themselves not before a GPU was timed"
    return [text]


def _is_sru(value: object) -> bool:
    """Whether this is a module of fastrnn's SRU family."""
    from ..modules import SRU, SRUCell, SRUpp

    return isinstance(value, (SRU, SRUpp, SRUCell))


def _first_weight(module: nn.Module) -> Tensor:
    return getattr(module, "rnn_lst", [module])[0].weight_c


def _sru_plans(sru_layers, T, B, dtype, training, why_not) -> list[LayerPlan]:
    """What runs the scan of each layer of an SRU, and what the layer costs."""
    plans = []
    for number, layer in enumerate(sru_layers):
        shape = {"T": T, "B": B, "I": layer.I, "H": layer.H, "P": layer.P, "directions": layer.D}
        if why_not is not None:
            plans.append(LayerPlan(number, **shape, kernel="reference", reason=why_not))
            continue
        plan = scan_costs.costs(layer, T, B, dtype, training)
        plans.append(LayerPlan(number, **shape, kernel="scan", reason=scan_costs.REASON, plan=plan))
    return plans


def _cell_of(module: nn.Module, single: bool) -> str:
    """The kernels' name of a module's recurrence."""
    if not single:
        return _MODES[module.mode]
    for kind, name in ((nn.LSTMCell, "lstm"), (nn.GRUCell, "gru")):
        if isinstance(module, kind) or type(module).__name__ == kind.__name__:
            return name
    return f"rnn_{getattr(module, 'nonlinearity', 'tanh')}"


def _cell_rows(input, features: int) -> int:
    """Rows of a cell's input."""
    if input is None:
        return 1
    if isinstance(input, Tensor) and input.dim() == 1:
        input = input.unsqueeze(0)
    if isinstance(input, Tensor):
        if input.dim() != 2:
            raise ValueError(f"input: expected 1 or 2 dimensions for a cell, got {input.dim()}")
        input = input.unsqueeze(0)
    T, B, _ = _sizes(input, False, features)
    if T != 1:
        raise ValueError(f"input: expected one step for a cell, (1, B), got {T}")
    return B
