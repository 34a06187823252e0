"""Loads the compiled operators and says what they can do without data (fake implementations).

`torch.ops.fastrnn.rnn_forward` and `rnn_backward` are one recurrent layer over a whole sequence,
`sru_forward` and `sru_backward` the recurrence of one SRU layer; their schemas, and those of their forms for
tracers and compilers, are in csrc/ops/schema.cpp. The CPU library defines them, the CUDA library adds its
implementation where torch itself has CUDA.
"""

import os
import warnings
from pathlib import Path

import torch

from .. import _C
from .._cells.variant import card_of, parse
from . import threads
from .mode import CLUSTERS, NEEDS, SAVE_MODES, SCAN_NEEDS, TF32, TIER_MASK, TIERS  # noqa: F401

_FOLDER = Path(__file__).parents[1]  # where the binaries lie

torch.ops.load_library(_FOLDER / "libfastrnn_cpu.so")
cuda_loaded = False
#: How many blocks of fastrnn.patch() are open.
patched = 0
if torch.version.cuda is not None and (_FOLDER / "libfastrnn_cuda.so").exists():
    try:
        torch.ops.load_library(_FOLDER / "libfastrnn_cuda.so")
        cuda_loaded = True
    except OSError as error:  # the driver or libtorch_cuda is missing: the CPU still works
        warnings.warn(f"fastrnn's CUDA kernels could not be loaded: {error}", RuntimeWarning, stacklevel=2)

forward = torch.ops.fastrnn.rnn_forward.default
backward = torch.ops.fastrnn.rnn_backward.default
sru_forward = torch.ops.fastrnn.sru_forward.default
sru_backward = torch.ops.fastrnn.sru_backward.default
sru_step = torch.ops.fastrnn.sru_step.default
# With derivatives of their own, for tracers alone: see differentiable.py.
layer = torch.ops.fastrnn.rnn_layer.default
sru_scan = torch.ops.fastrnn.sru_scan.default
# Without a list among the results, for compilers alone.
backward_unlisted = torch.ops.fastrnn.rnn_backward_unlisted.default
pack = torch.ops.fastrnn.rnn_pack.default
stream = torch.ops.fastrnn.rnn_stream.default


#: What would run a layer on a machine, what a GPU's tuning calls layers like it, and where the times of a
#: plan come from; see csrc/python.cpp.
plan = _C.plan
trust_key = _C.trust_key
plan_table_provenance = _C.plan_table_provenance


def build_info() -> dict:
    """Version, compilers and CUDA architectures of the binaries."""
    return _C.build_info()


def cpu_isa() -> str:
    """The instruction set whose kernels run: one of ``mode.CPU_ISAS``."""
    return torch.ops.fastrnn.cpu_isa()


def available_cpu_isas() -> list[str]:
    """The instruction sets that this machine can run, best first."""
    return torch.ops.fastrnn.cpu_isas().split(",")


def cpu_tile(dtype: torch.dtype) -> dict[str, int]:
    """What the plan of a CPU layer looks at of the kernels in use: ``lanes`` and ``tile_rows``."""
    lanes, tile_rows = torch.ops.fastrnn.cpu_tile(dtype == torch.float64)
    return {"lanes": lanes, "tile_rows": tile_rows}


def set_cpu_isa(name: str) -> None:
    """Run other kernels than the best, for tests; the environment variable FASTRNN_CPU_ISA does the same
    at load. Not between a forward and its backward."""
    torch.ops.fastrnn.cpu_set_isa(name)


def cpu_threads() -> int:
    """How many threads a call on the CPU may use: torch.get_num_threads(), or fewer where there are fewer
    CPUs."""
    return torch.ops.fastrnn.cpu_threads()


def release_scratch() -> int:
    """Give the memory that the CPU kernels keep between calls back to the system.

    What a call needs besides its results (packed weights, states, a chunk of gates) is kept for later calls:
    to map and clear it anew costs about 0.1 ms a MB. A process keeps at most 64 MB, in at most four pieces,
    for all of its threads together, and nothing of what is smaller than 256 KB or larger than 64 MB. Calls
    that are running keep what they have; the next call maps its own memory again. Nothing is kept on systems
    other than Linux, nor for a GPU, whose memory is torch's.

    Returns:
        How many bytes were given back.
    """
    return torch.ops.fastrnn.cpu_release_scratch()


def cpu_fma_peak() -> float:
    """Float32 operations a second of one thread at best, measured."""
    return torch.ops.fastrnn.cpu_fma_peak()


def cpu_read_bandwidth(size: int) -> float:
    """Bytes a second that one thread reads of a buffer of this size, measured."""
    return torch.ops.fastrnn.cpu_read_bandwidth(size)


def cpu_last_plan() -> dict[str, int | bool]:
    """How this thread's last call of a recurrent layer on the CPU was divided, in the plan's own words."""
    direct, *groups = torch.ops.fastrnn.cpu_last_plan()
    names = "direction_groups", "batch_groups", "unit_groups", "forward_chunk", "backward_chunk"
    return {"kernel": "direct" if direct else "packed", **dict(zip(names, groups, strict=True))}


torch.ops.fastrnn.cpu_limit_threads(*threads.from_here())

_requested = os.environ.get("FASTRNN_CPU_ISA")
if _requested and _requested != cpu_isa():
    warnings.warn(
        f"FASTRNN_CPU_ISA={_requested!r} cannot run here (available: {', '.join(available_cpu_isas())}); "
        f"using {cpu_isa()}",
        RuntimeWarning,
        stacklevel=2,
    )


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Of an LSTM's cell states as they are saved, and of every sum."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def saved_values(cell: str) -> int:
    """What training keeps a unit and step of a cell with or without a variant, without c."""
    card, variant, masks = parse(cell)
    if not masks and variant == parse(card.name).variant:
        return card.saved
    return max(card.saved, 1) + (2 * card.gates if variant.norm else 0)


def _same_device(x, *tensors):
    """Fake implementations stand for one device: a real tensor among meta ones is a mistake."""
    for tensor in tensors:
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(f"expected all tensors on x's device, {x.device}, got one on {tensor.device}")


@torch.library.register_fake("fastrnn::rnn_forward")
def _fake_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode):
    _same_device(x, h0, c0, *weights, reset)
    directions, batch, out = h0.shape
    card = card_of(cell)
    hidden = weights[0].shape[0] // card.gates
    rows = x.shape[0] if batch_sizes is not None else x.shape[0] * x.shape[1]
    lstm, saved = card.has_cell, saved_values(cell)
    y = x.new_empty((*x.shape[:-1], directions * out))
    cn = x.new_empty((directions, batch, hidden)) if lstm else x.new_empty((0,))
    save = mode % TIERS["one_cta"]
    gates_shape = (directions, rows, saved * hidden) if saved and save == SAVE_MODES["gates"] else (0,)
    gates = x.new_empty(gates_shape)
    cells_shape = (directions, rows, hidden) if lstm and save else (0,)
    return y, x.new_empty(h0.shape), cn, gates, x.new_empty(cells_shape, dtype=compute_dtype(x))


@torch.library.register_fake("fastrnn::rnn_layer")
def _(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, keep_cells, mode):
    mode = SAVE_MODES["recompute"] if keep_cells else 0
    y, hn, cn, _, cells = _fake_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode)
    return y, hn, cn, cells


@torch.library.register_fake("fastrnn::rnn_backward")
def _fake_backward(
    grad_y,
    grad_hn,
    grad_cn,
    grad_cells,
    x,
    h0,
    c0,
    weights,
    batch_sizes,
    lengths,
    reset,
    y,
    gates,
    cells,
    cell,
    bias,
    mode,
):
    _same_device(x, h0, c0, *weights, reset, grad_cells)

    def like(tensor, wanted):
        return tensor.new_empty(tensor.shape) if wanted and tensor is not None else x.new_empty((0,))

    return (
        like(x, mode & NEEDS["x"]),
        like(h0, mode & NEEDS["h0"]),
        like(c0, mode & NEEDS["c0"]),
        _like_weights(weights, cell) if mode & NEEDS["weights"] else [],
    )


def _like_weights(weights, cell):
    masks = len(parse(cell).masks)
    own = weights[: len(weights) - masks]
    return [w.new_empty(w.shape) for w in own] + [weights[0].new_empty((0,)) for _ in range(masks)]


def _unlisted(gradients):
    """The results of a backward operator one by one, with an empty tensor for each weight there is not."""
    *first, weights = gradients
    return *first, *weights, *(first[0].new_empty((0,)) for _ in range(10 - len(weights)))


@torch.library.register_fake("fastrnn::rnn_backward_unlisted")
def _(*args):
    return _unlisted(_fake_backward(*args))


@torch.library.register_fake("fastrnn::sru_forward")
def _fake_sru_forward(
    u,
    x,
    weight_c,
    bias,
    c0,
    v,
    mask_pad,
    drop_mask,
    batch_sizes,
    reset,
    use_tanh,
    scale,
    bidirectional,
    save,
):
    _same_device(u, x, weight_c, bias, c0, v, mask_pad, drop_mask, reset)
    *rows, _, features = u.shape
    count = rows[0] if batch_sizes is not None else rows[0] * rows[1]
    cells = u.new_empty((count, features) if save else (0,), dtype=compute_dtype(u))
    return u.new_empty((*rows, features)), u.new_empty(c0.shape), cells


torch.library.register_fake("fastrnn::sru_scan", _fake_sru_forward)


@torch.library.register_fake("fastrnn::sru_backward")
def _(
    grad_h,
    grad_c,
    grad_cells,
    u,
    x,
    weight_c,
    bias,
    c0,
    v,
    mask_pad,
    drop_mask,
    batch_sizes,
    reset,
    cells,
    use_tanh,
    scale,
    bidirectional,
    needs,
):
    _same_device(u, grad_h, grad_c, grad_cells, x, weight_c, bias, c0, v, mask_pad, drop_mask, reset, cells)

    def like(tensor, wanted):
        return u.new_empty(tensor.shape) if wanted and tensor is not None else u.new_empty((0,))

    return (
        like(u, needs & SCAN_NEEDS["u"]),
        like(x, needs & SCAN_NEEDS["x"]),
        like(weight_c, needs & SCAN_NEEDS["weights"]),
        like(bias, needs & SCAN_NEEDS["weights"]),
        like(c0, needs & SCAN_NEEDS["c0"]),
        like(v, needs & SCAN_NEEDS["v"]),
    )


@torch.library.register_fake("fastrnn::sru_step")
def _(x, weight, skip, weight_c, bias, c0, use_tanh, scale):
    _same_device(x, weight, skip, weight_c, bias, c0)
    return x.new_empty(c0.shape), x.new_empty(c0.shape)


@torch.library.register_fake("fastrnn::rnn_stream")
def _(x, h0, c0, packed):
    _same_device(x, h0, c0)
    y = x.new_empty((*x.shape[:-1], h0.shape[-1]))
    return y, x.new_empty(h0.shape), x.new_empty((0,) if c0 is None else c0.shape)
