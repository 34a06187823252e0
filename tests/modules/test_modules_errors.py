"""Bad input to a module: the error torch gives, or a clearer one of a type that code for torch catches."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import CELLS, LAYERS, flat
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn

zeros = torch.zeros
X = zeros(5, 2, 3)
PACKED = pack_sequence([zeros(3, 3), zeros(2, 3)])
F64, F32, META = {"dtype": torch.float64}, {}, {"device": "meta"}


def _error(call) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _state(name: str, *shape, **options):
    """A state for whichever module: one tensor, or two for the LSTM."""
    h = zeros(*shape, **options)
    return (h, h.clone()) if name.startswith("LSTM") else h


def _same_error(name, args, kwargs, input, hx, same_text):
    """fastrnn raises what torch raises: its type or a subclass, and its text where that is clear."""
    call = (input,) if hx is None else (input, hx)
    ours = _error(lambda: getattr(fastrnn, name)(*args, **kwargs)(*call))
    theirs = _error(lambda: getattr(nn, name)(*args, **kwargs)(*call))
    assert ours is not None
    assert isinstance(ours, type(theirs)), f"{ours!r} for torch's {theirs!r}"
    if same_text:
        assert str(ours).startswith(str(theirs).splitlines()[0])
    return ours


# Input, the state's shape and options, whether the text is torch's too.
LAYER_CASES = {
    "input 1-D": (zeros(3), None, F32, True),
    "input 4-D": (zeros(1, 2, 3, 3), None, F32, True),
    "input 0-D": (zeros(()), None, F32, True),
    "features": (zeros(5, 2, 5), None, F32, True),
    "features unbatched": (zeros(5, 4), None, F32, True),
    "features packed": (pack_sequence([zeros(3, 5)]), (2, 1, 4), F32, False),
    "float64 input": (X.double(), None, F32, True),
    "integer input": (X.long(), None, F32, True),
    "half input": (X.half(), None, F32, True),
    "no steps": (zeros(0, 2, 3), None, F32, True),
    "no steps, no rows": (zeros(0, 0, 3), None, F32, True),
    "no steps unbatched": (zeros(0, 3), None, F32, True),
    "no steps and a wrong state": (zeros(0, 2, 3), (2, 3, 4), F32, True),
    "input elsewhere": (X.to("meta"), None, F32, True),
    "state rows": (X, (2, 3, 4), F32, True),
    "state layers": (X, (1, 2, 4), F32, True),
    "state units": (X, (2, 2, 5), F32, True),
    "state 2-D": (X, (2, 4), F32, True),
    "state 4-D": (X, (2, 1, 2, 4), F32, True),
    "state 3-D for one sequence": (zeros(5, 3), (2, 1, 4), F32, True),
    "state units for one sequence": (zeros(5, 3), (2, 5), F32, True),
    "state elsewhere": (X, (2, 2, 4), META, True),
    "float64 state": (X, (2, 2, 4), F64, False),
    "packed, state rows": (PACKED, (2, 3, 4), F32, False),
    "packed, float64": (PACKED.double(), None, F32, False),
}


@pytest.mark.parametrize("case", LAYER_CASES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, case):
    """Sizes, dimensions, dtypes and devices."""
    input, shape, options, same_text = LAYER_CASES[case]
    if name == "LSTM" and case == "features packed":
        # torch reads past the end of the input here.
        with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
            fastrnn.LSTM(3, 4, 2)(input)
        return
    hx = None if shape is None else _state(name, *shape, **options)
    _same_error(name, (3, 4, 2), {}, input, hx, same_text)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 2}])
def test_hidden_sizes_in_the_message(options, batch_first):
    """The expected size counts directions and projection, and names the state that is wrong."""
    x = zeros(2, 5, 3) if batch_first else X
    kwargs = {"batch_first": batch_first, **options}
    out, states = options.get("proj_size", 4), 2 * (1 + options.get("bidirectional", False))
    good_h, good_c = zeros(states, 2, out), zeros(states, 2, 4)
    for hx in ((good_h[:, :1], good_c), (good_h, good_c[..., :1]), (good_h[:1], good_c[:1])):
        _same_error("LSTM", (3, 4, 2), kwargs, x, hx, True)


@pytest.mark.parametrize(
    "hx",
    [
        zeros(2, 2, 4),
        zeros(2, 2, 2, 4),
        (zeros(2, 2, 4),),
        (zeros(2, 2, 4),) * 3,
        (),
        (None, None),
        (zeros(2, 2, 4), None),
        (zeros(2, 4), zeros(2, 4)),
        "ab",
        3,
        {"h": zeros(2, 2, 4)},
    ],
)
@pytest.mark.parametrize("name", LAYERS)
def test_hx_of_the_wrong_structure(name, hx):
    """One error that names hx and says what came, of a type that torch's callers catch."""
    theirs = _error(lambda: getattr(nn, name)(3, 4, 2)(X, hx))
    ours = _error(lambda: getattr(fastrnn, name)(3, 4, 2)(X, hx))
    if theirs is None:
        assert ours is None
        return
    if isinstance(hx, dict):
        assert isinstance(ours, (TypeError, AttributeError))
    else:
        assert isinstance(ours, type(theirs))
    assert "hx" in str(ours) or "hidden" in str(ours)


def _packed(data, sizes, dtype=torch.int64):
    return PackedSequence(data, torch.tensor(sizes, dtype=dtype))


@pytest.mark.parametrize(
    ("packed", "match"),
    [
        (_packed(zeros(5, 3), [2, 3]), "never increase"),
        (_packed(zeros(6, 3), [3, 2]), "add up to"),
        (_packed(zeros(4, 3), [3, 2]), "add up to"),
        (_packed(zeros(3, 3), [3, 0]), "positive"),
        (_packed(zeros(0, 3), []), "sequence length to be larger than 0"),
        (_packed(zeros(5, 3), [3, 2], torch.int32), "int64"),
        (_packed(zeros(5, 1, 3), [3, 2]), "input must have 2 dimensions, got 3"),
        (_packed(zeros(5, 3).double(), [3, 2]), "does not match weight dtype"),
    ],
)
@pytest.mark.parametrize("name", LAYERS)
def test_malformed_packed_sequences(name, packed, match):
    """PackedSequence checks nothing itself, and torch accepts some of these and answers with garbage."""
    with pytest.raises((RuntimeError, ValueError), match=match):
        getattr(fastrnn, name)(3, 4, backend="reference")(packed)
    with pytest.raises((RuntimeError, ValueError)):
        getattr(fastrnn, name)(3, 4)(packed)


def test_zero_lengths_stop_at_packing():
    """A NaN or zero length never reaches a module: torch's own packing refuses it."""
    for lengths in ([2.0, float("nan")], [2, 0]):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            nn.utils.rnn.pack_padded_sequence(X, torch.tensor(lengths))


CELL_CASES = {
    "input 3-D": (zeros(1, 2, 3), None, F32, True),
    "input 0-D": (zeros(()), None, F32, True),
    "features": (zeros(2, 5), None, F32, True),
    "features unbatched": (zeros(5), None, F32, True),
    "integer input": (zeros(2, 3).long(), None, F32, False),
    "float64 input": (zeros(2, 3).double(), None, F32, False),
    "input elsewhere": (zeros(2, 3, device="meta"), None, F32, False),
    "state 3-D": (zeros(2, 3), (1, 2, 4), F32, True),
    "state rows": (zeros(2, 3), (3, 4), F32, True),
    "one row for two": (zeros(2, 3), (1, 4), F32, True),
    "state units": (zeros(2, 3), (2, 5), F32, True),
    "state 1-D": (zeros(2, 3), (4,), F32, True),
    "state 1-D, as many units as rows": (zeros(4, 3), (4,), F32, False),
    "state 2-D for one row": (zeros(3), (1, 4), F32, True),
    "float64 state": (zeros(2, 3), (2, 4), F64, False),
    "state elsewhere": (zeros(2, 3), (2, 4), META, False),
}


@pytest.mark.parametrize("case", CELL_CASES)
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, case):
    """Sizes, dimensions, dtypes and devices of a step."""
    input, shape, options, same_text = CELL_CASES[case]
    hx = None if shape is None else _state(name, *shape, **options)
    _same_error(name, (3, 4), {}, input, hx, same_text)


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("2.14.1", "Input batch size 2 doesn't match hidden0 batch size 4"),
        ("2.15.0", "Expected 2D hidden0 (batch x hidden_size), but got 1D tensor"),
        ("2.15.0+cu132", "Expected 2D hidden0 (batch x hidden_size), but got 1D tensor"),
    ],
)
@pytest.mark.parametrize("name", CELLS)
def test_a_cells_state_is_refused_in_the_words_of_the_torch_that_is_here(name, version, told, monkeypatch):
    """torch 2.15 names the dimensions first."""
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(RuntimeError, match=re.escape(told)):
        getattr(fastrnn, name)(3, 4)(zeros(2, 3), _state(name, 4))


@pytest.mark.parametrize(
    "hx",
    [
        zeros(2, 4),
        zeros(2, 2, 4),
        (zeros(2, 4),),
        (zeros(2, 4),) * 3,
        (None, None),
        (zeros(2, 4), zeros(2, 5)),
    ],
)
@pytest.mark.parametrize("name", CELLS)
def test_hx_of_a_cell(name, hx):
    """As for the layers."""
    theirs = _error(lambda: getattr(nn, name)(3, 4)(zeros(2, 3), hx))
    ours = _error(lambda: getattr(fastrnn, name)(3, 4)(zeros(2, 3), hx))
    assert isinstance(ours, type(theirs))


def test_a_cells_nonlinearity_is_checked_in_forward():
    """torch's RNNCell takes any nonlinearity and fails when it runs."""
    cell = fastrnn.RNNCell(3, 4, nonlinearity="x")
    assert repr(cell) == repr(nn.RNNCell(3, 4, nonlinearity="x"))
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: x"):
        cell(zeros(2, 3))


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_layouts(name):
    """Sparse inputs count as dense ones (torch's cells take them), nested ones are one clear error."""
    m = getattr(fastrnn, name)(3, 4)
    x = torch.ones(5, 3)
    expected = m(x)
    for got in (m(x.to_sparse()), m(x.to_sparse_csr()), m(x.to_mkldnn())):
        assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(expected), strict=True))
    leaf = x.to_sparse().requires_grad_()
    flat(m(leaf))[0].sum().backward()
    assert leaf.grad is not None
    with pytest.raises(RuntimeError, match="input should be a dense Tensor, got a nested one"):
        m(torch.nested.nested_tensor([zeros(5, 3), zeros(2, 3)]))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_without_a_weight(name):
    """A weight that was set to None is named."""
    cell = getattr(fastrnn, name)(3, 4)
    cell.weight_hh = None
    with pytest.raises(TypeError, match=f"{name}: w_hh should be a Tensor, got NoneType"):
        cell(zeros(2, 3))


@pytest.mark.parametrize("name", LAYERS)
def test_wrong_weights(name):
    """Weights put in by hand are checked by what computes with them."""
    for change in (lambda w: w.double(), lambda w: w[:, 1:], lambda w: w.to("meta")):
        for backend in ("auto", "reference"):
            m = getattr(fastrnn, name)(3, 4, backend=backend)
            m.weight_hh_l0 = nn.Parameter(change(m.weight_hh_l0.detach()))
            with pytest.raises((RuntimeError, ValueError)):
                m(X)
