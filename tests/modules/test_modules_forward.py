"""Forward and backward in every form of input and state: torch's numbers, shapes, strides and objects."""

from __future__ import annotations

import pytest
import torch
from helpers import CELLS, LAYERS, assert_same, compare, flat, pair, randn, results
from tolerances import TORCH_SLACK
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastrnn

T, B, IN, H = 5, 3, 4, 6
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
STACKS = [
    {"bias": False},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
]
LAYER_STACKS = [(n, o) for n in LAYERS for o in STACKS] + [
    ("LSTM", {"proj_size": 2}),
    ("LSTM", {"proj_size": 5, "num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("RNN", {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}),
]


def _states(m: nn.RNNBase, batch: int = B, dtype=None):
    """h0, or h0 and c0, of the sizes and the dtype that the module wants."""
    dtype = dtype or m.weight_ih_l0.dtype
    states = m.num_layers * (2 if m.bidirectional else 1)
    h = randn(states, batch, m.proj_size or m.hidden_size, dtype=dtype, seed=2)
    return (h, randn(states, batch, m.hidden_size, dtype=dtype, seed=3)) if m.mode == "LSTM" else h


def _each(hx, change):
    return tuple(map(change, hx)) if isinstance(hx, tuple) else change(hx)


def _input(m: nn.RNNBase, batch: int = B, steps: int = T):
    x = randn(steps, batch, m.input_size, dtype=m.weight_ih_l0.dtype)
    return x.transpose(0, 1).contiguous() if m.batch_first else x


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("name", "options"), LAYER_STACKS)
def test_stacks(name, options, backend):
    """Layers, directions, biases, projection: outputs and gradients of everything, states given or not."""
    ours, theirs = pair(name, IN, H, backend=backend, dtype=torch.float64, **options)
    compare(ours, theirs, _input(ours))
    compare(ours, theirs, _input(ours), _states(ours))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_dtypes(name, dtype):
    """Every dtype with a kernel, odd sizes included, against torch in the same dtype and in float64."""
    ours, theirs = pair(name, 7, 33, 2, bidirectional=True, dtype=dtype)
    compare(ours, theirs, _input(ours), _states(ours))


@pytest.mark.parametrize("name", LAYERS)
def test_two_threads(name):
    """The other tests run on one thread; rows and units are split among more, evenly or not."""
    torch.set_num_threads(2)
    for batch in (1, 5, 32):
        ours, theirs = pair(name, 20, 45, bidirectional=True)
        compare(ours, theirs, _input(ours, batch), _states(ours, batch))


@pytest.mark.parametrize(("name", "options"), LAYER_STACKS)
def test_recompute_mode(name, options):
    """save="recompute" computes in backward what "gates" kept, to the same gradients."""
    ours, theirs = pair(name, IN, H, save="recompute", dtype=torch.float64, **options)
    compare(ours, theirs, _input(ours), _states(ours))


@pytest.mark.parametrize("name", LAYERS)
def test_complex(name):
    """No kernel: the module goes to the reference by itself."""
    for dtype in (torch.complex64, torch.complex128):
        ours, theirs = pair(name, IN, H, 2, bidirectional=True, dtype=dtype)
        # Complex sigmoid and tanh have poles, near which any rounding grows: keep clear of them.
        for w in (*ours.parameters(), *theirs.parameters()):
            w.data.mul_(0.3)
        compare(ours, theirs, _input(ours) * 0.1, _each(_states(ours), lambda s: s * 0.1))


@pytest.mark.parametrize(("name", "options"), LAYER_STACKS)
def test_unbatched(name, options):
    """One sequence without a batch dimension; batch_first says nothing about it."""
    ours, theirs = pair(name, IN, H, dtype=torch.float64, **options)
    x = randn(T, IN, dtype=torch.float64)
    compare(ours, theirs, x)
    compare(ours, theirs, x, _each(_states(ours), lambda s: s[:, 0]))


@pytest.mark.parametrize(("name", "options"), LAYER_STACKS)
def test_small_batches(name, options):
    """No rows, one row and one step, backward included."""
    ours, theirs = pair(name, IN, H, dtype=torch.float64, **options)
    for batch, steps in ((0, T), (1, 1), (1, T), (B, 1)):
        compare(ours, theirs, _input(ours, batch, steps), _states(ours, batch))
        compare(ours, theirs, _input(ours, batch, steps))


@pytest.mark.parametrize("name", LAYERS)
def test_forms_of_hx(name):
    """A tuple or a list, expanded, sliced, transposed, or shared between h and c."""
    ours, theirs = pair(name, IN, H, 2, dtype=torch.float64)
    x, states = _input(ours), _states(ours)
    forms = [
        _each(states, lambda s: s[:, :1].expand(-1, B, -1)),
        _each(states, lambda s: torch.cat([s, s], -1)[..., ::2]),
        _each(states, lambda s: s.mT.contiguous().mT),
        _each(states, lambda s: torch.zeros(1, dtype=s.dtype).expand(2, B, H)),
    ]
    if name == "LSTM":
        forms += [list(states), (states[0], states[0]), (states[0], states[1].mT.contiguous().mT)]
    for hx in forms:
        with torch.no_grad():
            for got, expected in zip(flat(ours(x, hx)), flat(theirs(x, hx)), strict=True):
                torch.testing.assert_close(got, expected)
        compare(ours, theirs, x, hx)


@pytest.mark.parametrize("name", LAYERS)
def test_forms_of_input(name):
    """Strided, expanded and transposed input gives the numbers of its contiguous copy, and its gradient."""
    ours, theirs = pair(name, IN, H, dtype=torch.float64)
    x = _input(ours)
    forms = [
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.mT.contiguous().mT,
        x[:, :1].expand(-1, B, -1),
        x[:1].expand(T, -1, -1),
        torch.cat([x, x], -1)[..., ::2],
        x.repeat(2, 1, 1)[::2],
    ]
    for form in forms:
        compare(ours, theirs, form)
        leaf = torch.zeros(1, dtype=x.dtype, requires_grad=True)
        (g,) = torch.autograd.grad(flat(ours(form + leaf))[0].sum(), leaf)
        (e,) = torch.autograd.grad(flat(theirs(form + leaf))[0].sum(), leaf)
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize(("name", "options"), LAYER_STACKS)
def test_strides_of_results(name, options):
    """Results are laid out as torch's, since users call .view() on them; and they share no memory."""
    ours, theirs = pair(name, IN, H, **options)
    with torch.no_grad():
        got, expected = flat(ours(_input(ours))), flat(theirs(_input(ours)))
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape
        assert g.is_contiguous() == e.is_contiguous()
    assert got[0].stride() == expected[0].stride()
    assert len({t.untyped_storage().data_ptr() for t in got}) == len(got)
    assert len({t.untyped_storage().data_ptr() for t in flat(ours(_input(ours, 1, 1)))}) == len(got)


@pytest.mark.parametrize("name", LAYERS)
def test_options_changed_after_construction(name):
    """dropout, batch_first and training are read at each call."""
    ours, theirs = pair(name, IN, H, 2, dtype=torch.float64)
    for m in (ours, theirs):
        m.batch_first = True
    x = randn(B, T, IN, dtype=torch.float64)
    compare(ours, theirs, x)
    for m in (ours, theirs):
        m.dropout = 0.5
    _compare_seeded(ours, theirs, x)
    for m in (ours, theirs):
        m.eval()
    compare(ours, theirs, x)


def _compare_seeded(ours, theirs, x):
    """The same masks, and the generator in the same state afterwards."""
    found, states = [], []
    for m in (ours, theirs):
        torch.manual_seed(11)
        found.append(results(m, x))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    dtype = (x.data if isinstance(x, PackedSequence) else x).dtype
    assert_same(*found, dtype, TORCH_SLACK[dtype])


@pytest.mark.parametrize("p", [0.3, 1])
@pytest.mark.parametrize(("name", "options"), LAYER_STACKS)
def test_dropout(name, options, p):
    """Dropout between layers draws torch's masks bit for bit, batched, unbatched and packed."""
    options = {**options, "num_layers": 3}
    packed = pack_sequence([randn(n, IN, dtype=torch.float64) for n in (4, 2, 1)])
    ours, theirs = pair(name, IN, H, dropout=p, dtype=torch.float64, **options)
    _compare_seeded(ours, theirs, _input(ours))
    _compare_seeded(ours, theirs, randn(T, IN, dtype=torch.float64))
    _compare_seeded(ours, theirs, packed)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_masks_in_float32(name):
    """float32 goes through oneDNN in torch's LSTM, and half types through their own kernels."""
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = pair(name, IN, H, 2, dropout=0.5, bidirectional=True, dtype=dtype)
        _compare_seeded(ours, theirs, _input(ours))


@pytest.mark.parametrize("name", LAYERS)
def test_no_random_numbers_without_dropout(name):
    """Eval mode and p = 0 leave the generator alone."""
    for p, training in ((0.0, True), (0.5, False)):
        m = getattr(fastrnn, name)(IN, H, 2, dropout=p).train(training)
        before = torch.get_rng_state()
        m(_input(m))
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_out_of_range_when_called(name):
    """A probability made invalid after construction is refused as torch refuses it."""
    for m in pair(name, IN, H, 2):
        m.dropout = 1.5
        with pytest.raises(RuntimeError, match="dropout probability has to be between 0 and 1"):
            m(_input(m))
        m.dropout = None
        with pytest.raises(TypeError):
            m(_input(m))


@pytest.mark.parametrize(("name", "options"), LAYER_STACKS)
def test_helpers_for_subclasses(name, options):
    """RNNBase's public helpers, which a subclass with its own forward calls, answer as torch's do."""
    ours, theirs = pair(name, IN, H, **options)
    x, states, order = _input(ours), _states(ours), torch.tensor([2, 0, 1])
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    for a, b in zip(*(flat(m.permute_hidden(states, order)) for m in (ours, theirs)), strict=True):
        assert torch.equal(a, b)
    assert ours.permute_hidden(states, None) is states
    ours.check_forward_args(x, states, None)
    for bad in (_each(states, lambda s: s[:, 1:]), _each(states, lambda s: s[1:])):
        errors = []
        for m in (ours, theirs):
            with pytest.raises(RuntimeError) as caught:
                m.check_forward_args(x, bad, None)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]
    if name == "LSTM":
        assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)


# Packed sequences.

LENGTHS = (2, 5, 1, 5, 3)


def _sequences(dtype=torch.float64):
    return [randn(n, IN, dtype=dtype, seed=n + 10 * i) for i, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("name", "options"), LAYER_STACKS)
def test_packed(name, options, backend):
    """Variable lengths, sorted or not: numbers, gradients, and each row's own last state."""
    ours, theirs = pair(name, IN, H, backend=backend, dtype=torch.float64, **options)
    packed = pack_sequence(_sequences(), enforce_sorted=False)
    by_length = pack_sequence(sorted(_sequences(), key=len, reverse=True))
    for p in (packed, by_length, pack_sequence(_sequences()[:1]), pack_sequence(_sequences()[2:3] * 2)):
        batch = int(p.batch_sizes[0])
        compare(ours, theirs, p)
        compare(ours, theirs, p, _states(ours, batch))


@pytest.mark.parametrize("name", LAYERS)
def test_packed_is_every_row_alone(name):
    """A packed batch means the same as its sequences one by one, in the order the user gave them."""
    m = getattr(fastrnn, name)(IN, H, bidirectional=True, dtype=torch.float64)
    y, state = m(pack_sequence(_sequences(), enforce_sorted=False))
    padded, lengths = pad_packed_sequence(y)
    assert tuple(lengths) == LENGTHS
    for i, sequence in enumerate(_sequences()):
        alone, alone_state = m(sequence)
        torch.testing.assert_close(padded[: len(sequence), i], alone)
        for s, a in zip(flat(state), flat(alone_state), strict=True):
            torch.testing.assert_close(s[:, i], a)


@pytest.mark.parametrize("name", LAYERS)
def test_packed_output_passes_objects_through(name):
    """batch_sizes and both indices of the output are the very objects of the input, as in torch."""
    m = getattr(fastrnn, name)(IN, H, batch_first=True)
    padded = randn(5, 5, IN)
    for packed in (
        pack_padded_sequence(padded, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False),
        pack_padded_sequence(padded, torch.tensor(sorted(LENGTHS)[::-1]), batch_first=True),
    ):
        y, _ = m(packed)
        assert isinstance(y, PackedSequence)
        assert all(a is b for a, b in zip(y[1:], packed[1:], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_packed_dtypes(name, dtype):
    """Packed input in every dtype with a kernel."""
    ours, theirs = pair(name, IN, 17, bidirectional=True, dtype=dtype)
    compare(ours, theirs, pack_sequence(_sequences(dtype), enforce_sorted=False), _states(ours, 5))


# Cells.


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, bias, dtype):
    """A step, batched, unbatched and empty, states given or not."""
    ours, theirs = pair(name, IN, H, bias=bias, dtype=dtype)
    for shape in ((B,), (), (1,), (0,)):
        x, h = randn(*shape, IN, dtype=dtype), randn(*shape, H, dtype=dtype, seed=2)
        compare(ours, theirs, x)
        compare(ours, theirs, x, (h, randn(*shape, H, dtype=dtype, seed=3)) if name == "LSTMCell" else h)
    if name == "LSTMCell":
        compare(ours, theirs, randn(B, IN, dtype=dtype), [randn(B, H, dtype=dtype)] * 2)


def test_relu_cell():
    """RNNCell's other nonlinearity, given at construction or later."""
    ours, theirs = pair("RNNCell", IN, H, nonlinearity="relu", dtype=torch.float64)
    compare(ours, theirs, randn(B, IN, dtype=torch.float64))
    ours.nonlinearity = theirs.nonlinearity = "tanh"
    compare(ours, theirs, randn(B, IN, dtype=torch.float64))


@pytest.mark.parametrize("name", CELLS)
def test_cells_without_inputs_or_units(name):
    """torch's cells take sizes of zero, which nothing fuses."""
    for sizes in ((0, H), (IN, 0)):
        ours = getattr(fastrnn, name)(*sizes)
        assert flat(ours(torch.zeros(B, sizes[0])))[0].shape == (B, sizes[1])


@pytest.mark.parametrize("name", CELLS)
def test_a_loop_over_a_cell_is_a_layer(name):
    """Steps by hand agree with the layer of the same weights, gradients through time included."""
    cell = getattr(fastrnn, name)(IN, H, dtype=torch.float64)
    layer = getattr(fastrnn, name[:-4])(IN, H, dtype=torch.float64)
    layer.load_state_dict({k + "_l0": v for k, v in cell.state_dict().items()})
    x = randn(T, B, IN, dtype=torch.float64)
    state, outputs = None, []
    for step in x:
        state = cell(step, state)
        outputs.append(flat(state)[0])
    expected, _ = layer(x)
    torch.testing.assert_close(torch.stack(outputs), expected)
    torch.stack(outputs).pow(2).sum().backward()
    expected.pow(2).sum().backward()
    for a, b in zip(cell.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
