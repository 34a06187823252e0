"""The cells, a file each: what one is made of, and a step of it in plain torch. The list is ``table``."""

from .card import Card, widen  # noqa: F401
from .table import NAMES, RNN, SCAN, WITH_CELL, card  # noqa: F401
from .variant import PLAIN, Masks, Variant, card_of  # noqa: F401
