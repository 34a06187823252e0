"""What tests of torch.jit.script share: models around a layer, and the comparison of what is compiled."""

from __future__ import annotations

import io

import torch
from helpers import flat, randn
from sru_models import F64
from tolerances import TORCH_SLACK, assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

IN, H = 4, 6


class Model(nn.Module):
    """A layer inside a model, as torch scripts them: alone, torch.nn's layers have no forward()."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor):
        return self.rnn(x)


class LSTMStates(Model):
    def forward(self, x: Tensor, h: Tensor, c: Tensor):
        return self.rnn(x, (h, c))


class State(Model):
    def forward(self, x: Tensor, h: Tensor):
        return self.rnn(x, h)


class Packed(Model):
    def forward(self, x: Tensor, lengths: Tensor):
        packed = pack_padded_sequence(x, lengths, batch_first=self.rnn.batch_first, enforce_sorted=False)
        y, state = self.rnn(packed)
        return pad_packed_sequence(y)[0], state


def saved(scripted: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    stream = io.BytesIO()
    torch.jit.save(scripted, stream)
    stream.seek(0)
    return torch.jit.load(stream)


def same(module: nn.Module, *inputs: Tensor) -> torch.jit.ScriptModule:
    """Scripts the module; its results and every gradient are the eager ones, saved and loaded too, and calls
    with a gradient come twice. The module is what it was."""
    before = {k: v for k, v in vars(module).items() if k != "__overloads__"}
    modules = list(module.modules())
    scripted = torch.jit.script(module)
    assert list(module.modules()) == modules
    assert {k: v for k, v in vars(module).items() if k != "__overloads__"} == before
    assert [n for n, _ in scripted.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert scripted.state_dict().keys() == module.state_dict().keys()

    def gradients(called) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
        torch.manual_seed(3)  # for dropout
        found = flat(
            tuple(r if not isinstance(r, dict) else tuple(*r.values()) for r in as_tuple(called(*leaves)))
        )
        total = sum((t.double() * randn(*t.shape, dtype=F64)).sum() for t in found)
        wanted = [t for t in (*leaves, *called.parameters()) if t.requires_grad]
        grads = torch.autograd.grad(total, wanted, allow_unused=True)
        return [t.detach() for t in found] + [g for g in grads if g is not None]

    expected = gradients(module)
    for program in (scripted, scripted, saved(scripted)):
        found = gradients(program)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype
            assert_close(a, b, b.dtype, slack=TORCH_SLACK[b.dtype])
    return scripted


def as_tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)
