"""Reading a run's results, as results.json holds them."""

from __future__ import annotations

from .cases import Case


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
