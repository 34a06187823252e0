"""From scores to what a token is drawn from: temperature, top-k, top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _inputs


def probabilities(
    scores: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """What to draw a token from, (B, V), rows that add up to 1.

    Args:
        scores: (B, V), unnormalised log probabilities.
        temperature: divides the scores; below 1 the likely become likelier, 0 leaves the best alone.
        top_k: keep the k best tokens. top_p: of those, keep the fewest that hold a share p of the probability
            (nucleus sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020,
            arXiv:1904.09751).
    """
    name = "probabilities"
    scores = _inputs.shaped(name, "scores", scores, "B", "V")
    _inputs.number(name, "temperature", temperature, 0)
    if top_p is not None and _inputs.number(name, "top_p", top_p, 0, 1) == 0:
        raise ValueError(f"{name}: top_p should be above 0, got {top_p!r}")
    if temperature == 0:
        top_k, temperature = 1, 1.0
    ordered, order = scores.float().sort(dim=-1, descending=True, stable=True)
    # The best score becomes 0 before the division: nothing overflows however cold it is.
    ordered = (ordered - ordered[:, :1]) / temperature
    if top_k is not None:
        ordered[:, _inputs.size(name, "top_k", top_k) :] = -torch.inf
    chances = ordered.softmax(-1)
    if top_p is not None:
        before = chances.cumsum(-1) - chances
        before[:, 0] = 0
        chances = chances.masked_fill(before >= top_p, 0)
        chances = chances / chances.sum(-1, keepdim=True)
    return torch.empty_like(chances).scatter_(-1, order, chances)
