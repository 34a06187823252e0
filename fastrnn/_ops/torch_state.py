"""What this package asks torch about the moment of a call: who looks on (a compiler, a tracer, a transform, a
mode), whether gradients are wanted, and in which precision to compute.

Each question stands here once. Names without a body are torch's own functions, which cost a call no frame
more and which torch.compile knows by what they are.
"""

import torch
from torch.autograd import forward_ad

from .mode import TF32

#: Whether torch.compile, or torch.export, reads the code that asks.
compiling = torch.compiler.is_compiling

#: A true value while torch.jit.trace is at work. What it is to record of calls of the raw operators,
#: script.py says; only that the autograd.Functions are kept from it is left to their callers.
tracing = torch._C._get_tracing_state

#: Whether what is computed is recorded for a backward pass, of what requires gradients.
gradients = torch.is_grad_enabled

#: Whether one of torch.func's transforms is at work: half of what ``transformed`` asks.
functorch = torch._C._are_functorch_transforms_active

#: Whether autocast is on for any device.
any_autocast = torch._C._is_any_autocast_enabled

#: How many modes look on: TorchDispatchMode, TorchFunctionMode.
dispatch_modes = torch._C._len_torch_dispatch_stack
function_modes = torch._C._len_torch_function_stack


def exporting() -> bool:
    """Whether torch.export is at work. torch.compiler has a function that says the same, except that
    torch.compile of torch 2.11 takes it to be always true."""
    return torch.compiler._is_exporting_flag


def transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which look into an operation rather than call it."""
    return functorch() or forward_ad._current_level >= 0


def of_all_calls(t: torch.Tensor) -> torch.Tensor:
    """A tensor that torch.func's transforms have wrapped, as it is outside of them."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t


def recorded() -> bool:
    """Whether operators are written down as they are called, by a compiler or a mode."""
    return compiling() or dispatch_modes() > 0


def differentiable(*grads: torch.Tensor | None) -> bool:
    """Whether a backward pass must be made of torch's own operations: create_graph=True wants gradients that
    can be differentiated again, is_grads_batched=True (and jacobian(vectorize=True)) a batch of them at once.
    """
    if gradients():
        return True
    if compiling():
        return False
    for g in grads:  # a generator for any() would take longer than the rest  # noqa: SIM110
        if g is not None and torch._C._functorch.is_legacy_batchedtensor(g):
            return True
    return False


#: What autocast casts; float64 and complex pass through it unchanged.
AUTOCAST_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def autocasting(x: torch.Tensor) -> bool:
    """Whether autocast is on for the device of x."""
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """To which type it casts there."""
    return torch.get_autocast_dtype(x.device.type)


def rnn_tf32() -> bool:
    """Whether torch lets cuDNN's recurrent layers compute float32 in TensorFloat-32: what nn.LSTM asks.

    That is torch.backends.cudnn.rnn.fp32_precision, which torch.backends.cudnn.allow_tf32 sets too. A
    compiled graph keeps the answer from when it was traced.
    """
    return torch._C._get_fp32_precision_getter("cuda", "rnn") == "tf32"


# What torch.compiler.assume_constant_result sets, without importing the compiler.
rnn_tf32._dynamo_marked_constant = True


def cuda_mode(x: torch.Tensor) -> int:
    """What x's setting for TensorFloat-32 adds to an operator's mode."""
    return TF32 if x.dtype is torch.float32 and rnn_tf32() else 0
