"""What a layer with a variant keeps of a module: constructor and its errors, parameters, copies, functional
form, cells, numbers of the kernels. Its way through torch's tools is in test_variant_tools.py, the equations
are tested in tests/reference/test_variant_equations.py."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers import randn
from tolerances import assert_close
from torch import nn
from variant_cases import CASES
from variant_layers import IN, LAYERS, H, build, flat

import fastrnn

WRONG = [
    ("LSTM", {"norm": "batch"}, ValueError, "norm should be None or 'layer', got 'batch'"),
    ("LSTM", {"norm": True}, ValueError, "norm should be None or 'layer', got True"),
    ("LSTM", {"norm": "layer", "norm_eps": -1.0}, ValueError, "norm_eps should be between 0 and 1, got -1.0"),
    ("LSTM", {"norm": "layer", "norm_eps": "1"}, TypeError, "norm_eps should be a number, got str"),
    ("LSTM", {"zoneout": 1.5}, ValueError, "zoneout should be a probability between 0 and 1, got 1.5"),
    ("LSTM", {"zoneout": (0.1, -0.1)}, ValueError, "zoneout should be a probability"),
    ("LSTM", {"zoneout": (0.1, 0.2, 0.3)}, ValueError, r"zoneout should be a probability or \(p_h, p_c\)"),
    ("GRU", {"zoneout": (0.1, 0.2)}, ValueError, "zoneout should be one probability where there is no c"),
    ("LSTM", {"zoneout": "0.1"}, TypeError, "zoneout should be a number, got str"),
    ("LSTM", {"zoneout": float("nan")}, ValueError, "zoneout should be a probability"),
    ("GRU", {"recurrent_dropout": 2}, ValueError, "recurrent_dropout should be a probability"),
    ("RNN", {"weight_dropout": True}, TypeError, "weight_dropout should be a number, got bool"),
    ("GRU", {"peephole": True}, ValueError, "GRU: peephole is an option of the LSTM, got peephole=True"),
    ("RNN", {"coupled": True}, ValueError, "coupled is an option of the LSTM"),
    ("LSTM", {"reset_after": False}, ValueError, "reset_after is an option of the GRU"),
    ("GRU", {"reset_after": 0}, TypeError, "reset_after should be of type bool, got int"),
    ("GRU", {"reset_after": False, "norm": "layer"}, ValueError, "norm needs reset_after=True"),
    ("LSTM", {"heads": 3}, ValueError, "heads should divide hidden_size = 4, got heads=3"),
    ("LSTM", {"heads": 2, "proj_size": 3}, ValueError, "heads should divide proj_size = 3"),
    ("LSTM", {"heads": 0}, ValueError, "heads should be at least 1, got 0"),
    ("LSTM", {"heads": 2.0}, TypeError, "heads should be an int, got float"),
    ("LSTM", {"zoneout": 0.1, "dtype": torch.complex64}, ValueError, "zoneout needs real numbers, got dtype"),
    ("GRU", {"forget_bias": 1.0}, ValueError, "forget_bias is an option of the LSTM"),
    ("LSTM", {"forget_bias": "1"}, TypeError, "forget_bias should be a number, got str"),
    ("LSTM", {"forget_bias": float("inf")}, ValueError, "forget_bias should be a finite number"),
    ("LSTM", {"forget_bias": 1.0, "bias": False}, ValueError, "forget_bias needs bias=True"),
    ("LSTM", {"forget_bias": 1.0, "coupled": True}, ValueError, "coupled=True has no forget gate"),
    ("LSTM", {"nrom": "layer"}, TypeError, "nrom"),
]


@pytest.mark.parametrize(("name", "options", "error", "text"), WRONG)
def test_wrong_options(name, options, error, text):
    """One clear error in the constructor, of layer and cell alike, and none later."""
    with pytest.raises(error, match=text):
        getattr(fastrnn, name)(IN, H, **options)
    if "proj_size" not in options:
        of_sequences = [o for o in ("recurrent_dropout", "weight_dropout") if o in options]
        text, error = (of_sequences[0], ValueError) if of_sequences else (text.removeprefix("GRU: "), error)
        with pytest.raises(error, match=text):
            getattr(fastrnn, f"{name}Cell")(IN, H, **options)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("option", ["recurrent_dropout", "weight_dropout"])
def test_cells_know_no_sequence(name, option):
    """A mask for a whole sequence is nothing that a cell could keep."""
    with pytest.raises(ValueError, match=f"{option} has one mask for a whole sequence"):
        getattr(fastrnn, name)(IN, H, **{option: 0.1})


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_off_is_plain(name):
    """With every option at its default nothing differs: parameters, random numbers, printing, pickled
    state."""
    off = {"norm": None, "norm_eps": 1e-3, "zoneout": 0.0, "heads": 1, "peephole": False, "coupled": False}
    off |= {"recurrent_dropout": 0, "weight_dropout": 0.0, "reset_after": True, "forget_bias": 0}
    if name not in ("LSTM", "LSTMCell"):
        off |= {"zoneout": (0.0, 0.0)}
    torch.manual_seed(3)
    plain = getattr(fastrnn, name)(IN, H)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    made = getattr(fastrnn, name)(IN, H, **off)
    assert torch.equal(torch.get_rng_state(), state)
    assert vars(made).keys() == vars(plain).keys()
    assert repr(made) == repr(plain)
    for (a, one), (b, other) in zip(plain.named_parameters(), made.named_parameters(), strict=True):
        assert a == b
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_parameters(name, variant):
    """The weights that the plain layer has too are its own for the same seed, gains begin with one; resetting
    gives the same again; names and sizes are the documented ones."""
    plain = build(name, {}, num_layers=2, bidirectional=True)
    layer = build(name, variant, num_layers=2, bidirectional=True)
    ours, theirs = layer.state_dict(), plain.state_dict()
    heads = variant.get("heads", 1)
    for key, weight in theirs.items():
        if heads > 1 and "weight_hh" in key:
            assert ours[key].shape == (weight.size(0), H // heads)
        else:
            assert torch.equal(ours[key], weight)
    rows = plain.weight_ih_l0.size(0)
    extra = {}
    if variant.get("norm"):
        extra |= {"norm_ih": (rows,), "norm_hh": (rows,)}
        extra |= {"norm_c": (H,), "norm_c_bias": (H,)} if name == "LSTM" else {}
    if variant.get("peephole"):
        extra["weight_peephole"] = (3 * H,)
    suffixes = [f"_l{k}{d}" for k in range(2) for d in ("", "_reverse")]
    assert {k: tuple(v.shape) for k, v in ours.items() if k not in theirs} == {
        k + s: v for k, v in extra.items() for s in suffixes
    }
    assert all((v == (0 if "bias" in k else 1)).all() for k, v in ours.items() if k.startswith("norm"))
    assert len(layer.all_weights) == 4
    assert sum(map(len, layer.all_weights)) == len(ours)
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in ours.items()}
    layer.reset_parameters()
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_forget_bias():
    """It is added to the forget gate's part of bias_ih, at initialisation and at every reset, and the random
    numbers are those of the layer without it."""
    plain, layer = build("LSTM", {}, num_layers=2), build("LSTM", {"forget_bias": 1.5}, num_layers=2)
    cell, plain_cell = (build("LSTMCell", v) for v in ({"forget_bias": 1.5}, {}))
    assert "forget_bias=1.5" in repr(layer)
    assert "variant" not in vars(layer)  # so it is as fast as ever
    for made, other in ((layer, plain), (cell, plain_cell)):
        for _ in range(2):
            for key, weight in made.state_dict().items():
                want = other.state_dict()[key].clone()
                if key.startswith("bias_ih"):
                    want[H : 2 * H] += 1.5
                assert torch.equal(weight, want), key
            for m in (made, other):
                torch.manual_seed(7)
                m.reset_parameters()
    assert pickle.loads(pickle.dumps(layer)).forget_bias == 1.5


@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_copies(name, variant):
    """Pickles, deep copies, torch.save and state dicts keep the variant and its numbers."""
    layer = build(name, variant, num_layers=2).eval()
    x = randn(5, 2, IN)
    want = flat(layer(x))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    other = build(name, variant, num_layers=2).eval()
    torch.manual_seed(9)
    other.reset_parameters()
    other.load_state_dict(layer.state_dict())
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other]
    copies.append(torch.load(buffer, weights_only=False))
    for made in copies:
        assert repr(made) == repr(layer)
        assert made.variant == layer.variant
        assert all(torch.equal(a, b) for a, b in zip(flat(made(x)), want, strict=True))
    moved = copy.deepcopy(layer).double()
    assert moved(x.double())[0].dtype == torch.float64
    with torch.device("meta"):
        made = build(name, variant, num_layers=2)
    made = made.to_empty(device="cpu").eval()
    made.load_state_dict(layer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(flat(made(x)), want, strict=True))


def test_printing():
    """The options that are on, and those alone."""
    everything = fastrnn.LSTM(IN, H, **LAYERS[0][1])
    assert repr(everything) == (
        "LSTM(3, 4, norm=layer, zoneout=(0.2, 0.3), recurrent_dropout=0.3, weight_dropout=0.2, "
        "peephole=True, coupled=True, heads=2)"
    )
    assert repr(fastrnn.GRU(IN, H, reset_after=False)) == "GRU(3, 4, reset_after=False)"
    assert repr(fastrnn.LSTMCell(IN, H, zoneout=(0.1, 0.0))) == "LSTMCell(3, 4, zoneout=(0.1, 0.0))"
    assert repr(fastrnn.GRUCell(IN, H, zoneout=0.1)) == "GRUCell(3, 4, zoneout=0.1)"


def test_options_are_attributes():
    """Probabilities may be changed at any time, what decides about parameters may not."""
    layer = fastrnn.LSTM(IN, H, zoneout=(0.1, 0.2), norm="layer")
    assert (layer.zoneout, layer.norm, layer.heads, layer.peephole) == ((0.1, 0.2), "layer", 1, False)
    assert fastrnn.GRU(IN, H, zoneout=0.1).zoneout == 0.1
    layer.zoneout = 0.5
    assert layer.zoneout == 0.5
    with pytest.raises(ValueError, match="zoneout should be a probability"):
        layer.zoneout = 2
    with pytest.raises(ValueError, match="heads decides about parameters"):
        layer.heads = 2
    once, x = fastrnn.LSTM(IN, H, zoneout=0.5), randn(5, 2, IN)
    once.zoneout = 0  # and now it is as a layer that never had one
    once.backend = "cudnn"
    assert_close(once(x)[0], fastrnn.functional.lstm(x, None, once._flat_weights)[0], torch.float32)
    plain = fastrnn.GRU(IN, H)
    before = plain(x)[0]
    plain.reset_after = False
    assert not torch.equal(plain(x)[0], before)
    plain.reset_after = True
    assert torch.equal(plain(x)[0], before)


@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_functional(name, variant):
    """The function of the same name takes the same options, draws the same masks, and checks its weights."""
    layer = build(name, variant, num_layers=2, bidirectional=True, dropout=0.5)
    function = getattr(fastrnn.functional, name.lower())
    x, params = randn(5, 2, IN), layer._flat_weights
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.5, **variant}
    for training in (False, True):
        layer.train(training)
        torch.manual_seed(4)
        want = flat(layer(x))
        torch.manual_seed(4)
        found = flat(function(x, None, params, training=training, **options))
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    wrong = [p[:-1] if i == len(params) // 4 - 1 else p for i, p in enumerate(params)]
    with pytest.raises(ValueError, match="expected params"):
        function(x, None, wrong, **options)
    with pytest.raises(ValueError, match="norm should be"):
        function(x, None, params, norm="batch")
    with pytest.raises(TypeError, match="nrom"):
        function(x, None, params, nrom="layer")


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_cells(name, variant, batched):
    """A cell is the layer's step, with the same names but for the layer's suffix."""
    variant = {k: v for k, v in variant.items() if k not in ("recurrent_dropout", "weight_dropout")}
    layer, cell = build(name, variant).eval(), build(f"{name}Cell", variant).eval()
    assert {f"{k}_l0" for k in cell.state_dict()} == set(layer.state_dict())
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x = randn(4, 2, IN) if batched else randn(4, IN)
    want, _ = layer(x)
    state = None
    for t, expected in enumerate(want):
        state = cell(x[t], state)
        h = state[0] if name == "LSTM" else state
        assert_close(h, expected, torch.float32)
    assert pickle.loads(pickle.dumps(cell)).variant == cell.variant
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in build(f"{name}Cell", variant).state_dict().items()}
    torch.manual_seed(0)
    cell.reset_parameters()
    assert all(torch.equal(before[k], v) for k, v in cell.state_dict().items())
    with pytest.raises(ValueError, match=r"1D or 2D"):
        cell(randn(1, 1, 1, IN))


def test_cell_zoneout_in_training():
    """A cell draws its own mask at each step."""
    cell = fastrnn.GRUCell(IN, 200, zoneout=0.5)
    h = torch.ones(1, 200)
    kept = (cell(randn(1, IN), h) == h).float().mean()
    assert 0.3 < kept < 0.7


@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_convert_and_revert(name, variant):
    """torch has no such layer to go back to; the rest of a model goes."""
    model = nn.ModuleList([build(name, variant), fastrnn.LSTM(IN, H)])
    assert fastrnn.revert(model) is model
    assert type(model[0]) is getattr(fastrnn, name)
    assert type(model[1]) is nn.LSTM
    fastrnn.convert(model)
    assert model[0].variant == build(name, variant).variant


@pytest.mark.parametrize("rows", ["", "lengths", "reset", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_kernels_are_the_reference(case, rows):
    """The kernels draw the masks that the reference draws, and give its numbers and gradients: of both layers
    and directions, of every step's states."""
    name, options, variant = CASES[case]
    layers = []
    for backend in ("fused", "reference"):
        torch.manual_seed(1)
        layer = getattr(fastrnn, name)
        layers.append(
            layer(IN, 6, 2, bidirectional=True, dtype=torch.float64, backend=backend, **options, **variant)
        )
    x = randn(5, 3, IN, dtype=torch.float64).requires_grad_()
    lengths = torch.tensor([5, 3, 1])
    given = {"lengths": {"lengths": lengths}, "reset": {"reset": randn(5, 3) > 0.5}}.get(rows, {})
    results = []
    for layer in layers:
        torch.manual_seed(2)
        if rows == "packed":
            packed, state = layer(nn.utils.rnn.pack_padded_sequence(x, lengths))
            found = flat((packed.data, state))
        else:
            y, state, every = layer(x, return_all_states=True, **given)
            found = [*flat((y, state)), *flat((y, every))[1:]]
        total = sum((t * randn(*t.shape, dtype=t.dtype, seed=i)).sum() for i, t in enumerate(found))
        results.append((found, torch.autograd.grad(total, [x, *layer.parameters()])))
    for got, want in zip(*(r[0] for r in results), strict=True):
        assert_close(got, want, torch.float64)
    for got, want in zip(*(r[1] for r in results), strict=True):
        assert_close(got, want, torch.float64, gradient=True)


@pytest.mark.parametrize("p", [0.25, 0.1, 1e-4, 1.0])
def test_masks_are_of_the_probability_that_was_asked_for(p):
    """Few numbers and many, which are drawn in another way: the same ones in every dtype, 0 and 1 alone, as
    many ones as p says, and other ones at the next call."""
    from fastrnn._run.variant import _MANY, _bernoulli

    for shape in ((3, 5), (7, 11, 1001), (_MANY,)):
        drawn = []
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            torch.manual_seed(6)
            drawn.append(_bernoulli(torch.empty(0, dtype=dtype), shape, p))
            assert drawn[-1].dtype == dtype
            assert drawn[-1].shape == shape
            assert torch.equal(drawn[0].double(), drawn[-1].double())
        mask = drawn[0]
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        away = 5 * (p * (1 - p) / mask.numel()) ** 0.5 + 2**-16
        assert abs(mask.mean().item() - p) <= away
        if mask.numel() > 1000 and 0.01 < p < 1:
            assert not torch.equal(mask, _bernoulli(torch.empty(0), shape, p))
