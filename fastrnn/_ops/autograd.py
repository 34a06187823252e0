"""The fused path of one layer, differentiable: an autograd.Function around the raw operators.

A Python Function costs less at small sizes than an autograd formula registered with the operator, and it
is skipped altogether where nothing needs a gradient.
"""

import torch
from torch.autograd import forward_ad

from .. import reference
from .._plan import gpus
from . import library

_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_NEED_X, _NEED_H0, _NEED_C0, _NEED_WEIGHTS = 1, 2, 4, 8


def supported(x: torch.Tensor) -> bool:
    """Whether a kernel exists for x's dtype on x's device."""
    if x.dtype not in _DTYPES:
        return False
    return x.is_cpu or x.is_meta or (x.is_cuda and library.cuda_loaded and gpus.runs(x.device))


def rnn_tf32() -> bool:
    """Whether torch lets cuDNN's recurrent layers compute float32 in TensorFloat-32: what nn.LSTM asks.

    That is torch.backends.cudnn.rnn.fp32_precision, which torch.backends.cudnn.allow_tf32 sets too. A
    compiled graph keeps the answer from when it was traced.
    """
    return torch._C._get_fp32_precision_getter("cuda", "rnn") == "tf32"


# What torch.compiler.assume_constant_result sets, without importing the compiler.
rnn_tf32._dynamo_marked_constant = True


def _cuda_mode(x: torch.Tensor) -> int:
    """What x's setting for TensorFloat-32 adds to the op's mode."""
    return library.TF32 if x.dtype is torch.float32 and rnn_tf32() else 0


def tier(backend: str, x: torch.Tensor) -> int:
    """What a backend that names a tier of the CUDA kernels adds to the op's mode; meta is any device."""
    if x.is_cpu:
        raise RuntimeError(
            f"backend={backend!r}: a tier of the CUDA kernels, and the input is on the CPU; "
            "use backend='auto' or 'fused' there"
        )
    return library.TIERS[backend]


def exporting() -> bool:
    """Whether torch.export is at work. torch.compiler.is_exporting() says the same, except that torch.compile
    of torch 2.11 takes it to be always true."""
    return torch.compiler._is_exporting_flag


#: A true value while torch.jit.trace is at work. What it is to record of calls of the raw operators,
#: script.py says; only that the autograd.Functions are kept from it is left to their callers.
tracing = torch._C._get_tracing_state


def transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which look into an operation rather than call it."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def differentiable(*grads: torch.Tensor | None) -> bool:
    """Whether a backward pass must be made of torch's own operations: create_graph=True wants gradients that
    can be differentiated again, is_grads_batched=True (and jacobian(vectorize=True)) a batch of them at once.
    """
    if torch.is_grad_enabled():
        return True
    if torch.compiler.is_compiling():
        return False
    for g in grads:  # a generator for any() would take longer than the rest  # noqa: SIM110
        if g is not None and torch._C._functorch.is_legacy_batchedtensor(g):
            return True
    return False


def backward_op(masked: bool = False):
    """The operator of a backward pass, or, where a compiler records it, its form without a list among the
    results, which some of them refuse; with the results of the operator."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return _recorded_masked_backward if masked else _recorded_backward
    return library.masked_backward if masked else library.backward


def _recorded_backward(grad_y, grad_hn, grad_cn, x, h0, c0, weights, *others):
    found = library.backward_unlisted(grad_y, grad_hn, grad_cn, x, h0, c0, weights, *others)
    return *found[:3], found[3 : 3 + len(weights)]


def _recorded_masked_backward(grad_y, grad_hn, grad_cn, grad_cells, x, h0, c0, weights, *others):
    found = library.masked_backward_unlisted(
        grad_y, grad_hn, grad_cn, grad_cells, x, h0, c0, weights, *others
    )
    return *found[:3], found[3 : 3 + len(weights)]


#: Stands among the saved tensors for an output that was edited; nobody else's has a version like it.
_EDITED = torch.empty(0).zero_()


def saved(ctx, name: str, output: int | None = None) -> tuple:
    """ctx.saved_tensors, with None for the layer's output where that was edited since.

    The output is the caller's, who may add to it or mask it in place, as after torch's own layers on the CPU;
    and backward reads every h_{t-1} in it. To save a copy would cost everybody a fifth more memory. So an
    edited output is computed anew from what else was saved: one more pass forward, for those who edit.

    Args:
        name: the layer's, for messages. output: the output's place, None where it is not saved.

    Raises:
        RuntimeError: an input, a state or a weight was changed in place, and cannot be had again.
    """
    try:
        tensors = ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        try:
            if output is None:
                raise
            # With hooks autograd asks for no version. They stay, for a second pass backward.
            ctx._raw_saved_tensors[output].register_hooks(lambda _: None, lambda _: _EDITED)
            tensors = ctx.saved_tensors
        except RuntimeError:
            raise RuntimeError(
                f"{name}: the input, the initial state or a weight was changed in place between forward and "
                "backward, which needs it as it was (the output alone may be edited); make a new tensor "
                f"instead, or clone() it first. torch's message: {error}"
            ) from error
    # Under hooks of the caller's (save_on_cpu, checkpoint) it was not asked for either, and hooks that return
    # what they were given return the edited output. A compiler keeps account of edits itself.
    if output is not None and not torch.compiler.is_compiling() and tensors[output]._version:
        return (*tensors[:output], None, *tensors[output + 1 :])
    return tensors


def unedited(*tensors: torch.Tensor | None) -> tuple:
    """What to save of tensors that the program has too. A graph of torch.compile's counts no versions for
    an autograd.Function: where the program in it edits one, backward would read what it has become.
    Inductor leaves out the copies that nobody needs."""
    if not torch.compiler.is_compiling():
        return tensors
    return tuple(None if t is None else t.clone() for t in tensors)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h0, c0, batch_sizes, cell, bias, save, tier, *weights):
        weights = list(weights)
        mode = save + tier + _cuda_mode(x) if x.is_cuda else save
        y, hn, cn, gates, cells = library.forward(x, h0, c0, weights, batch_sizes, cell, bias, mode)
        ctx.save_for_backward(*unedited(x, h0, c0), batch_sizes, *unedited(y), gates, cells, *weights)
        ctx.cell, ctx.bias, ctx.tier = cell, bias, tier
        ctx.set_materialize_grads(False)
        return y, hn, cn

    @staticmethod
    def backward(ctx, grad_y, grad_hn, grad_cn):
        x, h0, c0, batch_sizes, y, gates, cells, *weights = saved(ctx, ctx.cell, output=4)
        if grad_y is None and grad_hn is None and grad_cn is None:
            return (None,) * (8 + len(weights))
        wanted = ctx.needs_input_grad
        if differentiable(grad_y, grad_hn, grad_cn):
            grads = reference.gradients(
                (grad_y, grad_hn, grad_cn),
                x,
                h0,
                c0,
                weights,
                cell=ctx.cell,
                bias=ctx.bias,
                batch_sizes=batch_sizes,
                wanted=(*wanted[:3], *wanted[8:]),
            )
            return (*grads[:3], None, None, None, None, None, *grads[3:])
        need_weights = any(wanted[8:])
        mode = (
            _NEED_X * wanted[0] + _NEED_H0 * wanted[1] + _NEED_C0 * wanted[2] + _NEED_WEIGHTS * need_weights
        )
        kernels = ctx.tier + _cuda_mode(x) if x.is_cuda else 0
        if y is None:
            y = library.forward(x, h0, c0, weights, batch_sizes, ctx.cell, ctx.bias, kernels)[0]
        grad_x, grad_h0, grad_c0, grad_weights = backward_op()(
            grad_y,
            grad_hn,
            grad_cn,
            x,
            h0,
            c0,
            weights,
            batch_sizes,
            y,
            gates,
            cells,
            ctx.cell,
            ctx.bias,
            mode + kernels,
        )
        return (
            grad_x if wanted[0] else None,
            grad_h0 if wanted[1] else None,
            grad_c0 if wanted[2] else None,
            None,
            None,
            None,
            None,
            None,
            *(grad_weights if need_weights else [None] * len(weights)),
        )


def layer(x, h0, c0, weights, *, cell, bias, batch_sizes=None, save="gates", tier=0):
    """One recurrent layer, one or two directions, over a whole sequence.

    Args:
        x: (T, B, I), any strides, or with batch_sizes packed rows (N, I).
        h0, c0: (D, B, Hout) and, for an LSTM, (D, B, H).
        weights: for each direction w_ih, w_hh, [b_ih, b_hh], [w_hr].
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        batch_sizes: (T,) int64 on the CPU, as in a PackedSequence.
        save: what backward finds: "gates" or "recompute" (less memory, one more product a layer).
        tier: one of library.TIERS, which CUDA kernels; elsewhere 0.

    Returns:
        y (T, B, D*Hout) or (N, D*Hout); hn (D, B, Hout); cn (D, B, H) for an LSTM, else None.

    Raises:
        RuntimeError: from the operator, naming the argument, what was expected and what came.
    """
    if torch.compiler._is_exporting_flag:  # a program cannot hold the Function below
        mode = library.SAVE_MODES[save] + (tier + _cuda_mode(x) if x.is_cuda else 0)
        y, hn, cn = library.layer(x, h0, c0, weights, batch_sizes, cell, bias, mode)
    elif (
        torch.is_grad_enabled()
        and (
            x.requires_grad
            or h0.requires_grad
            or (c0 is not None and c0.requires_grad)
            or any(w.requires_grad for w in weights)
        )
        and not tracing()
    ):
        y, hn, cn = _Layer.apply(x, h0, c0, batch_sizes, cell, bias, library.SAVE_MODES[save], tier, *weights)
    else:
        mode = tier + _cuda_mode(x) if x.is_cuda else 0
        y, hn, cn, _, _ = library.forward(x, h0, c0, weights, batch_sizes, cell, bias, mode)
    return y, hn, cn if cell == "lstm" else None
