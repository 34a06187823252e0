"""Reading a run's results, as results.json holds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from .cases import Case

#: The lists of a run that grow event by event, by the event's name.
_OWN = ("limits", "scaling", "overhead", "scan", "kernels", "crowd", "dropped")
_LISTS = {"result": "results", **{n: n for n in _OWN}}


def from_lines(path: Path) -> dict:
    """A run of what `--lines` has written, whole or as far as it came, without what follows from its results
    (run.with_targets()); of several the last. Lines of others are passed over, but for the latencies of
    tests/gpu/latency.cu in those of gpu-check: "latency".

    Raises:
        ValueError: a line other than the last is no JSON.
    """
    out: dict = {}
    for event in _events(path):
        kind = event.pop("event", None)
        if kind == "run":
            out = event | {"seconds": 0.0} | {k: v for k, v in out.items() if k == "latency"}
        elif kind in _LISTS and "results" in out:
            out.setdefault(_LISTS[kind], []).append(event)
        elif kind == "done" and "results" in out:
            out |= event
        elif kind == "left" and event.get("step") == "latency":
            out["latency"] = event["left"]
    return out


def writer(path: Path | None) -> Callable[[dict], None]:
    """Appends each event to a file, at once and in one piece: others may write there too."""

    def write(event: dict) -> None:
        if path is not None:
            with path.open("ab", buffering=0) as file:
                file.write((json.dumps(event) + "\n").encode())

    return write


def _events(path: Path) -> Iterable[dict]:
    texts = path.read_text().splitlines()
    for number, text in enumerate(texts, 1):
        try:
            yield json.loads(text)
        except ValueError:
            if number < len(texts):  # the last may be half written
                raise ValueError(f"{path}, line {number}: expected JSON, got {text[:60]!r}") from None


def case_of(result: dict) -> Case:
    return Case(**result["case"])


def group_results(run: dict, threads: int, sweep: bool = False) -> dict[str, list[dict]]:
    """Results on one number of threads by group, in the order they ran."""
    groups: dict[str, list[dict]] = {}
    for result in run["results"]:
        case = case_of(result)
        if result["threads"] == threads and case.sweep == sweep:
            groups.setdefault(case.group, []).append(result)
    return groups


def share_of_limit(result: dict, key: str = "fastrnn") -> float | None:
    """The floor's share of a contender's time, 1 at the machine's limit."""
    times = result["contenders"].get(key)
    return result["floor"]["floor_s"] / times["median_s"] if times else None
