"""fastrnn.explain: which kernel will run a layer, why, and what it costs at least.

Who computes a layer is ``route``'s to say, as for a call; how the kernels divide the work, the planner's, a
pure function of shapes and machine (csrc/plan). Nothing is computed here, so a plan can be asked for shapes
that would not fit into memory, and for a GPU on a machine without one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._cells.variant import for_kernels, spell
from .._ops import devices, library, quantized, torch_state
from . import costs, gpus, subject, wavefront
from .explanation import Explanation, LayerPlan
from .route import Route, missing, one_step, route
from .subject import Subject
from .tuning import kinds, stacks, trust

__all__ = ["Explanation", "LayerPlan", "explain"]


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
    weights: str | None = None,
) -> Explanation:
    """Say which kernel will run, why, and with what cost::

        print(fastrnn.explain(module, x))
        print(fastrnn.explain((100, 16, 128, 256), cell="gru", training=True))

    Args:
        module_or_shape: a recurrent module or cell of fastrnn or torch.nn, a streamer, or the shape (T, B, I,
            H).
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
        weights: how a streamer or :func:`fastrnn.quantize` is to store them, "float32", "bfloat16" or "int8";
            by default as the module does. Of a module each layer then says what that changes of its weights.
        measure: also measure this CPU's limits, a fraction of a second once a process, for the shortest time
            that any kernel could take.

    Raises:
        TypeError: something that is no recurrent module, shape or input, an option of another type.
        ValueError: sizes below 1 (B below 0) or beyond any machine, an input that is not the module's, an
            unknown cell, GPU or backend.
    """
    if backend is not None:
        _checks.one_of("explain", "backend", backend, _checks.BACKENDS)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype, got {dtype!r}")
    if tf32 is not None and not isinstance(tf32, bool):
        raise TypeError(f"tf32: expected a bool, got {tf32!r}")
    if gpu is not None and device is None:
        device = "cuda"
    asked = subject.read(module_or_shape, input, cell, num_layers, bidirectional, proj_size, packed)
    if weights is not None:
        _of_low_precision(asked, module_or_shape, weights)
    device = device or asked.device
    asked.dtype = dtype or asked.dtype or torch.float32
    asked.training = bool(asked.training if training is None else training)
    asked.backend = backend or asked.backend or "auto"
    threads = library.cpu_threads() if threads is None else subject.count("threads", threads, 1, 1 << 20)

    kind = torch.device("cpu" if device is None else device).type
    if kind == "meta":
        raise ValueError("device: expected one that computes, such as 'cpu' or 'cuda', got 'meta'")
    if gpu is not None and kind != "cuda":
        raise ValueError(f"gpu: expected none for device {kind!r}, got {gpu!r}")
    machine = {"threads": threads}
    found_gpu, known, wave = None, None, None
    if kind == "cuda":
        found_gpu = gpus.find(gpu, device)
        known = trust.on_paper(torch.device(device), gpu is None and torch.cuda.is_available())
        tf32 = torch_state.rnn_tf32() if tf32 is None else tf32
        rows = "masked" if masked else "packed" if asked.packed else "full"
        wave = None if masked or asked.backend != "auto" else _proven_wave(asked, known, tf32)
        of_wave = {} if wave is None else dict.fromkeys(_keys(asked, tf32), wave.passes)
        machine |= {"gpu": found_gpu.properties(), "tf32": tf32, "rows": rows}
        machine["trusted"] = known.lines(of_wave)
        asked.notes.append(_times_of(found_gpu))
    elif kind == "cpu" and library.cpu_loaded:
        machine |= library.cpu_machine(asked.dtype)

    if asked.cell in costs.ELEMENTWISE:
        if asked.backend != "auto":
            raise ValueError(f"backend: expected 'auto', as {asked.name} has no other, got {asked.backend!r}")
        way, plans = _elementwise_way(asked, kind), _elementwise_plans
    else:
        way = _way(asked, kind, found_gpu, masked, known, bool(tf32))
        plans = _rnn_plans if asked.scans is None else _scan_plans
    layers = plans(asked, way, kind, machine, measure)
    if asked.scans is None:
        if kind == "cuda" and not masked and "fused" in (way.runner, way.otherwise):
            asked.notes += _wavefront_notes(asked, found_gpu, tf32, wave)
        if masked and way.runner == "fused":
            asked.notes.append(f"masked: the same kernels, forward and backward; {_FULL_ROWS}")
        elif masked and way.runner == "reference":
            asked.notes.append("masked: the reference takes the steps one by one")
        if asked.packed:
            asked.notes.append(f"packed: {_FULL_ROWS}")
    elif asked.cell in costs.ELEMENTWISE:
        if masked or asked.packed:
            asked.notes.append(f"{'packed' if asked.packed else 'masked'}: {_FULL_ROWS}")
    elif way.runner == "fused":
        note = costs.largest_product(asked.scans, asked.T, asked.B, kind, _name(asked.dtype))
        asked.notes += [note] if note else []
    isa = library.cpu_isa() if kind == "cpu" else None
    return Explanation(
        asked.name, kind, _name(asked.dtype), isa, threads, asked.training, layers, asked.notes
    )


def _of_low_precision(asked: Subject, subject_of, weights: str) -> None:
    """What weights stored otherwise than the subject's are."""
    _checks.one_of("explain", "weights", weights, quantized.WEIGHTS)
    if asked.weights not in ("float32", weights):
        raise ValueError(f"weights: expected {asked.weights!r}, those of the module, got {weights!r}")
    if asked.scans is not None or isinstance(subject_of, nn.RNNCellBase):
        if weights != "float32":
            raise ValueError(f"weights: expected 'float32' for {asked.name}, got {weights!r}")
        return
    if weights == "float32" or asked.weights == weights:
        return
    asked.weights, asked.training = weights, False
    if isinstance(subject_of, nn.Module):
        asked.weight_errors = quantized.weight_errors(subject_of, weights)


_FULL_ROWS = "operations and bytes are those of rows that all last T steps"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _times_of(gpu: gpus.Gpu) -> str:
    table = library.plan_table_provenance()
    estimated = table.startswith("estimated")
    where = "estimates, not measurements" if estimated else f"from the timings of {table}"
    return f"planned for {gpu.name}; times a step are {where}"


def _facts(asked: Subject, tf32: bool) -> kinds.Stack:
    """What kinds are made of, ``kinds.of_stack`` and ``stacks.of_layers``."""
    directions = 2 if asked.bidirectional else 1
    sizes = asked.T, asked.B, asked.inputs, asked.hidden, asked.proj, directions, asked.num_layers
    return kinds.Stack(asked.cell, *sizes, _name(asked.dtype), tf32, asked.training, asked.packed)


def _keys(asked: Subject, tf32: bool) -> list[str]:
    return [kind.key for kind in kinds.of_stack(_facts(asked, tf32))]


def _stack(asked: Subject, tf32: bool) -> kinds.Kind | None:
    if asked.scans is not None:
        return None
    return stacks.of_layers(_facts(asked, tf32), asked.training and asked.dropout > 0)


def _proven_wave(asked: Subject, known: trust.Device, tf32: bool) -> stacks.Wave | None:
    """The wavefront that a call would be."""
    return trust.wavefront(known, _stack(asked, tf32))


def _doubt(asked: Subject, known: trust.Device, tf32: bool) -> str | None:
    """What a call would be told of a GPU."""
    return trust.doubt(known, kinds.of_stack(_facts(asked, tf32)), _stack(asked, tf32))


def _way(
    asked: Subject, kind: str, gpu: gpus.Gpu | None, masked: bool, known: trust.Device | None, tf32: bool
) -> Route:
    """What a call would be told."""
    runs, where = True, ""
    if gpu is not None:
        runs = devices.built_for(gpu.compute_capability)
        where = "compute capability {}.{}".format(*divmod(gpu.compute_capability, 10))
    return route(
        asked.backend,
        missing(asked.dtype, kind, runs, where),
        kind,
        family="rnn" if asked.scans is None else "scan",
        masked=masked and asked.scans is None,
        empty=asked.scans is not None and asked.B == 0,
        variant=asked.variant,
        doubt=None if known is None or asked.scans is not None else _doubt(asked, known, tf32),
        subject=f"{asked.dtype} on {kind}",
    )


#: What a LayerPlan calls those that are no kernels.
_RUNNERS = {"native": "cudnn", "reference": "reference", "none": "none"}


def _without_kernels(way: Route) -> dict:
    reason = f"an error with {way.why}" if way.runner == "none" else way.why
    return {"kernel": _RUNNERS[way.runner], "reason": reason}


def _spelled(asked: Subject, kind: str) -> str:
    """The cell as the operator is told it."""
    if asked.variant is None:
        return asked.cell
    return spell(asked.cell, *for_kernels(asked.variant, kind == "cpu", asked.proj > 0, asked.training))


def _rnn_plans(asked: Subject, way: Route, kind: str, machine: dict, measure: bool) -> list[LayerPlan]:
    directions, inputs = 2 if asked.bidirectional else 1, asked.inputs
    if kind == "cuda":
        machine = machine | {"tier": asked.backend if way.tier else "auto"}
    cell, layers = _spelled(asked, kind), []
    low = asked.weights != "float32"
    if low:
        machine = machine | {"weights": asked.weights}
    for number in range(asked.num_layers):
        shape = {"T": asked.T, "B": asked.B, "I": inputs, "H": asked.hidden, "P": asked.proj}
        shape["directions"] = directions
        inputs = directions * (asked.proj or asked.hidden)
        if way.runner != "fused":
            layers.append(LayerPlan(number, **shape, **_without_kernels(way)))
            continue
        plan = library.plan(
            device=kind,
            cell=cell,
            **shape,
            dtype=_name(asked.dtype),
            training=asked.training,
            packed=asked.packed,
            **machine,
        )
        for repeated in ("device", "packed"):
            plan.pop(repeated, None)
        chosen = {"kernel": plan.pop("kernel"), "reason": plan.pop("reason"), "plan": plan}
        if low and asked.weight_errors:
            chosen["error"] = asked.weight_errors[number]
        if measure and kind == "cpu" and not low:
            found = costs.floor(plan, asked.T, _name(asked.dtype), machine["threads"], asked.training)
            chosen["floor_s"], chosen["bound"] = found
        layers.append(LayerPlan(number, **shape, **chosen))
    return layers


def _scan_plans(asked: Subject, way: Route, kind: str, machine: dict, measure: bool) -> list[LayerPlan]:
    """What runs the scan of each layer of an SRU, and what the layer costs."""
    plans = []
    for number, layer in enumerate(asked.scans):
        shape = {"T": asked.T, "B": asked.B, "I": layer.I, "H": layer.H, "P": layer.P, "directions": layer.D}
        if way.runner != "fused":
            plans.append(LayerPlan(number, **shape, **_without_kernels(way)))
            continue
        plan = costs.costs(layer, asked.T, asked.B, _name(asked.dtype), asked.training)
        kernel, reason = "scan", costs.REASON
        if not asked.training and layer.plain and one_step(asked.T, asked.B, kind == "cpu"):
            kernel, reason = (
                "step",
                "one step of few rows: the matrix product and the recurrence in one kernel",
            )
        plans.append(LayerPlan(number, **shape, kernel=kernel, reason=reason, plan=plan))
    return plans


def _elementwise_way(asked: Subject, kind: str) -> Route:
    """Who computes a MinGRU, MinLSTM, IndRNN or SLSTM, as ``_ops.elementwise.fused`` has it."""
    lacking = missing(asked.dtype, "cpu")
    if lacking is None and kind != "cpu":
        lacking = "its kernels are the CPU's"
    return Route("fused") if lacking is None else Route("reference", f"{lacking}: torch's operations")


def _elementwise_plans(
    asked: Subject, way: Route, kind: str, machine: dict, measure: bool
) -> list[LayerPlan]:
    plans, dtype = [], _name(asked.dtype)
    for number, layer in enumerate(asked.scans):
        shape = {"T": asked.T, "B": asked.B, "I": layer.I, "H": layer.H, "P": 0, "directions": layer.D}
        if way.runner != "fused":
            plans.append(LayerPlan(number, **shape, **_without_kernels(way)))
            continue
        plan = costs.elementwise_costs(layer, asked.T, asked.B, dtype, asked.training)
        chosen = {"kernel": layer.cell, "reason": costs.ELEMENTWISE_REASON[layer.cell], "plan": plan}
        if measure:
            found = costs.floor(plan, asked.T, dtype, machine["threads"], asked.training)
            chosen["floor_s"], chosen["bound"] = found
        plans.append(LayerPlan(number, **shape, **chosen))
    return plans


def _wavefront_notes(asked: Subject, gpu: gpus.Gpu, tf32: bool, proven: stacks.Wave | None) -> list[str]:
    """What there is to say of stacked layers that overlap in time, or could."""
    if proven is not None:
        return [
            f"the layers overlap in time as a wavefront of {proven.pieces} pieces, which was verified and "
            "measured on this device; the plan is of whole layers"
        ]
    dropped = asked.training and asked.dropout > 0
    if asked.num_layers == 1 or asked.bidirectional or asked.packed or dropped:
        return []
    if asked.backend not in ("auto", "fused"):
        return []
    pieces = wavefront.planned(
        asked.cell,
        asked.num_layers,
        asked.T,
        asked.B,
        asked.hidden,
        asked.proj,
        _name(asked.dtype),
        asked.training,
        tf32,
        gpu,
    )
    if pieces == 1:
        return []
    return [
        f"the layers overlap in time as a wavefront of {pieces} pieces if asked to, with "
        f"fastrnn.wavefront({pieces}): that it pays is the plan's word, which no device has proven"
    ]
