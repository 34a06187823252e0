"""The character model of ``text`` with a Mogrifier LSTM in the LSTM's place, of as many weights."""

from __future__ import annotations

from typing import ClassVar

import text
from _run import main

from fastrnn.models.mogrifier import MogrifierLSTM


class Demo(text.Demo):
    """The figures of ``text``; the tests compare them with an LSTM's of as many weights and steps."""

    title = "MogrifierLSTM: characters of Python's manual, input and state gating each other"
    steps = 500
    quick_steps = 45
    targets: ClassVar = {"bits": ("<=", 2.2)}
    quick_targets: ClassVar = {"bits": ("<=", 3.55)}

    def __init__(self, seed: int = 0) -> None:
        # A little narrower than the LSTM of 160 units, which leaves the weights that Q and R take.
        super().__init__(seed, lambda: MogrifierLSTM(64, 150, rounds=4, rank=16))


if __name__ == "__main__":
    main(Demo)
