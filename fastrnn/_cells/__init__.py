"""The cells: what each is made of, in one table."""

from .table import NAMES, RNN, SCAN, Card, card  # noqa: F401
