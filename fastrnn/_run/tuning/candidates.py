"""Runs a candidate of tuning on a device: whether it is right, and how long it takes.

    python -m fastrnn._run.tuning.candidates DEVICE ANSWERS

is a child process of ``child``'s. It reads jobs from stdin, a JSON object a line, and writes an answer to
the file descriptor ANSWERS for each. What a kernel does to it, it does to nobody else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import reference
from ..._cells import RNN
from ..._ops.mode import CLUSTERS, NEEDS, OVERLAPS, SAVE_MODES, TF32, TIERS
from ..._plan.tuning import session
from ..._plan.tuning.kinds import Candidate, Kind
from ..._plan.tuning.session import Chosen, Times, Verdict
from ..._plan.tuning.stacks import Wave
from . import stacks

#: Steps of the second shape that a candidate has to be right at: what a race or a rounding leaves adds up.
LONG = 256
#: A candidate's error may be so many times the larger one of stepwise's and torch's own layer's, and beside
#: it that of a few roundings: all three are compared with float64.
SLACK = 3.0
ROUNDINGS = {"float64": 1e-11, "float32": 2e-5, "tf32": 4e-3, "bfloat16": 2e-2, "float16": 3e-3}
#: Seconds of timing for a kind, and rounds at least.
BUDGET_S, ROUNDS = 1.0, 7
_ALL = sum(NEEDS.values())


class Problem:
    """Random data of a kind. The numbers come from a generator of its own."""

    def __init__(self, kind: Kind, steps: int, device: str, seed: int = 0) -> None:
        self.kind, self.steps, self.device = kind, steps, device
        self.dtype = getattr(torch, kind.dtype)
        self._generator = torch.Generator().manual_seed(seed)
        T, B, D, H = steps, kind.B, kind.directions, kind.H
        self.batch_sizes = self.lengths = self.reset = None
        rows = (T, B)
        if kind.rows == "packed":
            lengths = sorted((max(1, T - (b * T) // (2 * B)) for b in range(B)), reverse=True)
            self.batch_sizes = torch.tensor([sum(n > t for n in lengths) for t in range(T)])
            rows = (int(self.batch_sizes.sum()),)
        elif kind.rows == "masked":
            self.lengths = torch.tensor([T - (b * T) // (2 * B) for b in range(B)])
            self.reset = (torch.rand(T, B, generator=self._generator) < 0.1).to(device)
        scale = H**-0.5
        states, out = (kind.layers * D, B, H), kind.P or H
        self.x, self.h0 = self._draw(*rows, kind.I), self._draw(*states[:2], out)
        self.c0 = self._draw(*states) if RNN[kind.cell].has_cell else None
        gates = RNN[kind.cell].gates * H
        features = [kind.I, *[D * H] * (kind.layers - 1)]
        projection = [(kind.P, H)] if kind.P else []
        shapes = [
            s for n in features for s in [(gates, n), (gates, out), (gates,), (gates,), *projection] * D
        ]
        self.weights = [self._draw(*shape) * scale for shape in shapes]
        self.grads = [self._draw(*rows, D * out), self._draw(*states[:2], out)]
        self.grads.append(None if self.c0 is None else self._draw(*states))

    def _draw(self, *shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=self._generator, dtype=torch.float64) * 2 - 1
        return drawn.to(self.dtype).to(self.device)

    @property
    def rows(self) -> tuple[Tensor | None, ...]:
        return self.batch_sizes, self.lengths, self.reset

    @property
    def names(self) -> list[str]:
        states = ["h", "c"] if self.c0 is not None else ["h"]
        count = self.kind.layers * self.kind.directions  # a stack has one direction
        a_direction = ["w_ih", "w_hh", "b_ih", "b_hh", *["w_hr"] * bool(self.kind.P)]
        own = [f"{w}[{d}]" for d in range(count) for w in a_direction]
        inputs = ["x", *(f"{s}_0" for s in states), *own]
        return ["y", *(f"{s}_n" for s in states), *(f"grad {name}" for name in inputs)]


class Executor:
    """Runs candidates with a namespace of operators on a device; torch's own layer and float64 are the
    judges.

    Args:
        ops: where rnn_forward and rnn_backward are. device: "cuda:0", or "cpu" for the emulator's.
    """

    def __init__(self, ops, device: str) -> None:
        self.ops, self.device = ops, device

    # One pass each, by a tier's name.

    def _mode(self, kind: Kind, tier: str) -> int:
        return (TIERS | CLUSTERS | OVERLAPS)[tier] + TF32 * (kind.precision == "tf32")

    def forward(self, p: Problem, tier: str, training: bool) -> tuple[Tensor, ...]:
        mode = self._mode(p.kind, tier) + SAVE_MODES["gates"] * training
        return self.ops.rnn_forward(p.x, p.h0, p.c0, p.weights, *p.rows, p.kind.cell, True, mode)

    def backward(self, p: Problem, saved: Sequence[Tensor], tier: str) -> list[Tensor]:
        y, _, _, gates, cells = saved
        gx, gh, gc, gw = self.ops.rnn_backward(
            *p.grads,
            None,
            p.x,
            p.h0,
            p.c0,
            p.weights,
            *p.rows,
            y,
            gates,
            cells,
            p.kind.cell,
            True,
            _ALL + self._mode(p.kind, tier),
        )
        return [gx, gh, *([gc] if p.c0 is not None else []), *gw]

    def passes(self, p: Problem, forward: str, backward: str) -> list[Tensor]:
        """Outputs and, in training, every gradient; of a stack with its layers one after the other."""
        if p.kind.layers > 1:
            return self.stacked(p, Wave(1, forward, backward if p.kind.training else ""))
        saved = self.forward(p, forward, p.kind.training)
        outputs = list(saved[: 2 + (p.c0 is not None)])
        return outputs + (self.backward(p, saved, backward) if p.kind.training else [])

    def stacked(self, p: Problem, wave: Wave) -> list[Tensor]:
        """Outputs and gradients of a stack, cut into pieces."""
        leaves = [None if t is None else t.clone() for t in (p.x, p.h0, p.c0, *p.weights)]
        for t in leaves if p.kind.training else ():
            if t is not None:
                t.requires_grad_()
        return self._with_gradients(p, self.outputs(p, wave, leaves), leaves)

    def outputs(self, p: Problem, wave: Wave, leaves: Sequence[Tensor | None]) -> list[Tensor]:
        layer = stacks.Layer(
            self.ops,
            p.kind.cell,
            [self._mode(p.kind, tier) for tier in (wave.forward, wave.backward or "stepwise")],
        )
        with torch.set_grad_enabled(p.kind.training):
            return [t for t in stacks.run(layer, wave.pieces, p.kind.layers, *leaves) if t is not None]

    def exact(self, p: Problem) -> list[Tensor]:
        """The same in float64 by plain torch."""
        leaves = [None if t is None else t.double().requires_grad_() for t in (p.x, p.h0, p.c0, *p.weights)]
        rows = {"batch_sizes": p.batch_sizes, "lengths": p.lengths, "reset": p.reset}
        with torch.enable_grad():
            if p.kind.layers > 1:
                layer = functools.partial(reference.layer, cell=p.kind.cell, bias=True)
                out = stacks.run(layer, 1, p.kind.layers, *leaves)
            else:
                out = reference.layer(*leaves[:3], leaves[3:], cell=p.kind.cell, bias=True, **rows)
        return self._with_gradients(p, [t for t in out if t is not None], leaves)

    def torchs(self, p: Problem) -> list[Tensor] | None:
        """The same by torch's own layer; None where it cannot."""
        if p.kind.rows == "masked":
            return None
        try:
            leaves = [
                None if t is None else t.clone().requires_grad_() for t in (p.x, p.h0, p.c0, *p.weights)
            ]
            with torch.enable_grad():
                out = self._torch_layer(p, leaves)
            return self._with_gradients(p, list(out), leaves)
        except RuntimeError:
            return None

    def _torch_layer(self, p: Problem, leaves: Sequence[Tensor], train: bool = True) -> tuple[Tensor, ...]:
        x, h, c, *weights = leaves
        hx = h if c is None else (h, c)
        options = (True, p.kind.layers, 0.0, train, p.kind.directions == 2)
        function = getattr(torch._VF, p.kind.cell)
        with self._precision(p.kind):
            if p.batch_sizes is not None:
                return function(x, p.batch_sizes, hx, weights, *options)
            return function(x, hx, weights, *options, False)

    def _with_gradients(
        self, p: Problem, outputs: list[Tensor], leaves: Sequence[Tensor | None]
    ) -> list[Tensor]:
        found = [t.detach() for t in outputs]
        if p.kind.training:
            grads = [g.to(o.dtype) for o, g in zip(outputs, p.grads, strict=False) if g is not None]
            with self._precision(p.kind):
                found += torch.autograd.grad(outputs, [t for t in leaves if t is not None], grads)
        return found

    @contextlib.contextmanager
    def _precision(self, kind: Kind):
        """torch's own layer with the precision of the kind."""
        if not self.device.startswith("cuda"):
            yield
            return
        before = torch.backends.cudnn.rnn.fp32_precision
        torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind.precision == "tf32" else "ieee"
        try:
            yield
        finally:
            torch.backends.cudnn.rnn.fp32_precision = before

    def verify(self, kind: Kind, candidate: Chosen) -> Verdict:
        """At the kind's own shape and at T = 256, twice with equal bits, beside stepwise and torch's own
        layer."""
        for steps in dict.fromkeys((kind.T, LONG)):
            verdict = self._verify(Problem(kind, steps, self.device, seed=steps), candidate)
            if not verdict.ok:
                return verdict
        return Verdict(True)

    def _passes_of(self, p: Problem, candidate: Chosen) -> list[Tensor]:
        if isinstance(candidate, Wave):
            return self.stacked(p, candidate)
        tiers = {"forward": "stepwise", "backward": "stepwise"} | {candidate.which: candidate.tier}
        return self.passes(p, **tiers)

    def _verify(self, p: Problem, candidate: Chosen) -> Verdict:
        at = f"T={p.steps}, B={p.kind.B}, H={p.kind.H}"
        got = self._passes_of(p, candidate)
        for name, t in zip(p.names, got, strict=False):
            if not torch.isfinite(t).all():
                return Verdict(False, "NaN", f"{name} has numbers that are not finite, at {at}")
        exact = self.exact(p)
        beside = [self.passes(p, "stepwise", "stepwise"), self.torchs(p)]
        for i, (name, t, right) in enumerate(zip(p.names, got, exact, strict=False)):
            scale = max(float(right.abs().max()) if right.numel() else 0.0, 1e-3)
            theirs = max(_error(other[i], right) for other in beside if other is not None)
            allowed = SLACK * theirs + ROUNDINGS[p.kind.precision] * scale
            found = _error(t, right)
            if not found <= allowed:
                return Verdict(
                    False,
                    "wrong numbers",
                    f"{name} is off by {found:.3g} at {at}; allowed {allowed:.3g}, "
                    f"stepwise and torch {theirs:.3g}",
                )
        again = self._passes_of(p, candidate)
        for name, a, b in zip(p.names, got, again, strict=False):
            if not torch.equal(a, b):
                return Verdict(False, "different bits", f"{name} of a second run, at {at}")
        return Verdict(True)

    def time(self, kind: Kind, chosen: Sequence[Chosen]) -> Times:
        """Medians of rounds in which everybody has a turn."""
        p = Problem(kind, kind.T, self.device)
        if kind.layers > 1:
            return self._time_stack(p, chosen)
        saved = self.forward(p, "stepwise", kind.training)
        turns: dict[object, Callable[[], object]] = {}
        for candidate in [*(Candidate("stepwise", which) for which in kind.passes), *chosen]:
            turns[candidate] = (
                (lambda tier=candidate.tier: self.forward(p, tier, kind.training))
                if candidate.which == "forward"
                else (lambda tier=candidate.tier: self.backward(p, saved, tier))
            )
        if self.torchs(p) is not None:
            turns["torch"] = self._turn_of_torch(p)
        us = self._medians(turns)
        steps = {which: us.pop(Candidate("stepwise", which)) for which in kind.passes}
        torch_us = us.pop("torch", None)
        return Times(us, steps, torch_us)

    def _time_stack(self, p: Problem, chosen: Sequence[Wave]) -> Times:
        turns: dict[object, Callable[[], object]] = {}
        for wave in chosen:
            turns[wave] = (
                (lambda wave=wave: self.stacked(p, wave))
                if p.kind.training
                else (lambda wave=wave: self.outputs(p, wave, [p.x, p.h0, p.c0, *p.weights]))
            )
        if self.torchs(p) is not None:
            turns["torch"] = self._turn_of_torch(p)
        us = self._medians(turns)
        torch_us = us.pop("torch", None)
        return Times(us, {}, torch_us)

    def _turn_of_torch(self, p: Problem) -> Callable[[], object]:
        # In one chunk of memory, as cuDNN wants them and nn.LSTM has them.
        flat = torch.cat([w.flatten() for w in p.weights])
        weights, start = [], 0
        for w in p.weights:
            weights.append(flat[start : start + w.numel()].view(w.shape))
            start += w.numel()
        leaves = [p.x, p.h0, p.c0, *weights]
        if not p.kind.training:
            return lambda: self._torch_layer(p, leaves, train=False)
        leaves = [None if t is None else t.detach().requires_grad_() for t in leaves]

        def both():
            with torch.enable_grad():
                out = self._torch_layer(p, leaves)
            return self._with_gradients(p, list(out), leaves)

        return both

    def _medians(self, turns: dict) -> dict:
        """Microseconds of each."""
        for turn in turns.values():
            for _ in range(3):
                turn()
        times: dict = {name: [] for name in turns}
        end = time.perf_counter() + BUDGET_S
        rounds = 0
        with torch.no_grad():
            while rounds < ROUNDS or time.perf_counter() < end:
                for name, turn in turns.items():
                    times[name].append(self._once(turn))
                rounds += 1
        return {name: statistics.median(found) * 1e6 for name, found in times.items()}

    def _once(self, turn: Callable[[], object]) -> float:
        """Seconds, by the device's clock; what it waits for the host within a turn is part of it."""
        if not self.device.startswith("cuda"):
            start = time.perf_counter()
            turn()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        turn()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3


def _error(t: Tensor, right: Tensor) -> float:
    return float((t.double() - right).abs().max()) if t.numel() else 0.0


def serve(executor, jobs, answers) -> None:
    """Answer every job until there are no more.

    A job: {"do": "verify" or "time", "kind": {...}, "candidates": [[tier, pass], ...]}, of a stack
    [[pieces, tier forward, tier backward], ...]; its answer what the executor said, or {"error": text}.
    """
    for line in jobs:
        job = json.loads(line)
        kind = Kind(**job["kind"])
        chosen = [session.candidate_of(kind)(*c) for c in job["candidates"]]
        try:
            if job["do"] == "verify":
                answer = executor.verify(kind, chosen[0])._asdict()
            else:
                times = executor.time(kind, chosen)
                answer = {
                    "candidates": [[*c, us] for c, us in times.candidates.items()],
                    "stepwise": dict(times.stepwise),
                    "torch": times.torch,
                }
        except Exception as error:  # whatever a kernel has led to
            text = str(error).strip() or "(no message)"
            answer = {"error": f"{type(error).__name__}: {text.splitlines()[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    device, descriptor = sys.argv[1:]
    torch.cuda.set_device(device)
    with os.fdopen(int(descriptor), "w") as answers:
        answers.write(json.dumps({"ready": torch.cuda.get_device_name(device)}) + "\n")
        answers.flush()
        serve(Executor(torch.ops.fastrnn, device), sys.stdin, answers)


if __name__ == "__main__":
    main()
