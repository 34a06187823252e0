"""How the rows of a batch lie and differ: packed, padded with lengths, begun anew; and whose states are kept.

What ``lengths``, ``reset``, ``done`` and ``return_all_states`` of the layers mean, their checks, and the
function that computes a layer with them. The body of the layers is in ``rnn``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._cells import RNN
from .._ops import torch_state


class Rows(NamedTuple):
    """What there is to say of a batch's rows; where nothing is, None stands in its place.

    batch_sizes: (T,) int64 on the CPU, of packed rows. sorted_indices: their order in what the caller has.
    lengths: (B,) int64 on the CPU, of padded ones. reset: (T, B) bool on the input's device.
    ended: (B,) bool on the input's device, rows whose sequence is over after their last step.
    keep_states: whether the states of every step are wanted.
    """

    batch_sizes: Tensor | None = None
    sorted_indices: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    ended: Tensor | None = None
    keep_states: bool = False

    def only_packed(self) -> bool:
        """Whether torch's own layers know such rows."""
        return self.lengths is None and self.reset is None and self.ended is None and not self.keep_states

    def options(self, cell: str) -> dict:
        """Of the functions that compute a layer."""
        return {
            "batch_sizes": self.batch_sizes,
            "lengths": self.lengths,
            "reset": self.reset,
            "keep_cells": self.keep_states and RNN[cell].has_cell,
        }

    def check_lengths(self, steps: int) -> None:
        """The values of the lengths, for the reference; the kernels look at them themselves, where they are
        given them."""
        if self.lengths is None or not self.lengths.numel():
            return
        values = torch_state.of_all_calls(self.lengths)  # vmap's rows: all of them at once
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > steps:
            raise RuntimeError(
                f"lengths: expected 0 to {steps} (the steps of x), got {low if low < 0 else high}"
            )

    def pads(self, mask_pad: Tensor | None, steps: int, device: torch.device) -> Tensor | None:
        """(L, B) bool, True for the steps that ``mask_pad`` or the lengths leave out; None for no step."""
        if self.lengths is None:
            return mask_pad
        if not torch_state.compiling() and not torch_state.tracing():
            self.check_lengths(steps)
        beyond = torch.arange(steps, device=device).unsqueeze(1) >= self.lengths.to(device)
        return beyond if mask_pad is None else beyond | mask_pad

    def last(self, state: Tensor | None) -> Tensor | None:
        """A last state (D, B, .), with zeros where the next call is to begin with them: in the forward
        direction of rows whose sequence is over."""
        if state is None or self.ended is None:
            return state
        over = self.ended.view(1, -1, 1)
        if state.size(0) == 2:
            over = torch.cat([over, torch.zeros_like(over)])
        return state.masked_fill(over, 0)


class Places(NamedTuple):
    """Of packed rows: the step and the row of each in the padded batch, (N,) int64, and both numbers."""

    step: Tensor
    row: Tensor
    steps: int
    rows: int
    lengths: Tensor

    @classmethod
    def of(cls, batch_sizes: Tensor, packed: Tensor, rows: int) -> Places:
        """Where the rows of ``packed`` belong; batch_sizes as of a PackedSequence, the first ``rows``."""
        steps, count = batch_sizes.size(0), packed.size(0)
        step = torch.repeat_interleave(torch.arange(steps), batch_sizes, output_size=count)
        row = torch.arange(count) - (batch_sizes.cumsum(0) - batch_sizes)[step]
        lengths = (batch_sizes.unsqueeze(1) > torch.arange(rows)).sum(0)
        return cls(step.to(packed.device), row.to(packed.device), steps, rows, lengths)

    def padded(self, packed: Tensor) -> Tensor:
        """(T, B, ...), zeros where a row has no step."""
        zeros = packed.new_zeros(self.steps, self.rows, *packed.shape[1:])
        return zeros.index_put((self.step, self.row), packed)

    def packed(self, padded: Tensor) -> Tensor:
        return padded[self.step, self.row]


def states(outputs: list[Tensor], cells: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """h and, if there are cells, c of every layer and step, (L, T, B, D*P) and (L, T, B, D*H), from each
    layer's output (T, B, D*P) and its cells (D, T*B, H)."""
    h, c = torch.stack(outputs), None
    if cells:
        c = torch.stack([s.unflatten(1, outputs[0].shape[:2]).permute(1, 2, 0, 3).flatten(2) for s in cells])
        c = c.to(h.dtype)
    return h, c


def asked(
    name: str, input: object, lengths, reset, done, keep_states: bool, batch_first: bool
) -> Rows | None:
    """``read`` where there is something to read; None where there is not."""
    if not isinstance(keep_states, bool):
        got = _checks.kind(keep_states)
        raise TypeError(f"{name}: return_all_states should be of type bool, got {got}")
    if lengths is None and reset is None and done is None and not keep_states:
        return None
    if isinstance(input, PackedSequence):
        raise ValueError(
            f"{name}: lengths, reset, done and return_all_states belong to padded input, got a "
            "PackedSequence; pass what it was packed from, and its lengths"
        )
    return read(name, input, lengths, reset, done, keep_states, batch_first)


def read(name: str, input: object, lengths, reset, done, keep_states: bool, batch_first: bool) -> Rows:
    """Check the arguments against the input. lengths: integers in a tensor on any device, or in a list."""
    x = _checks.tensor(name, "input", input)
    if x.dim() not in (2, 3):  # the layers say what is wrong with it
        return Rows(keep_states=keep_states)
    batched = x.dim() == 3
    steps, rows = (x.shape[1], x.shape[0]) if batched and batch_first else (x.shape[0], x.shape[1])
    if not batched:
        rows = 1
    if lengths is not None:
        lengths = read_lengths(name, lengths, rows, batched)
    if reset is not None:
        reset = _mask(name, "reset", reset, x, steps, rows, batched, batch_first)
    ended = None
    if done is not None and steps > 0:
        done = _mask(name, "done", done, x, steps, rows, batched, batch_first)
        begins = torch.cat([torch.zeros_like(done[:1]), done[:-1]])
        reset, ended = (begins if reset is None else reset | begins), _at_the_end(done, lengths)
    return Rows(lengths=lengths, reset=reset, ended=ended, keep_states=keep_states)


def _at_the_end(done: Tensor, lengths: Tensor | None) -> Tensor:
    """done (T, B) at each row's last step; False for rows without one."""
    if lengths is None:
        return done[-1]
    lengths = lengths.to(done.device)
    last = (lengths - 1).clamp(0, done.size(0) - 1)  # the kernels will say what is wrong with others
    return done.gather(0, last.unsqueeze(0)).squeeze(0) & (lengths > 0)


def read_lengths(name: str, lengths: object, rows: int, batched: bool) -> Tensor:
    """Whatever gives a batch's rows their lengths, as (B,) int64 on the CPU; their values are left to the
    kernels."""
    if isinstance(lengths, (int, Sequence)) and not isinstance(lengths, (bool, str)):
        values = [lengths] if isinstance(lengths, int) else lengths
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            raise TypeError(f"{name}: lengths should be integers, got {lengths!r}")
        try:
            lengths = torch.tensor(values, dtype=torch.int64)
        except (ValueError, OverflowError, RuntimeError):  # torch's answer to 2**64 differs by version
            raise ValueError(f"{name}: lengths should be 64-bit integers, got {lengths!r}") from None
    elif not isinstance(lengths, Tensor):
        raise TypeError(
            f"{name}: lengths should be a Tensor or a list of integers, got {_checks.kind(lengths)}"
        )
    if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
        raise TypeError(f"{name}: lengths should be integers, got {lengths.dtype}")
    if lengths.is_meta or lengths.layout != torch.strided:
        raise RuntimeError(
            f"{name}: lengths should be a dense Tensor with values, got {lengths.layout} on {lengths.device}"
        )
    if not batched and lengths.dim() == 0:
        lengths = lengths.unsqueeze(0)
    if lengths.shape != (rows,):
        raise ValueError(
            f"{name}: lengths should have one number for each of the {rows} rows of the batch, "
            f"got size {list(lengths.shape)}"
        )
    return lengths.to(device="cpu", dtype=torch.int64)


def _mask(
    name: str, argument: str, mask: object, x: Tensor, steps: int, rows: int, batched: bool, batch_first: bool
) -> Tensor:
    """reset or done as (T, B) bool."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: {argument} should be a Tensor, got {_checks.kind(mask)}")
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"{name}: {argument} should be a mask of bool or integers, got {mask.dtype}")
    expected = (steps,) if not batched else (rows, steps) if batch_first else (steps, rows)
    if mask.shape != expected:
        raise ValueError(f"{name}: {argument} should have size {list(expected)}, got {list(mask.shape)}")
    if mask.device != x.device:
        raise RuntimeError(
            f"{name}: {argument} should be on the input's device, {x.device}, and is on {mask.device}"
        )
    if mask.layout != torch.strided:
        raise RuntimeError(f"{name}: {argument} should be a dense Tensor, got {mask.layout}")
    mask = mask if mask.dtype == torch.bool else mask != 0
    if not batched:
        return mask.unsqueeze(1)
    return mask.transpose(0, 1) if batch_first else mask
