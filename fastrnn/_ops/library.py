"""Loads the compiled operators and says what they can do without data (fake implementations).

`torch.ops.fastrnn.rnn_forward` and `rnn_backward` are one recurrent layer over a whole sequence,
`sru_forward` and `sru_backward` the recurrence of one SRU layer; their schemas, and those of their forms for
tracers and compilers, are in csrc/ops/schema.cpp. The CPU library defines them, the CUDA library adds its
implementation where torch itself has CUDA.
"""

import os
import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from .._cells.variant import card_of, parse
from . import elf, threads
from .mode import CLUSTERS, NEEDS, OVERLAPS, SAVE_MODES, SCAN_NEEDS, TF32, TIER_MASK, TIERS  # noqa: F401

_FOLDER = Path(__file__).parents[1]  # where the binaries lie

try:
    for _suffix in EXTENSION_SUFFIXES:  # not of another Python's, which may lie beside it
        if _missing := elf.cut_off(_module := _FOLDER / f"_C{_suffix}"):
            raise ImportError(f"{_module}: {_missing}")
    from .. import _C

    for _name in ("build_info", "plan", "plan_table_provenance", "trust_key", "Stream", "Layer"):
        if not hasattr(_C, _name):
            raise ImportError(f"it is of another version, and has no {_name}")
except ImportError as _error:
    _C, _no_module = None, _error

#: The oldest torch whose stable ABI the libraries are built for.
MIN_TORCH = (2, 11)
_LIBRARY = "libfastrnn_cpu.dll" if sys.platform == "win32" else "libfastrnn_cpu.so"
#: Without one of these the library is not this package's.
_OPERATORS = (
    *("rnn_forward", "rnn_backward", "rnn_backward_unlisted", "rnn_backward_unlisted_variant"),
    *("rnn_layer", "rnn_pack", "rnn_stream"),
    *("rnn_pack_quantized", "rnn_quantized", "cpu_stream_entry", "cpu_layer_entry", "cpu_int8_dot"),
    *("sru_forward", "sru_backward", "sru_scan", "sru_step", "cpu_isa", "cpu_isas", "cpu_set_isa"),
    *("elementwise_forward", "elementwise_backward", "slstm_forward", "slstm_backward"),
    *("cpu_machine", "cpu_set_machine", "cpu_threads", "cpu_limit_threads", "cpu_last_plan"),
    *("cpu_release_scratch", "cpu_fma_peak", "cpu_read_bandwidth"),
)


def _load(name: str) -> str:
    """Load a library of operators; "" or why there is none."""
    path, here = _FOLDER / name, ".".join(torch.__version__.split(".")[:2])
    try:
        old = tuple(map(int, here.split("."))) < MIN_TORCH
    except ValueError:  # a version of somebody's own
        old = False
    if old:
        return f"fastrnn needs torch >= {'.'.join(map(str, MIN_TORCH))}, found {torch.__version__}"
    if not path.exists():
        return _absent(name)
    if missing := elf.cut_off(path):
        return f"{path} could not be loaded: {missing}"
    try:
        torch.ops.load_library(path)
    except Exception as error:  # whatever is wrong with it, torch's own layers need nothing of it
        text = " ".join(str(error.__cause__ or error).split())  # torch's says no more than the file's name
        if "undefined symbol" in text or "Symbol not found" in text:
            return f"{path} asks for what torch {torch.__version__} does not have: {text}"
        return f"{path} could not be loaded: {text}"
    return ""


def _absent(name: str) -> str:
    """Why a file is not where the package lies."""
    if not _FOLDER.is_dir():
        return f"{_FOLDER} lies in an archive, from which no library can be loaded; `pip install` unpacks it"
    return (
        f"{name} is not in {_FOLDER}: sources that were not built (`make build`, `pip install .`), or an "
        "installation that is not whole"
    )


def _no_python_module() -> str:
    """Why fastrnn._C could not be imported."""
    if list(_FOLDER.glob("_C.*")) and "partially initialized" in str(_no_module):
        found = ", ".join(path.name for path in _FOLDER.glob("_C.*"))
        return f"no fastrnn._C for {sys.implementation.cache_tag} in {_FOLDER}, only {found}"
    if "partially initialized" in str(_no_module):
        return _absent("_C")
    return f"fastrnn._C could not be imported: {_no_module}"


#: Why the CPU kernels are not there, "" where they are. Nothing else of the package fails then: ``route``
#: sends every layer to torch's own, or to the reference.
cpu_why = _load(_LIBRARY) or ("" if _C else _no_python_module())
if not cpu_why:
    _lacking = [name for name in _OPERATORS if not hasattr(torch.ops.fastrnn, name)]
    if _lacking:
        cpu_why = f"{_FOLDER / _LIBRARY} is of another version: it has no {', '.join(_lacking)}"
cpu_loaded = not cpu_why
if cpu_why:
    warnings.warn(
        f"fastrnn's kernels are not loaded, torch's own layers run in their place: {cpu_why}. "
        "`python -m fastrnn info` says more",
        RuntimeWarning,
        stacklevel=2,
    )

#: The same of the CUDA kernels.
cuda_why = ""
if not cpu_loaded:
    cuda_why = "nor are the CPU kernels, which have the operators"
elif torch.version.cuda is None:
    cuda_why = "torch was built without CUDA"
elif not (_FOLDER / "libfastrnn_cuda.so").exists():
    cuda_why = "fastrnn was built without CUDA"
elif _failed := _load("libfastrnn_cuda.so"):  # the driver or libtorch_cuda is missing: the CPU still works
    cuda_why = _failed
    warnings.warn(
        f"fastrnn's CUDA kernels could not be loaded, torch's own layers run on GPUs: {_failed}. "
        "`python -m fastrnn info` says more",
        RuntimeWarning,
        stacklevel=2,
    )
cuda_loaded = not cuda_why
#: How many blocks of fastrnn.patch() are open.
patched = 0


def _operator(name: str):
    return getattr(torch.ops.fastrnn, name).default if cpu_loaded else None


forward = _operator("rnn_forward")
backward = _operator("rnn_backward")
sru_forward = _operator("sru_forward")
sru_backward = _operator("sru_backward")
sru_step = _operator("sru_step")
elementwise_forward = _operator("elementwise_forward")
elementwise_backward = _operator("elementwise_backward")
slstm_forward = _operator("slstm_forward")
slstm_backward = _operator("slstm_backward")
# With derivatives of their own, for tracers alone: see differentiable.py.
layer = _operator("rnn_layer")
sru_scan = _operator("sru_scan")
# Without a list among the results, for compilers alone.
backward_unlisted = _operator("rnn_backward_unlisted")
backward_unlisted_variant = _operator("rnn_backward_unlisted_variant")
pack = _operator("rnn_pack")
stream = _operator("rnn_stream")
pack_quantized = _operator("rnn_pack_quantized")
quantized = _operator("rnn_quantized")
#: Calls of packed layers without the dispatcher, see csrc/python_stream.cpp.
stream_type = _C.Stream if cpu_loaded else None


#: What would run a layer on a machine, what a GPU's tuning calls layers like it, and where the times of a
#: plan come from; see csrc/python.cpp.
if _C is not None:
    plan = _C.plan
    trust_key = _C.trust_key
    plan_table_provenance = _C.plan_table_provenance
else:

    def plan(**_):
        raise RuntimeError(f"nothing can be planned: {_no_python_module()}")

    trust_key = plan

    def plan_table_provenance() -> str:
        return "estimated"


def build_info() -> dict:
    """Version, compilers and CUDA architectures of the binaries."""
    if _C is not None:
        return _C.build_info()
    return {"version": "", "compiler": "", "torch": "", "cuda_archs": "", "cuda_compiler": ""}


def cpu_isa() -> str | None:
    """The instruction set whose kernels run: one of ``mode.CPU_ISAS``; None where none are loaded."""
    return torch.ops.fastrnn.cpu_isa() if cpu_loaded else None


def stream_entry() -> int:
    """Where ``stream_type`` finds the function that it calls."""
    return torch.ops.fastrnn.cpu_stream_entry()


def direct_forward():
    """``forward`` without gradients for callers who have seen that nobody looks on, without the dispatcher
    where its arguments are ordinary; results that an inference has not may be None. See
    csrc/python_layer.cpp."""
    if not cpu_loaded:
        return None
    operator = getattr(forward, "_op", forward)  # without the frame of Python's around it
    try:
        return _C.Layer(
            operator, torch.ops.fastrnn.cpu_layer_entry(), torch._C._autograd._profiler_enabled
        ).forward
    except (TypeError, AttributeError):  # a torch that gives no door
        return operator


def int8_dot(use: bool = True) -> bool:
    """Whether int8 products may use the processor's own instruction for them, for tests; whether there is
    one. Their results are the same."""
    return torch.ops.fastrnn.cpu_int8_dot(use)


def available_cpu_isas() -> list[str]:
    """The instruction sets that this machine can run, best first."""
    return torch.ops.fastrnn.cpu_isas().split(",") if cpu_loaded else []


_MACHINE = ("lanes", "tile_rows", "l2_bytes", "l3_bytes", "meeting_ns", "region_ns")


def cpu_machine(dtype: torch.dtype) -> dict[str, int]:
    """What the plan of a CPU layer looks at: of the kernels in use ``lanes`` and ``tile_rows``, of the
    machine its caches, and what a meeting of two threads and a parallel region cost."""
    return dict(zip(_MACHINE, torch.ops.fastrnn.cpu_machine(dtype == torch.float64), strict=True))


def set_cpu_machine(**changes: int) -> None:
    """Make plans as for another machine, for tests: any of ``l2_bytes``, ``l3_bytes``, ``meeting_ns`` and
    ``region_ns``. With both times 0 as many threads are at work as can be."""
    if unknown := changes.keys() - set(_MACHINE[2:]):
        raise TypeError(f"expected some of {', '.join(_MACHINE[2:])}, got {', '.join(sorted(unknown))}")
    known = cpu_machine(torch.float32) | changes
    torch.ops.fastrnn.cpu_set_machine(*(known[name] for name in _MACHINE[2:]))


def set_cpu_isa(name: str) -> None:
    """Run other kernels than the best, for tests; the environment variable FASTRNN_CPU_ISA does the same
    at load. Not between a forward and its backward."""
    torch.ops.fastrnn.cpu_set_isa(name)


def cpu_threads() -> int:
    """How many threads a call on the CPU may use: torch.get_num_threads(), or fewer where there are fewer
    CPUs."""
    return torch.ops.fastrnn.cpu_threads() if cpu_loaded else torch.get_num_threads()


def release_scratch() -> int:
    """Give the memory that kernels keep between calls back to the system, or a GPU's to torch.

    What a call needs besides its results (packed weights, states, a chunk of gates) is kept for later calls:
    to map and clear it anew costs about 0.1 ms a MB. A process keeps at most 64 MB, in at most eight pieces,
    for all of its threads together, and nothing of what is smaller than 256 KB or larger than 64 MB. Calls
    that are running keep what they have; the next call maps its own memory again. Nothing is kept on systems
    other than Linux.

    For a GPU memory is kept with the CUDA graphs of the "stepwise_graph" tier alone, 16 of them and 512 MB at
    most a device; they go as well.

    Returns:
        How many bytes were given back.
    """
    released = torch.ops.fastrnn.cpu_release_scratch() if cpu_loaded else 0
    return released + (torch.ops.fastrnn.cuda_release_scratch() if cuda_loaded else 0)


def cpu_fma_peak() -> float:
    """Float32 operations a second of one thread at best, measured."""
    return torch.ops.fastrnn.cpu_fma_peak()


def cpu_read_bandwidth(size: int) -> float:
    """Bytes a second that one thread reads of a buffer of this size, measured."""
    return torch.ops.fastrnn.cpu_read_bandwidth(size)


def cpu_cell_rate(cell: str) -> float:
    """Units a second whose functions one thread computes, of a step in inference, measured in float32."""
    return torch.ops.fastrnn.cpu_cell_rate(cell)


def cpu_meeting(threads: int) -> float:
    """Seconds that so many threads take to wait for each other once, measured."""
    return torch.ops.fastrnn.cpu_meeting(threads)


def cpu_last_plan() -> dict[str, int | bool]:
    """How this thread's last call of a recurrent layer on the CPU was divided, in the plan's own words."""
    direct, *groups = torch.ops.fastrnn.cpu_last_plan()
    names = "direction_groups", "batch_groups", "unit_groups", "forward_chunk", "backward_chunk"
    return {"kernel": "direct" if direct else "packed", **dict(zip(names, groups, strict=True))}


if cpu_loaded:
    torch.ops.fastrnn.cpu_limit_threads(*threads.from_here())

_requested = os.environ.get("FASTRNN_CPU_ISA")
if cpu_loaded and _requested and _requested != cpu_isa():
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


def _fake(name: str):
    """Registers a function as an operator's fake implementation, where there is the operator."""
    return torch.library.register_fake(f"fastrnn::{name}") if cpu_loaded else lambda function: function


@_fake("rnn_forward")
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


@_fake("rnn_layer")
def _(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, keep_cells, mode):
    mode = SAVE_MODES["recompute"] if keep_cells else 0
    y, hn, cn, _, cells = _fake_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode)
    return y, hn, cn, cells


@_fake("rnn_backward")
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


#: Gradients of weights among the results of the forms of rnn_backward without a list (csrc/ops/rnn_call.h).
UNLISTED, UNLISTED_VARIANT = 10, 23


def _unlisted(gradients, most):
    """The results of a backward operator one by one, with an empty tensor for each weight there is not."""
    *first, weights = gradients
    return *first, *weights, *(first[0].new_empty((0,)) for _ in range(most - len(weights)))


@_fake("rnn_backward_unlisted")
def _(*args):
    return _unlisted(_fake_backward(*args), UNLISTED)


@_fake("rnn_backward_unlisted_variant")
def _(*args):
    return _unlisted(_fake_backward(*args), UNLISTED_VARIANT)


@_fake("sru_forward")
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


_fake("sru_scan")(_fake_sru_forward)


@_fake("sru_backward")
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


@_fake("sru_step")
def _(x, weight, skip, weight_c, bias, c0, use_tanh, scale):
    _same_device(x, weight, skip, weight_c, bias, c0)
    return x.new_empty(c0.shape), x.new_empty(c0.shape)


@_fake("rnn_stream")
def _(x, h0, c0, packed):
    _same_device(x, h0, c0)
    y = x.new_empty((*x.shape[:-1], h0.shape[-1]))
    return y, x.new_empty(h0.shape), x.new_empty((0,) if c0 is None else c0.shape)


@_fake("rnn_quantized")
def _(x, h0, c0, packed, batch_sizes, lengths, bidirectional):
    _same_device(x, h0, c0)
    y = x.new_empty((*x.shape[:-1], h0.shape[-1] * (2 if bidirectional else 1)))
    return y, x.new_empty(h0.shape), x.new_empty((0,) if c0 is None else c0.shape)
