"""Which runner computes a layer, and why: the one question that calls and ``fastrnn.explain`` both ask.

``route`` is pure: it looks at what it is told and at nothing else, so it can be asked about machines that are
not here. ``of`` asks it for a tensor of a call. What the kernels then do with a layer, which tier, how many
threads, is the planner's to say (csrc/plan).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._cells import Variant
from .._ops import devices, library, torch_state
from .._ops.mode import BACKENDS, NAMED_TIERS, TIERS
from .tuning import trust

#: What the kernels compute in.
DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))

#: Rows up to which one kernel for the product and the step of a scan beats a library's product and the scan:
#: at B = 1, H = 512 it saves a permutation of u, four calls and their Python.
FEW_ROWS = 4

#: How the reason begins where no kernel of any kind is there.
NOT_LOADED = "fastrnn's kernels are not loaded"

_NATIVE = "torch's own layer, or the reference where torch has none for the case"
_UNPROVEN = "torch's own layer, or a step at a time where torch has none for the case"
_OTHERS = "use backend='auto' or 'reference'"


class Route(NamedTuple):
    """The answer.

    Attributes:
        runner: "fused", the kernels; "native", torch's own layer; "reference", plain torch; "none" where the
            call is an error.
        why: the reason, "" for the kernels; the error's text for "none".
        tier: which CUDA kernels, as a mode says it.
        asked: whether torch's own layer was asked for by name. If not, another comes where it cannot.
        otherwise: that other one, "fused" or "reference".
        pieces: into how many the kernels' stacked layers are cut, as a device has proven it.
    """

    runner: str
    why: str = ""
    tier: int = 0
    asked: bool = False
    otherwise: str = "reference"
    pieces: int = 1


def missing(dtype: torch.dtype, device: str, runs: bool = True, where: str = "") -> str | None:
    """Why no kernel covers a dtype on a kind of device, None where one does; meta stands for any device.

    runs: of "cuda", whether the kernels were built for the GPU that is meant; where: what that one is.
    """
    if dtype not in DTYPES:
        return f"no kernel computes in {str(dtype).removeprefix('torch.')}"
    if not library.cpu_loaded:
        return f"{NOT_LOADED}: {library.cpu_why}"
    if device in ("cpu", "meta"):
        return None
    if device != "cuda":
        return f"no kernel runs on {device}"
    if not library.cuda_loaded:
        why = library.cuda_why or "fastrnn or torch was built without CUDA"
        return f"the CUDA kernels are not loaded: {why}"
    if not runs:
        return f"the CUDA kernels were not built for {where or 'this GPU'}"
    return None


#: Options of a variant whose kernels have not yet run on a device of that kind.
_UNTRIED = {"cuda": frozenset(("norm", "zoneout", "recurrent_dropout", "peephole", "reset_after"))}


def missing_variant(variant: Variant, device: str) -> str | None:
    """Why nobody who does not ask for them gets the kernels of a variant, None where all get them."""
    untried = [word for word in variant.words() if word in _UNTRIED.get(device, ())]
    if not untried:
        return None
    return (
        f"the kernels for {', '.join(untried)} have not yet run on a GPU: reference, unless asked for by name"
    )


def supported(x: Tensor) -> bool:
    """Whether a kernel exists for x's dtype on x's device."""
    if x.is_cpu:
        return x.dtype in DTYPES and library.cpu_loaded
    return missing(x.dtype, x.device.type, not x.is_cuda or devices.runs(x.device)) is None


def route(
    backend: str,
    lacking: str | None,
    device: str,
    *,
    family: str = "rnn",
    masked: bool = False,
    empty: bool = False,
    looked_into: bool = False,
    recorded: bool = False,
    variant: Variant | None = None,
    program: bool = False,
    doubt: str | None = None,
    subject: str = "the input",
) -> Route:
    """Who computes a layer.

    Args:
        backend: what was asked for. lacking: what ``missing`` says. device: "cpu", "cuda" and so on.
        family: "rnn" or "scan". masked: whether there are lengths, resets or states of every step to keep.
        empty: whether there is nothing to fuse: a cell without inputs or units, a scan of no elements.
        looked_into: whether torch.func's transforms or forward-mode AD are at work. Kernels have derivatives
            in reverse mode and no batching rules; these take the reference apart instead.
        recorded: whether a compiler is, who takes the reference apart as he would torch's layer.
        variant: of the cell, None for the plain one; torch's own layers have none.
        program: whether a program is written, which outlives what is known of a device now: the planner will
            decide where it runs.
        doubt: why torch's own layer is the better choice where the kernels could too, None where it is not:
            on a GPU no persistent tier runs unasked that was not proven there (``tuning.trust``).
        subject: what an error calls the input's dtype and device.
    """
    if backend == "reference":
        return Route("reference", "backend='reference' was asked for")
    rnn = family == "rnn"
    plain = variant is None
    if not plain and backend == "auto":
        lacking = lacking or missing_variant(variant, device)
    if rnn and backend == "cudnn" and not masked and plain:
        return Route("native", "backend='cudnn' was asked for: torch's own layer", asked=True)
    if empty and not (rnn and backend == "auto" and lacking):
        return Route("reference", "there is nothing to compute")
    unproven = rnn and backend == "auto" and doubt is not None and lacking is None
    if unproven and not plain and device == "cuda" and not looked_into:
        return Route("fused", tier=TIERS["stepwise"])  # the tier that needs no proof
    if unproven and device == "cuda" and not (masked or looked_into or program):
        return Route("native", f"{_UNPROVEN}: {doubt}", otherwise="fused")
    if not looked_into and lacking is None and (backend != "cudnn" or not rnn):
        tier = TIERS[backend] if rnn and backend in NAMED_TIERS else 0
        if tier and device == "cpu":
            return Route(
                "none",
                f"backend={backend!r}: a tier of the CUDA kernels, and the input is on the CPU; "
                "use backend='auto' or 'fused' there",
            )
        return Route("fused", tier=tier)
    transforms = "torch.func's transforms or forward-mode AD"
    if backend == "auto":
        why = lacking or f"{transforms}: no kernel has what they look for"
        taken_apart = looked_into or (recorded and (device != "cuda" or program))
        if rnn and plain and not masked and not taken_apart:
            return Route("native", f"{why}: {_NATIVE}")
        return Route("reference", why)
    what = transforms if looked_into else subject
    if lacking and lacking.startswith(NOT_LOADED):
        what = lacking
    elif not plain and not looked_into and backend == "cudnn":
        what = "torch's own layer has no " + ", ".join(variant.words())
    elif masked:
        what = f"it does not cover lengths, reset, done or return_all_states with {what}"
    else:
        what = f"no kernel covers {what}"
    return Route("none", f"backend={backend!r}: {what}; {_OTHERS}")


def of(
    x: Tensor,
    backend: str,
    family: str = "rnn",
    masked: bool = False,
    empty: bool = False,
    doubt: str | None = trust.UNVERIFIED,
    variant: Variant | None = None,
) -> Route:
    """Who computes a layer over x, in the state that torch is in. doubt: see ``route``; of what is known of a
    GPU the caller asks ``tuning.trust``, who knows the layer."""
    recorded = torch_state.compiling()
    program = torch_state.exporting() or bool(torch_state.tracing())
    state = empty, torch_state.transformed(), recorded, program
    if recorded or not x.is_cpu or variant is not None:
        return _answer(x.dtype, x.device, backend, family, masked, *state, doubt, variant)
    key = (x.dtype, backend, family, masked, *state)
    found = _on_cpu.get(key)
    if found is None:
        found = _on_cpu[key] = _answer(x.dtype, x.device, backend, family, masked, *state)
    return found


#: The answers for tensors on the CPU, which are few.
_on_cpu: dict[tuple, Route] = {}


def _answer(
    dtype: torch.dtype,
    device: torch.device,
    backend: str,
    family: str,
    masked: bool,
    empty: bool,
    looked_into: bool,
    recorded: bool,
    program: bool = False,
    doubt: str | None = None,
    variant: Variant | None = None,
) -> Route:
    return route(
        backend,
        missing(dtype, device.type, device.type != "cuda" or devices.runs(device)),
        device.type,
        family=family,
        masked=masked,
        empty=empty,
        looked_into=looked_into,
        recorded=recorded,
        program=program,
        doubt=doubt,
        variant=variant,
        subject=f"{dtype} on {device}",
    )


# What torch.compiler.assume_constant_result sets, without importing the compiler: it need not read what texts
# are made here.
_answer._dynamo_marked_constant = True


#: With which backends and dtypes the kernels take an ordinary layer on the CPU.
fused_on_cpu = frozenset(
    (backend, dtype)
    for backend in BACKENDS
    for dtype in DTYPES
    if route(backend, missing(dtype, "cpu"), "cpu").runner == "fused"
)


def one_step(steps: int, rows: int, on_cpu: bool) -> bool:
    """Whether a step of a scan is for the kernel that takes its product too, where nothing else speaks
    against it."""
    return on_cpu and steps == 1 and 0 < rows <= FEW_ROWS
