"""Which tier's kernels a call really ran, by the library's own count: a tier that another has stood in for is
not verified by what that one computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def counts(ops, which: str | None = None) -> set[str]:
    """The tiers that have run, clusters by their size ("cluster_8"), of one pass ("forward") or both."""
    lines = [line.split("\t") for line in ops.cuda_ran().splitlines()]
    ran = {tier for tier, one, number in lines if int(number) and which in (None, one)}
    return {tier for tier in ran if tier != "cluster"}


@contextmanager
def only(ops, tier: str, which: str | None = None) -> Iterator[None]:
    """The block's calls run this tier alone, "cluster" at some size.

    Raises:
        AssertionError: something else ran, or nothing.
    """
    ops.cuda_clear_ran()
    yield
    ran = counts(ops, which)
    good = {t if tier != "cluster" or not t.startswith("cluster_") else "cluster" for t in ran}
    assert good == {tier}, f"{tier} was asked for, and what ran is {', '.join(sorted(ran)) or 'nothing'}"
