"""A device that no kernel of fastrnn's knows, for tests: "toy", whose tensors are in the CPU's memory.

torch takes it for an accelerator like Intel's or Apple's: its recurrent layers call a fused step there, which
this device has for every dtype but float16, and autocast casts matrix products. Once in a process.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class _Module(backend_registration._DummyBackendModule):
    """torch.toy: what torch.autocast asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("toy", backend_module=_Module())
aten = torch.ops.aten


class ToyTensor(Tensor):
    """A tensor on the device; ``inner`` has the numbers."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> ToyTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="toy:0",
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(_inside, args), tree_map(_inside, kwargs or {})
        return tree_map(_outside, _KERNELS.get(func, func)(*args, **kwargs))


class Factories(TorchDispatchMode):
    """While it is entered, torch makes new tensors on the device too, torch.zeros(device="toy") and so on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is None or device.type != "toy":
            return func(*args, **kwargs)
        return tree_map(_outside, func(*tree_map(_inside, args), **tree_map(_inside, kwargs)))


def _inside(value):
    if isinstance(value, ToyTensor):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "toy" else value


def _outside(value):
    return ToyTensor(value) if isinstance(value, Tensor) else value


def to_toy(value):
    """A tensor, the states of an LSTM, or a module (in place) on the device; gradients begin there."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(ToyTensor(p.detach().clone())))
        return value
    return tree_map(lambda t: ToyTensor(t.detach().clone()), value)


def to_cpu(value):
    return tree_map(lambda t: t.inner if isinstance(t, ToyTensor) else t, value)


def _no_float16(t: Tensor) -> None:
    if t.dtype == torch.float16:
        raise RuntimeError("the toy has no fused step in float16")


def _lstm_step(x_gates, h_gates, c, b_ih=None, b_hh=None):
    _no_float16(x_gates)
    gates = x_gates + h_gates + (0 if b_ih is None else b_ih + b_hh)
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    next_c = f * c + i * g
    return o * next_c.tanh(), next_c, torch.cat([i, f, g, o], 1)


def _lstm_step_backward(grad_h, grad_c, c, next_c, workspace, has_bias):
    i, f, g, o = workspace.chunk(4, 1)
    th = next_c.tanh()
    dh = torch.zeros_like(th) if grad_h is None else grad_h
    dc = dh * o * (1 - th * th) + (0 if grad_c is None else grad_c)
    parts = [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * th * o * (1 - o)]
    gates = torch.cat(parts, 1)
    return gates, dc * f, gates.sum(0) if has_bias else None


def _gru_step(x_gates, h_gates, h, b_ih=None, b_hh=None):
    _no_float16(x_gates)
    if b_ih is not None:
        x_gates, h_gates = x_gates + b_ih, h_gates + b_hh
    (xr, xz, xn), (hr, hz, hn) = x_gates.chunk(3, 1), h_gates.chunk(3, 1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = (xn + r * hn).tanh()
    return n + z * (h - n), torch.cat([r, z, n, h, hn], 1)


def _gru_step_backward(grad, workspace, has_bias):
    r, z, n, h, hn = workspace.chunk(5, 1)
    dn = grad * (1 - z) * (1 - n * n)
    dr, dz = dn * hn * r * (1 - r), grad * (h - n) * z * (1 - z)
    x_gates, h_gates = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    biases = (x_gates.sum(0), h_gates.sum(0)) if has_bias else (None, None)
    return x_gates, h_gates, grad * z, *biases


_KERNELS = {
    aten._thnn_fused_lstm_cell.default: _lstm_step,
    aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_step_backward,
    aten._thnn_fused_gru_cell.default: _gru_step,
    aten._thnn_fused_gru_cell_backward.default: _gru_step_backward,
}


def _autocast(op):
    """What autocast does to a product of matrices."""

    def call(*args):
        to, key = torch.get_autocast_dtype("toy"), torch._C.DispatchKey.AutocastPrivateUse1
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op(*(a.to(to) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args))

    return call


_everything, _products = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for _name in ("linear", "mm", "addmm", "matmul"):
    _products.impl(_name, _autocast(getattr(aten, _name).default), "AutocastPrivateUse1")
