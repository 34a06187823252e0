"""Neural Turing machine: a recurrent controller that reads and writes a memory by attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from .._cells import RNN, WITH_CELL
from ..modules import GRUCell, LSTMCell
from . import _inputs

__all__ = ["NTMState", "NeuralTuringMachine"]

CONTROLLERS = ("lstm", "gru", "feedforward")


class NTMState(NamedTuple):
    """What a machine carries from step to step."""

    #: (h, c) of an LSTM, (h,) of a GRU, each (B, H); () of a feed-forward controller.
    controller: tuple[Tensor, ...]
    #: (B, N, W)
    memory: Tensor
    #: What the read heads found, (B, R*W).
    reads: Tensor
    #: Where the heads are, rows that add up to one: (B, R + V, N), read heads first.
    weightings: Tensor


class NeuralTuringMachine(nn.Module):
    r"""A neural Turing machine.

    A. Graves, G. Wayne, I. Danihelka: Neural Turing machines. 2014, arXiv:1410.5401. In every step the
    controller takes the input and what was read in the step before, :math:`h_t = f(x_t, r_{t-1}, h_{t-1})`.
    Each head's linear function of h_t gives a key k, strength beta, gate g, shifts s (a softmax) and a
    sharpness gamma, from which its weighting w_t over the N slots of the memory follows (section 3.3):

    .. math::
        w^c(i) &= \mathrm{softmax}_i(\beta \cos(k, M_{t-1}(i))) &\text{content} \\
        w^g &= g\, w^c + (1 - g)\, w_{t-1} &\text{interpolation} \\
        \tilde w(i) &= \textstyle\sum_j w^g(i - j)\, s(j) &\text{circular shift} \\
        w_t(i) &= \tilde w(i)^\gamma / \textstyle\sum_j \tilde w(j)^\gamma &\text{sharpening}

    Read heads read what the steps before have written, and then all write heads write, with an erase vector e
    and an add vector a each:

    .. math::
        r_t = \textstyle\sum_i w_t(i) M_{t-1}(i), \qquad
        M_t(i) = M_{t-1}(i) \textstyle\prod_v (1 - w_t^v(i)\, e_t^v) + \sum_v w_t^v(i)\, a_t^v

    The output is a linear function of h_t and r_t. Memory begins at 1e-6 everywhere (M. Collier, J. Beel:
    Implementing neural Turing machines, ICANN 2018, arXiv:1807.08518); its slots are alike then, and all
    heads begin at the first one.

    Args:
        input_size: I. output_size: O. hidden_size: H of the controller.
        memory_slots: N. memory_width: W.
        read_heads, write_heads: R and V.
        controller: "lstm", "gru" (fastrnn's cells) or "feedforward", one layer of tanh units.
        shift_range: farthest shift in a step, S; it takes 2S+1 weights.
        batch_first: input and output as (B, T, features).
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_size: int = 100,
        *,
        memory_slots: int = 128,
        memory_width: int = 20,
        read_heads: int = 1,
        write_heads: int = 1,
        controller: str = "lstm",
        shift_range: int = 1,
        batch_first: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        sizes = {
            "input_size": input_size,
            "output_size": output_size,
            "hidden_size": hidden_size,
            "memory_slots": memory_slots,
            "memory_width": memory_width,
            "read_heads": read_heads,
            "write_heads": write_heads,
        }
        for name, value in sizes.items():
            _inputs.size("NeuralTuringMachine", name, value)
        _checks.one_of("NeuralTuringMachine", "controller", controller, CONTROLLERS)
        if not isinstance(shift_range, int) or not 0 <= 2 * shift_range + 1 <= memory_slots:
            raise ValueError(
                f"NeuralTuringMachine: shift_range should be 0 to {(memory_slots - 1) // 2} for "
                f"{memory_slots} slots, got {shift_range!r}"
            )
        self.input_size, self.hidden_size, self.batch_first = input_size, hidden_size, batch_first
        self.memory_slots, self.memory_width = memory_slots, memory_width
        self.read_heads, self.write_heads = read_heads, write_heads
        self.controller_kind, self.shift_range = controller, shift_range

        make = {"lstm": LSTMCell, "gru": GRUCell, "feedforward": nn.Linear}[controller]
        options = {"device": device, "dtype": dtype}
        self.controller = make(input_size + read_heads * memory_width, hidden_size, **options)
        self._addressing = [memory_width, 1, 1, 2 * shift_range + 1, 1]
        self.heads = nn.Linear(hidden_size, (read_heads + write_heads) * sum(self._addressing), **options)
        self.writing = nn.Linear(hidden_size, write_heads * 2 * memory_width, **options)
        self.output = nn.Linear(hidden_size + read_heads * memory_width, output_size, **options)

    def initial_state(self, rows: int) -> NTMState:
        """The state before the first step, of the parameters' device and dtype."""
        new = self.output.weight.new_zeros
        states = {"lstm": 2, "gru": 1, "feedforward": 0}[self.controller_kind]
        weightings = new(rows, self.read_heads + self.write_heads, self.memory_slots)
        return NTMState(
            tuple(new(rows, self.hidden_size) for _ in range(states)),
            new(rows, self.memory_slots, self.memory_width) + 1e-6,
            new(rows, self.read_heads * self.memory_width),
            torch.cat([weightings[..., :1] + 1, weightings[..., 1:]], -1),
        )

    def forward(
        self,
        x: Tensor,
        state: NTMState | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        return_weightings: bool = False,
    ) -> tuple:
        """Run the machine.

        Args:
            x: (T, B, I), or (B, T, I) with ``batch_first``.
            state: of B rows; :meth:`initial_state` by default.
            lengths: (B,), steps of each row, 0 to T, as for :class:`fastrnn.LSTM`: outputs beyond are zero,
                and the state is that after a row's last step.
            return_weightings: return where the heads were as well.

        Returns:
            output (T, B, O), laid out like x, and the state after the last step; with ``return_weightings``
            also the weightings of every step, (T, B, R + V, N), or (B, T, ...).

        Raises:
            ValueError: sizes or lengths that do not fit, an empty batch.
            TypeError: lengths that are no integers.
        """
        first = ("B", "T") if self.batch_first else ("T", "B")
        _inputs.features("NeuralTuringMachine", "x", x, self.output.weight, *first, self.input_size)
        if self.batch_first:
            x = x.transpose(0, 1)
        mask = None
        if lengths is not None:
            lengths = _inputs.row_lengths("NeuralTuringMachine", lengths, x.size(1), x.size(0), least=0)
            mask = _inputs.steps_within(lengths, x.size(0), x.device)
            x = x.where(mask.unsqueeze(-1), 0)  # whatever the padding is, a gradient of zero times it is zero
        if state is None:
            state = self.initial_state(x.size(1))
        else:
            self._check(state, x.size(1))
        outputs, weightings = [], []
        for t in range(x.size(0)):
            y, after = self.step(x[t], state)
            if mask is None:
                state = after
            else:
                y, state = y * mask[t, :, None], _where(mask[t], after, state)
            outputs.append(y)
            weightings.append(state.weightings)
        axis = 1 if self.batch_first else 0
        y = torch.stack(outputs, axis)
        return (y, state, torch.stack(weightings, axis)) if return_weightings else (y, state)

    def step(self, x: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        """One step: x (B, I) to the output (B, O) and the next state."""
        x = torch.cat([x, state.reads], 1)
        if self.controller_kind in WITH_CELL:
            controller = self.controller(x, state.controller)
        elif self.controller_kind in RNN:
            controller = (self.controller(x, *state.controller),)
        else:
            controller = ()
        h = controller[0] if controller else self.controller(x).tanh()

        heads = self.heads(h).unflatten(1, (self.read_heads + self.write_heads, -1))
        w = address(state.memory, state.weightings, *heads.split(self._addressing, -1))
        memory, read_w, write_w = state.memory, w[:, : self.read_heads], w[:, self.read_heads :]
        reads = (read_w @ memory).flatten(1)
        erase, add = self.writing(h).unflatten(1, (self.write_heads, -1)).chunk(2, -1)
        erase = erase.sigmoid()
        for v in range(self.write_heads):
            memory = memory * (1 - write_w[:, v, :, None] * erase[:, v, None, :])
        memory = memory + write_w.mT @ add
        return self.output(torch.cat([h, reads], 1)), NTMState(controller, memory, reads, w)

    def _check(self, state: NTMState, rows: int) -> None:
        if not isinstance(state, NTMState):
            raise TypeError(
                f"NeuralTuringMachine: state should be an NTMState, got {_checks.kind(state)}; "
                "see initial_state()"
            )
        expected, got = (
            [list(t.shape) for t in (*s[1:], *s.controller)] for s in (self.initial_state(rows), state)
        )
        if got != expected:
            raise ValueError(
                "NeuralTuringMachine: expected a state with memory, reads, weightings and controller of "
                f"sizes {expected}, got {got}"
            )


def address(
    memory: Tensor,
    previous: Tensor,
    key: Tensor,
    strength: Tensor,
    gate: Tensor,
    shift: Tensor,
    sharpness: Tensor,
) -> Tensor:
    """The weightings (B, heads, N) that follow from the heads' raw outputs, (B, heads, ...) each."""
    # An empty memory has no direction: 1e-6 under the roots keeps the cosine and its gradient finite.
    key_norm = (key.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    slot_norm = (memory.square().sum(-1) + 1e-6).sqrt()
    cosine = key @ memory.mT / (key_norm * slot_norm[:, None])
    # Half types have no room for the small weights, and autocast mixes them with float32.
    wide = torch.promote_types(previous.dtype, torch.float32)
    content = (F.softplus(strength) * cosine).softmax(-1, dtype=wide)
    w = torch.lerp(previous.to(wide), content, gate.to(wide).sigmoid())
    shifts = shift.size(-1) // 2
    shift = shift.softmax(-1, dtype=wide)
    w = sum(w.roll(j, -1) * shift[..., j + shifts, None] for j in range(-shifts, shifts + 1))
    # w**gamma over its sum as a softmax: large gammas of small numbers, and zeros, make no 0/0.
    return ((1 + F.softplus(sharpness)) * (w + 1e-16).log()).softmax(-1, dtype=wide).to(previous.dtype)


def _where(alive: Tensor, new: NTMState, old: NTMState) -> NTMState:
    """The new state of the rows that are still running, the old one of the others."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(alive.view(-1, *[1] * (a.dim() - 1)), a, b)

    return NTMState(tuple(map(choose, new.controller, old.controller)), *map(choose, new[1:], old[1:]))
