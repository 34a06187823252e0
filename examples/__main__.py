"""``python examples``: the list."""

import _demo

from fastrnn.cli import console

console.pairs([(f"{name}.py", _demo.load(name).title) for name in _demo.NAMES], "python examples/NAME.py")
