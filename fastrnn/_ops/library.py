"""Loads the compiled operators and says what runs: instruction sets, threads, scratch memory.

`torch.ops.fastrnn.rnn_forward` and `rnn_backward` are one recurrent layer over a whole sequence,
`sru_forward` and `sru_backward` the recurrence of one SRU layer; their schemas, and those of their forms for
tracers and compilers, are in csrc/ops/schema.cpp. The CPU library defines them, the CUDA library adds its
implementation where torch itself has CUDA. What they return without data is in fakes.py.
"""

import os
import re
import sys
import types
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from . import elf, threads
from .mode import CLUSTERS, OVERLAPS, SAVE_MODES, TF32, TIER_MASK, TIERS  # noqa: F401

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
        return _absent(name, path)
    if missing := elf.cut_off(path):
        return f"{path} could not be loaded: {missing}"
    try:
        torch.ops.load_library(path)
    except Exception as error:  # whatever is wrong with it, torch's own layers need nothing of it
        text = " ".join(str(error.__cause__ or error).split())  # torch's says no more than the file's name
        # A library whose table of symbols is damaged asks for one without a name, which is not torch's fault.
        if re.search(r"(undefined symbol|Symbol not found): *[^\s,]", text):
            text = text.removeprefix(f"{path}: ")
            return f"{path} asks for what torch {torch.__version__} does not have: {text}"
        return f"{path} could not be loaded: {elf.explained(path, text)}"
    return ""


def _absent(name: str, path: Path | None = None) -> str:
    """Why a file is not where the package lies."""
    if path and path.is_symlink():
        return f"{path} is a link to {os.readlink(path)}, where no file is"
    if not _FOLDER.is_dir():
        return f"{_FOLDER} lies in an archive, from which no library can be loaded; `pip install` unpacks it"
    return (
        f"{name} is not in {_FOLDER}: sources that were not built (`make build`, `pip install .`), or an "
        "installation that is not whole"
    )


def _warn(said: str) -> None:
    """A warning at the line that imports fastrnn: those between are ours, and tell a user nothing."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and Path(frame.f_code.co_filename).is_relative_to(_FOLDER):
        frame = frame.f_back
        while frame.f_back and "importlib._bootstrap" in frame.f_code.co_filename:
            frame = frame.f_back  # warnings.warn passes over these by itself
        level += 1
    warnings.warn(said, RuntimeWarning, stacklevel=level)


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
    _warn(
        f"fastrnn's kernels are not loaded, torch's own layers run in their place: {cpu_why}. "
        "`python -m fastrnn info` says more"
    )

#: What the CUDA library implements, by torch's key for it.
_ON_CUDA = {
    "CUDA": (
        *("rnn_forward", "rnn_backward", "rnn_backward_unlisted", "rnn_backward_unlisted_variant"),
        *("rnn_layer", "sru_forward", "sru_backward", "sru_scan"),
    ),
    "CompositeExplicitAutograd": (
        *("cuda_trust", "cuda_quarantine", "cuda_quarantined", "cuda_ran", "cuda_clear_ran"),
        *("cuda_status", "cuda_has_image", "cuda_release_scratch"),
    ),
}


def _lacking_on_cuda() -> str:
    """What the CUDA library that was loaded does not have of what this package calls."""
    lacking = []
    for key, names in _ON_CUDA.items():
        found = getattr(torch._C.DispatchKey, key)
        operators = [(name, getattr(torch.ops.fastrnn, name).default) for name in names]
        lacking += [name for name, of in operators if not of.has_kernel_for_dispatch_key(found)]
    path = _FOLDER / "libfastrnn_cuda.so"
    return f"{path} is of another version: it has no {', '.join(lacking)}" if lacking else ""


#: The same of the CUDA kernels.
cuda_why = ""
if not cpu_loaded:
    cuda_why = "nor are the CPU kernels, which have the operators"
elif torch.version.cuda is None:
    cuda_why = "torch was built without CUDA"
elif not os.path.lexists(_FOLDER / "libfastrnn_cuda.so"):
    cuda_why = "fastrnn was built without CUDA"
elif _failed := _load("libfastrnn_cuda.so") or _lacking_on_cuda():  # no libtorch_cuda: the CPU works
    cuda_why = _failed
    _warn(
        f"fastrnn's CUDA kernels could not be loaded, torch's own layers run on GPUs: {_failed}. "
        "`python -m fastrnn info` says more"
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
#: Gradients of weights among their results (csrc/ops/rnn_call.h).
UNLISTED, UNLISTED_VARIANT = 10, 23
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


def direct(cells: dict[str, str] | None = None, fused: frozenset = frozenset()):
    """Calls without the dispatcher where their arguments are ordinary; see csrc/python_layer.cpp. Not for
    compilers, which know the operators alone.

    ``forward`` and ``backward`` are the operators', except that results that there are not, or nobody wants,
    may be None. ``forward`` without gradients (mode 0) is for callers who have seen that nobody looks on;
    what comes from an autograd.Function is seen to. ``module`` is for callers who have seen that no gradients
    are recorded: (output, h_n, c_n) of a module of one layer, of its fields, its input and hx; None for
    whatever is out of the ordinary.

    Args:
        cells: the kernels' names of the modules' modes, for ``module``.
        fused: the backends and dtypes whose ordinary layers the kernels take.
    """
    if not cpu_loaded:
        return types.SimpleNamespace(forward=None, backward=None, module=lambda *_: None)
    # Without the frame of Python's around them.
    own = getattr(forward, "_op", forward), getattr(backward, "_op", backward)
    try:
        return _C.Layer(*own, torch.ops.fastrnn.cpu_layer_entry(), cells or {}, fused)
    except (TypeError, AttributeError):  # a torch that gives no door
        return types.SimpleNamespace(
            forward=own[0], backward=lambda *args: own[1](*tensors_saved(args)), module=lambda *_: None
        )


def tensors_saved(arguments: tuple) -> tuple:
    """The arguments of a backward pass as the operator takes them: an empty tensor for what was not saved."""
    *before, gates, cells, cell, bias, mode = arguments
    if gates is None or cells is None:
        none = before[4].new_empty(0)
        gates, cells = none if gates is None else gates, none if cells is None else cells
    return *before, gates, cells, cell, bias, mode


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
    other than Linux. What glibc's malloc has free, of results and gradients, goes back too.

    For a GPU memory is kept with the CUDA graphs of the "stepwise_graph" tier alone, 16 of them and 512 MB at
    most a device; they go as well.

    Returns:
        How many bytes were given back, without malloc's, which does not say.
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
    try:
        _cpus = threads.from_here()
    except ValueError as _error:  # a setting that is wrong stops no import: `info` would not tell of it
        _warn(f"{_error}; using what the system says")
        _cpus = threads.from_here(FASTRNN_CPUS="")
    torch.ops.fastrnn.cpu_limit_threads(*_cpus)

_requested = os.environ.get("FASTRNN_CPU_ISA")
if cpu_loaded and _requested and _requested != cpu_isa():
    _warn(
        f"FASTRNN_CPU_ISA={_requested!r} cannot run here (available: {', '.join(available_cpu_isas())}); "
        f"using {cpu_isa()}"
    )


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Of an LSTM's cell states as they are saved, and of every sum."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
