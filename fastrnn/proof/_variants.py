"""The variants of the cells as ``verify`` and the benchmark ask for them: names of options, or of all.

Probabilities are such as half types have exactly: what a mask is multiplied by is then the same in every
dtype.
"""

from __future__ import annotations

from .._cells import RNN

#: Options by the name of the variant, without those that hang on a layer's size.
_VARIANTS: dict[str, dict] = {
    "norm": {"norm": "layer"},
    "zoneout": {"zoneout": 0.25},
    "recurrent_dropout": {"recurrent_dropout": 0.5},
    "weight_dropout": {"weight_dropout": 0.5},
    "peephole": {"peephole": True},
    "coupled": {"coupled": True},
    "reset_before": {"reset_after": False},
    "heads": {},
    "all": {"norm": "layer", "zoneout": 0.25, "recurrent_dropout": 0.5, "weight_dropout": 0.5},
}
VARIANTS = tuple(_VARIANTS)
#: What a cell has besides in "all".
_ALL = {"lstm": {"peephole": True, "coupled": True, "zoneout": (0.25, 0.5)}}
#: Variants of one cell alone.
_OWN = {"peephole": "lstm", "coupled": "lstm", "reset_before": "gru"}
#: Variants with a mask for a whole sequence, of which a single step is none.
OF_SEQUENCES = ("recurrent_dropout", "weight_dropout")


def has(cell: str, variant: str, single: bool = False) -> bool:
    """Whether there is such a variant of the cell; ``single``: of one that takes a step at a time."""
    if cell not in RNN or _OWN.get(variant, cell) != cell:
        return False
    return not (single and variant in OF_SEQUENCES)


def options(cell: str, variant: str, hidden: int, heads: int = 0, single: bool = False) -> dict:
    """A variant's options as constructors take them; {} of the plain cell, whose variant is "".

    heads: by default the fewest blocks, but one, that hidden units can be divided into. Together with a norm
    not blocks of one unit: its few weights under the norm of all are chaotic, in float32 of any kind.
    """
    if not variant:
        return {}
    found = dict(_VARIANTS[variant])
    if variant in ("heads", "all"):
        most = hidden if variant == "heads" else hidden // 2
        found["heads"] = heads or next((n for n in range(2, most + 1) if hidden % n == 0), 1)
    if variant == "all":
        found |= _ALL.get(cell, {})
        if single:
            found = {name: value for name, value in found.items() if name not in OF_SEQUENCES}
    return found


def draws(variant: str) -> bool:
    """Whether training draws masks of the variant, so that evaluation computes something else."""
    return variant in ("zoneout", "all", *OF_SEQUENCES)
