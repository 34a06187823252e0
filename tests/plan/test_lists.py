"""The lists that stand once in C++ and once in Python say the same."""

from __future__ import annotations

import pytest

from fastrnn import _C, _checks, reference
from fastrnn._cells import NAMES, RNN, SCAN, WITH_CELL, card
from fastrnn._ops import library, mode


def test_cells() -> None:
    """Kernels and Python agree on the cells, in order: a gate count that differs reads other memory."""
    theirs = _C.lists()["cells"]
    ours = {
        name: {"gates": c.gates, "saved": c.saved, "has_cell": c.has_cell, "split": c.split}
        for name, c in RNN.items()
    }
    assert list(theirs.items()) == list(ours.items())


def test_mode() -> None:
    """A mode is one number for C++ and Python: what to save, a tier, TensorFloat-32."""
    theirs = _C.lists()
    assert theirs["tiers"] == mode.TIERS
    assert theirs["clusters"] == mode.CLUSTERS
    assert theirs["overlaps"] == mode.OVERLAPS
    assert theirs["tf32"] == mode.TF32
    assert theirs["save"] == {name or "nothing": number for name, number in mode.SAVE_MODES.items()}
    assert set(mode.NAMED_TIERS) == set(mode.TIERS) - {"auto"}
    # What reads a mode: the tier's bits hold every tier, and no other bit.
    every = [*mode.TIERS.values(), *mode.CLUSTERS.values(), *mode.OVERLAPS.values()]
    assert len(set(every)) == len(every)
    assert all(number & mode.TIER_MASK == number for number in every)
    others = [mode.TF32, *mode.SAVE_MODES.values(), *mode.NEEDS.values()]
    assert not any(number & mode.TIER_MASK for number in others)


def test_needs() -> None:
    """The gradients that backward is asked for have the same bits on both sides."""
    theirs = _C.lists()
    assert theirs["needs"] == mode.NEEDS
    assert theirs["scan_needs"] == mode.SCAN_NEEDS


def test_instruction_sets() -> None:
    """Both lists name the same instruction sets, best first; those that run here are of them, in order."""
    assert _C.lists()["isas"] == mode.CPU_ISAS
    available = library.available_cpu_isas()
    assert available == [name for name in mode.CPU_ISAS if name in available]


def test_cards_are_asked() -> None:
    """Who repeats a fact of the cells repeats the card's."""
    assert {name: c.gates for name, c in RNN.items()} == reference.GATES
    assert list(NAMES.values()) == list(RNN)
    assert {f"rnn_{n}" for n in _checks.NONLINEARITIES} == {n for n, c in RNN.items() if c.activation}
    assert all(card(name).family == "rnn" for name in RNN)
    assert all(card(name).family == "scan" for name in SCAN)
    assert {name for name in (*RNN, *SCAN) if card(name).has_cell} == WITH_CELL
    # A state that goes past the product is one that there is.
    assert all(c.carries is None or c.carries < c.states for c in (*RNN.values(), *SCAN.values()))
    with pytest.raises(KeyError):
        card("lstn")
