"""A child of tuning over the emulator, with a fault of the caller's choice: python tuning_child.py FAULT
DESCRIPTOR.

What a GPU's kernel may do to its process, or to numbers, is done here to the emulated ones of the tier that
is named, as "hang:one_cta"; "" for none.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from emu.build import NAMESPACE, library

from fastrnn._ops.mode import CLUSTERS, OVERLAPS, TIER_MASK, TIERS
from fastrnn._run.tuning import candidates

candidates.LONG, candidates.BUDGET_S, candidates.ROUNDS = 16, 0.0, 3


class Faulty:
    """The emulator's operators, of which one tier has a fault."""

    def __init__(self, ops, fault: str) -> None:
        self._ops, (self.fault, _, self.tier) = ops, fault.partition(":")
        self._calls = 0

    def _harmed(self, results, mode: int):
        if not self.fault or mode & TIER_MASK != (TIERS | CLUSTERS | OVERLAPS)[self.tier]:
            return results
        self._calls += 1
        first, *rest = results
        if self.fault == "hang":
            time.sleep(600)
        if self.fault == "crash":
            ctypes.string_at(0)
        if self.fault == "exit":
            os._exit(3)
        if self.fault == "error":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.fault == "slow":
            time.sleep(0.05)
        if self.fault == "wrong":
            first = first + 0.25
        if self.fault == "nan":
            first = first.clone()
            first.view(-1)[-1] = torch.nan
        # In no order that comes again: a pass may be several calls.
        if self.fault == "bits" and self._calls.bit_count() % 2:
            first = torch.nextafter(first, torch.full_like(first, 9.0))
        return (first, *rest)

    def rnn_forward(self, *arguments):
        return self._harmed(self._ops.rnn_forward(*arguments), arguments[-1])

    def rnn_backward(self, *arguments):
        return self._harmed(self._ops.rnn_backward(*arguments), arguments[-1])


def executor(fault: str = "") -> candidates.Executor:
    torch.ops.load_library(str(library()))
    ops = getattr(torch.ops, NAMESPACE)
    ops.device(90, 132, 227 << 10)
    return candidates.Executor(Faulty(ops, fault), "cpu")


def main() -> None:
    fault, descriptor = sys.argv[1:]
    if fault == "no start":
        raise SystemExit(7)
    torch.set_num_threads(1)
    with os.fdopen(int(descriptor), "w") as answers:
        answers.write('{"ready": true}\n')
        answers.flush()
        candidates.serve(executor(fault), sys.stdin, answers)


if __name__ == "__main__":
    main()
