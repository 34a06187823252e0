"""What whole models gain: each architecture of fastrnn.models with fastrnn's layers and with torch.nn's.

An example of examples/ gives model, loss and batch. Its twin, made from the same seed, has torch.nn's layers
in place of fastrnn's (``fastrnn.revert``). Loss and gradients must agree; then the forward pass and whole
training steps are timed in turns.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastrnn.compat._convert import revert
from fastrnn.proof import machine
from fastrnn.proof.timing import Contender, interleave

from . import targets
from .contenders.registry import versions
from .report import tables
from .report import write as write_report
from .report.document import Bullets, Document, Heading, Table, Text

if TYPE_CHECKING:
    from _demo import Demo

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
#: Largest relative distance of the two losses, and of the two gradients as vectors: float32, other orders of
#: sums.
AGREEMENT = 1e-3
WORK = ("forward", "training step")
METHOD = (
    "The same model from the same seed, once with fastrnn's layers inside and once with torch.nn's (packed "
    "sequences where rows differ in length), on the same batch of its example. Forward: the loss, "
    "without gradients. Training step: loss, backward, clipping of the gradients, Adam. Medians of "
    "interleaved rounds; loss and gradients of the two were compared before."
)


def examples() -> ModuleType:
    """examples/_demo.py. Examples find each other as programs do, by the folder that they lie in."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module("_demo")


class Unable(Exception):
    """A model that cannot be timed against torch.nn's layers, and why."""


def accept_lengths(layer: nn.RNNBase) -> None:
    """Let a layer of torch.nn take fastrnn's ``lengths`` the way torch.nn's users write it: by packing."""
    plain = layer.forward

    def forward(input: Tensor, hx=None, *, lengths=None):
        if lengths is None:
            return plain(input, hx)
        lengths = torch.as_tensor(lengths).cpu()
        first, steps = layer.batch_first, input.size(1 if layer.batch_first else 0)
        packed = pack_padded_sequence(input, lengths, batch_first=first, enforce_sorted=False)
        output, state = plain(packed, hx)
        return pad_packed_sequence(output, batch_first=first, total_length=steps)[0], state

    layer.forward = forward


def swap(model: nn.Module) -> int:
    """Put torch.nn's layers and cells in the places of fastrnn's; how many there were."""
    kinds = (nn.RNNBase, nn.RNNCellBase)
    before = {m: type(m) for m in model.modules() if isinstance(m, kinds)}
    revert(model)
    changed = [m for m, kind in before.items() if type(m) is not kind]
    for layer in changed:
        if isinstance(layer, nn.RNNBase):
            accept_lengths(layer)
    return len(changed)


def seeded(call: Callable[[], Tensor]) -> Tensor:
    """A call with the same random numbers every time, should the loss draw some."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return call()


def contender(key: str, demo: Demo, batch: tuple[Tensor, ...], work: str) -> Contender:
    """One model's forward pass or training step."""
    label = {"fastrnn": "fastrnn", "torch": "torch.nn"}[key]
    model = demo.model
    if work == "forward":

        @torch.no_grad()  # a state carried on must serve a training step later
        def forward() -> Tensor:
            return demo.loss(*batch)

        return Contender(key, label, forward, enter=model.eval)
    # A rate of zero: every round does the same work on the same weights.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        demo.loss(*batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), demo.clip)
        optimizer.step()

    return Contender(key, label, step, enter=model.train)


def difference(ours: Demo, theirs: Demo, batch: tuple[Tensor, ...]) -> float:
    """The larger of the relative distances of the two losses and of the two gradients."""

    def results(demo: Demo) -> tuple[Tensor, Tensor]:
        # Not in training mode: padded and packed rows draw different dropout masks.
        demo.model.eval().zero_grad()
        loss = seeded(lambda: demo.loss(*batch))
        loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in demo.model.parameters()]
        return loss.detach().view(1), torch.cat([g.flatten() for g in gradients])

    pairs = zip(results(ours), results(theirs), strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs)


def time_demo(name: str, threads: int, **timing) -> dict:
    """One example: {"demo", "title", "threads", "layers", "difference", "work": {work: {key: times}}},
    or in their place "skipped", why it has none.

    timing: budget_s, min_rounds and hurry of interleave(), for each kind of work.
    """
    kind = examples().load(name)
    result = {"demo": name, "title": kind.title, "threads": threads}
    ours, theirs = kind(seed=0), kind(seed=0)
    batch = ours.batch()
    try:
        result["layers"] = swap(theirs.model)
        if not result["layers"]:
            raise Unable("no recurrent layers of torch.nn's kinds")
        apart = difference(ours, theirs, batch)
        if not apart <= AGREEMENT:
            raise Unable(f"FAILED: loss or gradients differ by {apart:.1e}")
        result["difference"] = apart
        result["work"] = {}
        for work in WORK:
            pair = [contender("fastrnn", ours, batch, work), contender("torch", theirs, batch, work)]
            timings = interleave(pair, settle=threads > 1, **timing)
            result["work"][work] = {key: t.to_dict() for key, t in timings.items()}
    except Unable as reason:
        result["skipped"] = str(reason)
    except Exception as error:  # a failure is a line of the report, not the end of the run
        result["skipped"] = f"FAILED: {type(error).__name__}: {error}".splitlines()[0]
    return result


def run(
    names: list[str],
    threads: list[int],
    *,
    budget_s: float,
    min_rounds: int,
    advance: Callable[[str, int], None] = lambda title, steps: None,
) -> dict:
    """Time examples on each number of threads, in this process; torch's number is put back."""
    before, started, results = torch.get_num_threads(), time.perf_counter(), []
    facts = {
        "preset": "models",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "load": machine.load(),
        "versions": versions(),
    }
    each = budget_s / (len(names) * len(WORK))
    try:
        for n in threads:
            torch.set_num_threads(n)
            for name in names:
                advance(f"{name}, threads={n}", 0)
                results.append(time_demo(name, n, budget_s=each, min_rounds=min_rounds, hurry=True))
                advance("", 1)
    finally:
        torch.set_num_threads(before)
    return {**facts, "results": results, "seconds": round(time.perf_counter() - started, 1)}


def ratio(result: dict, work: str) -> float:
    """How many times faster than with torch.nn's layers."""
    times = result["work"][work]
    return times["torch"]["median_s"] / times["fastrnn"]["median_s"]


def table(results: list[dict]) -> Table:
    """Milliseconds and ratios of one number of threads, an example a row."""
    columns = ["model", "layers"]
    for work in WORK:
        columns += [f"{work}, fastrnn ms", "torch.nn ms", "faster"]
    rows = []
    for r in results:
        row = [r["demo"], str(r.get("layers", "–"))]
        for work in WORK:
            if "skipped" in r:
                row += ["–"] * 3
                continue
            for key in ("fastrnn", "torch"):
                times = r["work"][work][key]
                row.append(f"{tables.milliseconds(times['median_s'])} ±{tables.spread(times):.0%}")
            row.append(f"**{ratio(r, work):.2f}**")
        rows.append(row)
    return Table(columns, rows)


def by_threads(run: dict) -> dict[str, list[dict]]:
    """The results under "1 thread", "2 threads"."""
    groups: dict[str, list[dict]] = {}
    for result in run["results"]:
        groups.setdefault(targets.plural(result["threads"], "thread"), []).append(result)
    return groups


def reasons(results: list[dict]) -> list[str]:
    """A line for each example without times."""
    return [f"{r['demo']}: {r['skipped']}" for r in results if "skipped" in r]


def write(run: dict, folder: Path) -> Path:
    """results.json and report.md into a folder; the report's path."""
    document = Document("fastrnn.models: fastrnn's layers against torch.nn's")
    document.add(Bullets(write_report.machine_lines(run)), Text(METHOD))
    for title, results in by_threads(run).items():
        document.add(Heading(title), table(results))
        if left_out := reasons(results):
            document.add(Bullets(left_out))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(run, indent=1) + "\n")
    written = folder / "report.md"
    written.write_text(document.to_markdown())
    return written
