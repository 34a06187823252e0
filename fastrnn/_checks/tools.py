"""Tools that know a layer by its exact class, and so pass by those of fastrnn: a word to their users.

What such a tool leaves on a module before it begins is how it is noticed.
"""

from __future__ import annotations

import warnings

#: The attribute that a tool sets on every module, the tool, and what becomes of a layer.
MARKS = {
    "qconfig": ("torch.ao.quantization", "leaves this one in floating point"),
    "_backpack_extend": ("BackPACK", "computes no quantities of its own, such as grad_batch, for this one"),
}
_warned: set[str] = set()


def warn(mark: str, name: str) -> None:
    """Say once for each tool what it does not do for a layer."""
    tool, consequence = MARKS[mark]
    if tool in _warned:
        return
    _warned.add(tool)
    warnings.warn(
        f"{name}: {tool} knows layers by their exact class and {consequence}; give it torch.nn's: call "
        "fastrnn.revert(model) first, or keep torch.nn's layers and run them in fastrnn.patch()",
        stacklevel=3,
    )
