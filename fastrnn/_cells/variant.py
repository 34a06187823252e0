"""A variant of a cell is a value: what it does otherwise than torch.nn's, its options, its parameters.

``read`` makes one of a caller's options and says what is wrong with them; ``parameters`` names the weights of
a direction and gives their sizes. For the operators, and for ``fastrnn.reference``, a variant is part of the
cell's name, ``spell``, and its masks lie behind the weights. What a variant computes is in ``stages``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .card import Card
from .table import RNN


class Variant(NamedTuple):
    """The options of a layer that are not torch.nn's; the default is the plain cell.

    Attributes:
        norm: "layer" or None. norm_eps: what it adds to a variance.
        zoneout: probabilities that a unit keeps its old h, and its old c (0 where there is none).
        recurrent_dropout: probability, of h before the recurrent product, one mask a row and sequence.
        weight_dropout: probability, of the recurrent weights, one mask a call.
        peephole: whether the gates see c. coupled: whether the forget gate is 1 - i. Both of the LSTM.
        reset_after: whether GRU's reset gate comes after the recurrent product, as in torch, or before it.
        heads: blocks of the recurrent weights, which are zero outside of them.
    """

    norm: str | None = None
    norm_eps: float = 1e-5
    zoneout: tuple[float, float] = (0.0, 0.0)
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    peephole: bool = False
    coupled: bool = False
    reset_after: bool = True
    heads: int = 1

    def words(self) -> list[str]:
        """The names of the options that are on, in the order above."""
        return [name for name in self._fields if name != "norm_eps" and getattr(self, name) != _OFF[name]]

    def text(self, has_cell: bool) -> str:
        """The options that are not the default, as a constructor takes them, each after a comma."""
        found = []
        for name in self.words():
            value = getattr(self, name)
            if name == "zoneout" and (not has_cell or value[0] == value[1]):
                value = value[0]
            found.append(f", {name}={value}")
            if name == "norm" and self.norm_eps != _OFF["norm_eps"]:
                found.append(f", norm_eps={self.norm_eps}")
        return "".join(found)


PLAIN = Variant()
_OFF = PLAIN._asdict()
#: The options, in the order of the constructors' documentation.
OPTIONS = Variant._fields
_NORMS = (None, "layer")
#: Options of one cell alone, and what messages call that.
_OWN = {"peephole": ("lstm", "LSTM"), "coupled": ("lstm", "LSTM"), "reset_after": ("gru", "GRU")}


class Masks(NamedTuple):
    """The constants of one layer, both directions, that lie behind its weights in this order.

    Attributes:
        zoneout_h, zoneout_c: (T, B, D*P) and (T, B, D*H), or of packed rows (N, .): how much a unit keeps of
            its old value. Training draws 1 and 0, evaluation has the expectation. None without zoneout of
            that state.
        recurrent_mask: (D, B, P), zeros and 1/(1-p), what h is multiplied by before the recurrent product;
            None for nothing.
    """

    zoneout_h: Tensor | None = None
    zoneout_c: Tensor | None = None
    recurrent_mask: Tensor | None = None


class Weights(NamedTuple):
    """The weights of one direction by name, None where the layer has no such one."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None
    weight_peephole: Tensor | None = None
    norm_ih: Tensor | None = None
    norm_hh: Tensor | None = None
    norm_c: Tensor | None = None
    norm_c_bias: Tensor | None = None


def read(
    name: str, cell: str, hidden: int, proj: int = 0, dtype: torch.dtype | None = None, **options
) -> Variant:
    """The variant of a layer's or cell's options.

    Args:
        name: the layer's, for messages. cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        hidden, proj: its sizes, proj 0 without projection. dtype: of its parameters.
        options: those of :class:`Variant`; zoneout may be one probability for both states.

    Raises:
        TypeError: an option of another type, or an unknown one.
        ValueError: a value or a combination that there is not.
    """
    unknown = options.keys() - _OFF.keys()
    if unknown:
        raise TypeError(f"{name} got an unexpected keyword argument {min(unknown)!r}")
    wanted = _OFF | options
    for option in ("peephole", "coupled", "reset_after"):
        if not isinstance(wanted[option], bool):
            raise TypeError(f"{name}: {option} should be of type bool, got {_kind(wanted[option])}")
    if not (wanted["norm"] is None or isinstance(wanted["norm"], str)) or wanted["norm"] not in _NORMS:
        raise ValueError(f"{name}: norm should be None or 'layer', got {wanted['norm']!r}")
    eps = wanted["norm_eps"]
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{name}: norm_eps should be a number, got {_kind(eps)}")
    if not 0 <= eps <= 1:
        raise ValueError(f"{name}: norm_eps should be between 0 and 1, got {eps}")
    wanted["norm_eps"] = float(eps)
    has_cell = RNN[cell].has_cell
    wanted["zoneout"] = _zoneout(name, wanted["zoneout"], has_cell)
    for option in ("recurrent_dropout", "weight_dropout"):
        wanted[option] = _probability(name, option, wanted[option])
    heads = wanted["heads"]
    if isinstance(heads, bool) or not isinstance(heads, int):
        raise TypeError(f"{name}: heads should be an int, got {_kind(heads)}")
    if heads < 1:
        raise ValueError(f"{name}: heads should be at least 1, got {heads}")
    for size, what in ((hidden, "hidden_size"), (proj, "proj_size")):
        if size and isinstance(size, int) and size % heads:
            raise ValueError(f"{name}: heads should divide {what} = {size}, got heads={heads}")
    for option, (owner, title) in _OWN.items():
        if wanted[option] != _OFF[option] and cell != owner:
            raise ValueError(
                f"{name}: {option} is an option of the {title}, got {option}={wanted[option]} for {cell}"
            )
    if wanted["norm"] and not wanted["reset_after"]:
        raise ValueError(
            f"{name}: norm needs reset_after=True, got reset_after=False: it takes the recurrent "
            "pre-activations of all gates at once, and those of n would wait for r"
        )
    if not wanted["norm"]:
        wanted["norm_eps"] = _OFF["norm_eps"]
    variant = Variant(**wanted)
    if variant == PLAIN:
        return PLAIN
    if dtype is not None and dtype.is_complex:
        raise ValueError(f"{name}: {variant.words()[0]} needs real numbers, got dtype={dtype}")
    return variant


def _zoneout(name: str, value: object, has_cell: bool) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)):
        p = _probability(name, "zoneout", value)
        return p, p if has_cell else 0.0
    if len(value) != 2:
        raise ValueError(f"{name}: zoneout should be a probability or (p_h, p_c), got {value!r}")
    p_h, p_c = (_probability(name, "zoneout", p) for p in value)
    if p_c and not has_cell:
        raise ValueError(f"{name}: zoneout should be one probability where there is no c, got {value!r}")
    return p_h, p_c


def _probability(name: str, option: str, p: object) -> float:
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"{name}: {option} should be a number, got {_kind(p)}")
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: {option} should be a probability between 0 and 1, got {p}")
    return float(p)


def _kind(value: object) -> str:
    return type(value).__name__


def parameters(
    cell: str, variant: Variant, inputs: int, hidden: int, proj: int = 0, bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """Names and sizes of one direction's weights, in their order in a flat list: torch.nn's, then the
    variant's. The fields of :class:`Weights` bear the same names."""
    card, out = RNN[cell], proj or hidden
    rows = card.gates * hidden
    found: dict[str, tuple[int, ...]] = {
        "weight_ih": (rows, inputs),
        "weight_hh": (rows, out // variant.heads),
    }
    if bias:
        found |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if proj:
        found["weight_hr"] = (proj, hidden)
    if variant.peephole:
        found["weight_peephole"] = (3 * hidden,)
    if variant.norm:
        found |= {"norm_ih": (rows,), "norm_hh": (rows,)}
        if card.has_cell:
            found |= {"norm_c": (hidden,), "norm_c_bias": (hidden,)}
    return found


#: What the variants' parameters begin with, where it is not a random number.
INITIAL = {"norm_ih": 1.0, "norm_hh": 1.0, "norm_c": 1.0, "norm_c_bias": 0.0}


class Spelled(NamedTuple):
    """What the name of a cell for the operators says: the card, the variant without its probabilities, and
    which ``Masks`` there are."""

    card: Card
    variant: Variant
    masks: tuple[str, ...]


def spell(cell: str, variant: Variant, recurrent_mask: bool) -> str:
    """A cell and variant as the operators call it, such as "lstm+norm=1e-05+zoneout_h".

    recurrent_mask: whether there is one. What a variant does to its weights alone is not said.
    """
    found = [cell]
    found += ["peephole"] * variant.peephole + ["coupled"] * variant.coupled
    found += [f"norm={variant.norm_eps!r}"] if variant.norm else []
    found += ["reset_before"] * (not variant.reset_after)
    found += [f"heads={variant.heads}"] if variant.heads > 1 else []
    found += [name for name, p in zip(Masks._fields, variant.zoneout, strict=False) if p]
    found += ["recurrent_mask"] * recurrent_mask
    return "+".join(found)


def for_kernels(variant: Variant, on_cpu: bool, projected: bool, training: bool) -> tuple[Variant, bool]:
    """What ``spell`` is told of a variant in a call: the variant, without what is done to the weights before
    a kernel sees them, and whether there is a recurrent mask.

    Heads are weights with zeros between them where no kernel knows blocks. The coupled gate 1 - i is
    sigmoid(-z), and so a plain cell's with minus the rows of i in the place of f's; norms and peepholes look
    at the rows themselves, and the CPU's kernels spare the copies.
    """
    told = variant
    if projected or not on_cpu:
        told = told._replace(heads=1)
    if not (on_cpu or variant.norm or variant.peephole):
        told = told._replace(coupled=False)
    return told, training and variant.recurrent_dropout > 0


def parse(spelling: str) -> Spelled:
    """What ``spell`` said. KeyError or ValueError for what it does not say."""
    found = _parsed.get(spelling)
    if found is None:
        found = _parsed[spelling] = _parse(spelling)
    return found


# What torch.compiler.assume_constant_result sets, without importing the compiler. It would warn of
# functools'.
parse._dynamo_marked_constant = True
_parsed: dict[str, Spelled] = {}


def _parse(spelling: str) -> Spelled:
    cell, *options = spelling.split("+")
    wanted, masks = {}, set()
    for option in options:
        name, _, value = option.partition("=")
        if name in Masks._fields:
            masks.add(name)
        elif name == "norm":
            wanted |= {"norm": "layer", "norm_eps": float(value)}
        elif name == "heads":
            wanted[name] = int(value)
        elif name == "reset_before":
            wanted["reset_after"] = False
        elif name in ("peephole", "coupled"):
            wanted[name] = True
        else:
            raise ValueError(f"cell: no option {option!r} in {spelling!r}")
    return Spelled(RNN[cell], Variant(**wanted), tuple(name for name in Masks._fields if name in masks))


def card_of(spelling: str) -> Card:
    """The card of a cell of the rnn family by its name for the operators."""
    return RNN[spelling.partition("+")[0]]


def split(
    weights: Sequence[Tensor], directions: int, spelling: str, bias: bool
) -> tuple[list[Weights], Masks]:
    """A layer's flat list by name: each direction's weights, and the masks behind them."""
    told = parse(spelling)  # not taken apart, as in reference/rnn.py
    card, variant, masks = told.card, told.variant, told.masks
    count = len(weights) - len(masks)
    each = count // directions
    names = list(parameters(card.name, variant, 1, 1, 0, bias))
    if each > len(names):
        names = list(parameters(card.name, variant, 1, 1, 1, bias))
    own = [
        Weights(**dict(zip(names, weights[d * each : (d + 1) * each], strict=True)))
        for d in range(directions)
    ]
    return own, Masks(**dict(zip(masks, weights[count:], strict=True)))
