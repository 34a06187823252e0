"""What the tests on arguments that nobody would write by hand share."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from tolerances import assert_close

#: The exceptions that bad arguments may end in: each can be caught, and none is a crash.
EXCEPTIONS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError)


def quiet(examples: int):
    """Settings of every test here: the same examples each time, however long one takes."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


#: What may happen to a tensor on the way. The harmless ones first.
CHANGES = {
    "transposed strides": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "expanded": lambda t: t[:1].expand_as(t),
    "gaps": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "negative bit": lambda t: torch.imag(torch.complex(t.float(), t.float()).conj()).to(t.dtype),
    "a parameter": lambda t: torch.nn.Parameter(t),
    "a row less": lambda t: t[:-1],
    "a column less": lambda t: t[..., :-1],
    "nothing": lambda t: t[:0],
    "no columns": lambda t: t[..., :0],
    "a dimension more": lambda t: t[None],
    "a dimension less": lambda t: t[0],
    "flat": lambda t: t.reshape(-1),
    "transposed": lambda t: t.mT if t.dim() > 1 else t,
    "doubled": lambda t: torch.cat([t, t]),
    "float64": lambda t: t.double(),
    "half": lambda t: t.half(),
    "integers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "NaN": lambda t: t * float("nan"),
    "infinite": lambda t: t / 0,
}
#: batch_sizes that do not fit.
SIZES = {
    "rising": [1, 2, 3],
    "zero": [3, 2, 0, 0],
    "negative": [9, -3],
    "smallest": [5, -(2**63)],
    "largest": [2**63 - 1, 1],
    "too many": [9, 9, 9],
    "floats": [3.0, 2.0],
    "NaN": [float("nan"), 1.0],
    "infinite": [float("inf"), 1.0],
    "none": [],
    "nested": [[3, 2]],
    "bools": [True, True],
}


def changed(t, change):
    """t changed, or t where the change has no meaning (an earlier one left too little)."""
    try:
        return CHANGES[change](t)
    except (RuntimeError, IndexError):
        return t


def assert_same_numbers(a, b, label):
    """NaN and infinities in the same places, the rest within tolerance."""
    assert a.shape == b.shape, label
    assert a.dtype == b.dtype, label
    finite = b.isfinite()
    assert torch.equal(a.isfinite(), finite), label
    assert_close(a[finite], b[finite], torch.float32, slack=2, what=label)
