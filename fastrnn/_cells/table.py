"""The list of cells; the other copy is C++'s (csrc/cells/list.h), and a test compares the two.

Two families: **rnn**, whose recurrence has a product, and **scan**, whose has none. Whoever asks "is it an
LSTM?" mostly means one of the facts on its card.
"""

from __future__ import annotations

from . import gru, lstm, rnn, sru
from .card import Card

RNN: dict[str, Card] = {card.name: card for card in (lstm.CARD, gru.CARD, rnn.TANH, rnn.RELU)}
SCAN: dict[str, Card] = {sru.CARD.name: sru.CARD}
#: The names of the rnn family by torch.nn's names of them.
NAMES = {card.mode: name for name, card in RNN.items()}
#: Cells with a second state.
WITH_CELL = frozenset(name for name, card in (RNN | SCAN).items() if card.has_cell)


def card(name: str) -> Card:
    """The card of a cell of either family.

    Raises:
        KeyError: no such cell.
    """
    return RNN[name] if name in RNN else SCAN[name]
