"""The list of cells, and what each is made of; the other copy is C++'s (csrc/cells/list.h).

Two families: **rnn**, whose recurrence has a product, and **scan**, whose has none. Whoever asks "is it an
LSTM?" mostly means one of the facts on its card.
"""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """What a cell is made of.

    Attributes:
        name: as the operators call it. mode: as torch.nn calls it, None where torch has no such layer.
        family: "rnn" or "scan".
        gates: blocks of H rows in the weights: pre-activations a unit.
        saved: values a unit and step that training keeps for backward, without the cell state.
        has_cell: whether there is a second state c beside h.
        split: whether the last gate's recurrent part is kept apart from the input's.
        projects: whether h may be projected.
        activation: of the cells that have one alone: "tanh" or "relu".
    """

    name: str
    mode: str | None
    family: str
    gates: int
    saved: int
    has_cell: bool
    split: bool
    projects: bool = False
    activation: str | None = None

    @property
    def states(self) -> int:
        """How many states go from step to step: h, and c where there is one."""
        return 2 if self.has_cell else 1


RNN: dict[str, Card] = {
    card.name: card
    for card in (
        Card("lstm", "LSTM", "rnn", gates=4, saved=4, has_cell=True, split=False, projects=True),
        Card("gru", "GRU", "rnn", gates=3, saved=4, has_cell=False, split=True),
        Card("rnn_tanh", "RNN_TANH", "rnn", gates=1, saved=0, has_cell=False, split=False, activation="tanh"),
        Card("rnn_relu", "RNN_RELU", "rnn", gates=1, saved=0, has_cell=False, split=False, activation="relu"),
    )
}
#: One state, c, and no product: the three or four blocks of u come from outside (``fastrnn.reference``).
SCAN: dict[str, Card] = {
    "sru": Card("sru", None, "scan", gates=3, saved=0, has_cell=True, split=False),
}
#: The names of the rnn family by torch.nn's names of them.
NAMES = {card.mode: name for name, card in RNN.items()}


def card(name: str) -> Card:
    """The card of a cell of either family.

    Raises:
        KeyError: no such cell.
    """
    return RNN[name] if name in RNN else SCAN[name]
