"""Tasks on which the architectures of ``fastrnn.models`` show what they can do: ``python -m fastrnn demo``.

One file a task; ``demo.py`` says what a task has. matplotlib is needed for pictures alone.
"""

from __future__ import annotations

import importlib

from .demo import Demo, missed

#: Name on the command line -> module of this package.
NAMES: dict[str, str] = {
    "dates": "dates",
    "sorting": "sorting",
    "hull": "hull",
    "frames": "frames",
    "copy": "copying",
    "stories": "stories",
    "digits": "digits",
    "seasonal": "seasonal",
    "text": "text",
    "mogrifier": "mogrifier",
}


def load(name: str) -> type[Demo]:
    """The demo class of that name.

    Raises:
        ValueError: where there is none; the message lists those that are there.
    """
    if name not in NAMES:
        raise ValueError(f"demo: expected one of {', '.join(NAMES)}, got {name!r}")
    return importlib.import_module(f".{NAMES[name]}", __package__).Demo


__all__ = ["NAMES", "Demo", "load", "missed"]
