"""What fastrnn.explain returns, and how it reads as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class LayerPlan:
    """What will run one layer, both of its directions.

    Attributes:
        layer: its number. T, B, I, H, P: steps, rows, inputs, hidden and projected units (P 0 without).
        kernel: name of the kernel. Where none covers the case, "cudnn" is torch's own layer, "reference"
            plain torch, and "none" a call that raises; the reason says what.
        reason: why this one, and why the work is divided as it is.
        plan: everything else that the planner says: how the work is divided, operations and bytes.
        floor_s: seconds that this machine needs at least; None unless measured.
        bound: what sets that floor: "arithmetic" or "reading the weights".
        error: of weights of low precision, by how much they differ from the float32 ones, as root mean
            squares; None of others, and where it is not known.
    """

    layer: int
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    P: int
    directions: int
    kernel: str
    reason: str
    plan: dict = field(default_factory=dict)
    floor_s: float | None = None
    bound: str | None = None
    error: float | None = None

    def __str__(self) -> str:
        projected = f", P={self.P}" if self.P else ""
        way = ", bidirectional" if self.directions == 2 else ""
        lines = [f"layer {self.layer}: I={self.I}, H={self.H}{projected}{way}"]
        lines += [f"  kernel   {self.kernel}", f"  why      {self.reason}"]
        rest = dict(self.plan)
        lines += _cuda_lines(rest)
        if rest:
            flops, weights = _si(rest.pop("flops"), "FLOP"), _si(rest.pop("weight_bytes"), "B")
            a_step = _si(rest.pop("step_weight_bytes"), "B")
            saved = rest.pop("saved_bytes_per_step")
            recomputed = _si(rest.pop("saved_bytes_per_step_recompute"), "B")
            read = "read once" if a_step.startswith("0 ") else f"of which {a_step} read every step"
            lines.append(f"  cost     {flops}; weights {weights}, {read}")
            if saved:
                lines.append(f"  saved    {_si(saved, 'B')} a step for backward, {recomputed} if recomputed")
        if self.floor_s is not None:
            lines.append(f"  at best  {_si(self.floor_s, 's')} on this machine, bound by {self.bound}")
        if self.error is not None:
            lines.append(
                f"  error    the weights differ from float32's by {self.error:.2%} (root mean square)"
            )
        divided = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in rest.items())
        if divided:
            lines.append(f"  plan     {divided}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; print it, or read the fields.

    Attributes:
        subject: what was asked about. device: "cpu", "cuda" and so on. dtype: "float32" and so on.
        instruction_set: the one in use, on the CPU. threads: how many the work is divided over.
        training: whether gradients are counted. layers: a LayerPlan each, first layer first.
        notes: what had to be assumed, and what else is worth knowing.
    """

    subject: str
    device: str
    dtype: str
    instruction_set: str | None
    threads: int
    training: bool
    layers: list[LayerPlan]
    notes: list[str] = field(default_factory=list)

    @property
    def kernels(self) -> list[str]:
        """The kernel of each layer."""
        return [layer.kernel for layer in self.layers]

    @property
    def flops(self) -> float:
        """Multiplications and additions of all layers; 0 where no kernel runs."""
        return sum(layer.plan.get("flops", 0.0) for layer in self.layers)

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        first = self.layers[0]
        where = self.device
        if self.device == "cpu":
            where += f" ({self.instruction_set}, {self.threads} thread{'s' if self.threads > 1 else ''})"
        work = "training" if self.training else "inference"
        head = f"{self.subject}: T={first.T}, B={first.B}, {self.dtype}, {work} on {where}"
        return "\n".join([head, *map(str, self.layers), *(f"note: {note}" for note in self.notes)])


def _si(value: float, unit: str) -> str:
    """1536 and "B" as "1.54 kB"; small times as "12.3 µs"."""
    for factor, prefix in (
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
        (1.0, ""),
        (1e-3, "m"),
        (1e-6, "µ"),
    ):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value * 1e9:.3g} n{unit}" if value else f"0 {unit}"


def _plain(value) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


#: What a plan's source of its time means, see StepSource in csrc/plan/cuda.h.
_SOURCES = {
    "model": "estimate",
    "scaled": "scaled from measurements of other shapes or on another GPU",
    "interpolated": "between measurements",
    "measured": "measured",
}


def _cuda_lines(plan: dict) -> list[str]:
    """What a plan for a GPU says of its passes; taken out of it."""
    lines = []
    backward = plan.pop("backward", None)
    for title, one in (("step", plan), ("backward", backward)):
        if one is None or "possible" not in one:
            continue
        possible, us = one.pop("possible"), one.pop("step_us", None)
        if one is backward:
            lines.append(f"  {title:8s} {one['kernel']}: {one['reason']}")
        if not possible:
            lines.append("           cannot run: an error")
        else:
            source, model_us = one.pop("source"), one.pop("model_us")
            how = (
                _SOURCES[source]
                if source == "model"
                else f"{_SOURCES[source]}; the model says {model_us:.2f}"
            )
            lines.append(f"  {'step':8s} about {us:.2f} µs in {one.pop('precision')} ({how})")
    return lines
