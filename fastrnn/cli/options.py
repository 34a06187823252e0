"""Types of command-line options: what they accept, and what they say to everything else."""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path


def seconds(text: str) -> float:
    """A positive time."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def shape(text: str) -> tuple[int, int, int]:
    """ "T,B,H" as three positive integers."""
    try:
        T, B, H = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a shape is T,B,H, such as 100,16,128; got {text!r}") from None
    if min(T, B, H) < 1:
        raise argparse.ArgumentTypeError(f"a shape's sizes are positive; got {text!r}")
    return T, B, H


def _sizes(text: str, names: str, example: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        found = ()
    if len(found) != len(names.split(",")):
        raise argparse.ArgumentTypeError(f"expected {names}, such as {example}; got {text!r}")
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"sizes are positive; got {text!r}")
    return found


def full_shape(text: str) -> tuple[int, ...]:
    """ "T,B,I,H" as four positive integers."""
    return _sizes(text, "T,B,I,H", "100,16,256,256")


def count(text: str) -> int:
    """A positive integer."""
    return _sizes(text, "a number", "4")[0]


def steps_and_rows(text: str) -> tuple[int, ...]:
    """ "T,B" as two positive integers."""
    return _sizes(text, "T,B", "100,16")


def threads(text: str) -> int:
    """As many as there are processors, and two anywhere: more would measure how they wait for each other."""
    most = max(2, os.cpu_count() or 1)
    if not text.isdigit() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to {most} on this machine, got {text!r}")
    return int(text)


def device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {text!r}")
    return text


def output(text: str) -> Path:
    """A file or folder to write. Whether that can be done is known before an hour's work, not after it."""
    path = Path(text)
    folder = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if folder != path.absolute() and not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: no permission for {folder}")
    return path
