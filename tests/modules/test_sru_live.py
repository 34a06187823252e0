"""fastrnn.compat.sru beside the ``sru`` package itself, in one process, where it is installed.

``pip install sru==2.6.0`` or ``sru==3.0.0.dev6``; its first import compiles for a minute.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn.compat.sru as ours

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sru = pytest.importorskip("sru", reason="the sru package is not installed: nothing to compare with")

VERSION = "2.6.0" if sru.__version__.startswith("2") else "3.0.0.dev6"
pytestmark = pytest.mark.filterwarnings("ignore")
newer = pytest.mark.skipif(VERSION == "2.6.0", reason="sru 2.6 has no SRU++")

LENGTH, BATCH, IN, H = 6, 4, 5, 7


class Custom(nn.Module):
    """U, and V if asked for, from two linear maps."""

    def __init__(self, inputs: int, outputs: int, gates: int = 0):
        super().__init__()
        self.u = nn.Linear(inputs, outputs)
        self.v = nn.Linear(inputs, gates) if gates else None

    def reset_parameters(self) -> None:
        self.u.reset_parameters()
        if self.v is not None:
            self.v.reset_parameters()

    def forward(self, x):
        return self.u(x) if self.v is None else (self.u(x), self.v(x))


def both(kind: str, *args, dtype=torch.float64, **kwargs):
    """The package's module and ours from the same seed."""
    torch.manual_seed(3)
    theirs = getattr(sru, kind)(*args, **kwargs)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    mine = getattr(ours, kind)(*args, **kwargs, **({} if kind == "SRUpp" else {"sru_version": VERSION}))
    assert torch.equal(torch.get_rng_state(), after), "initialisation draws other numbers"
    return theirs.to(dtype), mine.to(dtype)


def same_parameters(theirs: nn.Module, mine: nn.Module) -> None:
    """Bit-identical initial values, after loading the package's state_dict into a second module."""
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    mine.load_state_dict(theirs.state_dict())
    for key, value in mine.state_dict().items():
        assert torch.equal(before[key], value), key


def run(module, x, *args, **kwargs):
    """Results and gradients of one call, dropout drawn from the same seed."""
    torch.manual_seed(5)
    x = PackedSequence(x.data.clone().requires_grad_(), *x[1:]) if isinstance(x, PackedSequence) else x
    x = x if isinstance(x, PackedSequence) else x.clone().requires_grad_()
    kwargs = {k: v.clone().requires_grad_() if k == "c0" else v for k, v in kwargs.items()}
    h, c, *rest = module(x, *args, **kwargs)
    h = h.data if isinstance(h, PackedSequence) else h
    weights = torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)
    ((h * weights).sum() + c.pow(2).sum()).backward()
    found = [h, c, (x.data if isinstance(x, PackedSequence) else x).grad]
    found += [kwargs["c0"].grad] if "c0" in kwargs else []
    found += [t for r in rest for t in r["saved_inputs"]]
    norms = sorted(p.grad.double().norm().item() for p in module.parameters() if p.grad is not None)
    return [*found, torch.tensor(norms, dtype=h.dtype)]


def compare(theirs, mine, x, *args, **kwargs) -> None:
    for mode in (True, False):
        theirs.train(mode), mine.train(mode)
        theirs.zero_grad(), mine.zero_grad()
        for a, b in zip(run(theirs, x, *args, **kwargs), run(mine, x, *args, **kwargs), strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


OPTIONS = {
    "default": {},
    "one layer": {"num_layers": 1},
    "dropout": {"num_layers": 3, "dropout": 0.3},
    "rnn_dropout": {"rnn_dropout": 0.4, "dropout": 0.2},
    "bidirectional": {"bidirectional": True, "dropout": 0.2, "num_layers": 3},
    "projection": {"projection_size": 3},
    "wide projection": {"projection_size": 6},
    "highway_bias": {"highway_bias": -1.5},
    "layer_norm": {"layer_norm": True},
    "normalize_after": {"layer_norm": True, "normalize_after": True, "bidirectional": True},
    "no skip": {"has_skip_term": False},
    "rescale": {"rescale": True, "highway_bias": -1.0, "num_layers": 3},
    "use_tanh": {"use_tanh": True},
    "v1": {"v1": True},
    "compatible": {"nn_rnn_compatible_return": True, "bidirectional": True},
    "input first": {"proj_input_to_hidden_first": True},
    "weight_c_init": {"weight_c_init": 0.3},
    "everything": {
        "num_layers": 3,
        "dropout": 0.2,
        "rnn_dropout": 0.1,
        "bidirectional": True,
        "projection_size": 4,
        "highway_bias": -2.0,
        "layer_norm": True,
        "rescale": True,
        "use_tanh": True,
        "proj_input_to_hidden_first": True,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options):
    """Every option: initial values, results and gradients with dropout of the same seed, masks and c0."""
    theirs, mine = both("SRU", IN, H, **options)
    same_parameters(theirs, mine)
    torch.manual_seed(1)
    out = H * (2 if options.get("bidirectional") else 1)
    x = torch.randn(LENGTH, BATCH, IN, dtype=torch.float64)
    c0 = torch.randn(options.get("num_layers", 2), BATCH, out, dtype=torch.float64)
    pad = torch.arange(LENGTH)[:, None] >= torch.tensor([6, 3, 5, 1])
    compare(theirs, mine, x)
    compare(theirs, mine, x, c0=c0, mask_pad=pad)
    compare(theirs, mine, pack_padded_sequence(x, torch.tensor([3, 6, 1, 4]), enforce_sorted=False), c0=c0)


@pytest.mark.parametrize("gates", [False, True], ids=["U", "U and V"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_custom_module(gates, bidirectional):
    """A transform module of the user's, with V, which is added to weight_c in the package's layout."""
    out = H * (2 if bidirectional else 1)
    name = "custom_m" if VERSION == "2.6.0" else "transform_module"
    modules = [Custom(IN, out * 4, out * 2 * gates), Custom(out, out * 3, out * 2 * gates)]
    theirs = sru.SRU(IN, H, bidirectional=bidirectional, **{name: copy.deepcopy(modules)}).double()
    mine = ours.SRU(IN, H, bidirectional=bidirectional, **{name: modules}).double()
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(LENGTH, BATCH, IN, dtype=torch.float64)
    compare(theirs, mine, x)
    compare(theirs, mine, pack_padded_sequence(x, torch.tensor([6, 3, 2, 2])))


def test_positional():
    """Arguments in the version's own positional order."""
    if VERSION == "2.6.0":
        args = (IN, H, 2, 0.1, 0.2, False, 3, True, True, -1.0, True, True, False, False, None, True)
    else:
        args = (IN, H, 2, 0.1, 0.2, False, 3, -1.0, True, True, None, True, True, True, False, False, True)
    torch.manual_seed(3)
    theirs = sru.SRU(*args).double()
    torch.manual_seed(3)
    mine = ours.SRU(*args).double()
    same_parameters(theirs, mine)
    compare(theirs, mine, torch.randn(LENGTH, BATCH, IN, dtype=torch.float64))


@pytest.mark.parametrize("masked", [False, True])
def test_cell(masked):
    """A single layer, with its own defaults."""
    theirs, mine = both("SRUCell", IN, H, dropout=0.2)
    same_parameters(theirs, mine)
    x = torch.randn(LENGTH, BATCH, IN, dtype=torch.float64)
    pad = torch.arange(LENGTH)[:, None] >= torch.tensor([6, 3, 5, 1])
    compare(theirs, mine, x, c0=torch.randn(BATCH, H, dtype=torch.float64), mask_pad=pad if masked else None)


PLUS = {
    "default": {},
    "dropout": {"dropout": 0.3, "num_layers": 3},
    "heads": {"num_heads": 2, "bidirectional": True},
    "layer_norm": {"layer_norm": True},
    "normalize_after": {"layer_norm": True, "normalize_after": True},
    "no attn_layer_norm": {"attn_layer_norm": False},
    "every": {"attention_every_n_layers": 2, "num_layers": 4},
    "last": {"attention_last_n_layers": 1, "num_layers": 3, "dropout": 0.1},
    "rescale": {"rescale": True, "highway_bias": -1.0},
    "compatible": {"nn_rnn_compatible_return": True, "bidirectional": True},
    "input first": {"proj_input_to_hidden_first": True, "weight_c_init": 0.2},
}


@newer
@pytest.mark.parametrize("options", PLUS.values(), ids=PLUS)
def test_srupp(options):
    """SRU++: initial values, attention with pads, memory and its pads, additive masks.

    The package cannot run packed sequences on a current torch.
    """
    theirs, mine = both("SRUpp", IN, H, 4, **options)
    same_parameters(theirs, mine)
    with torch.no_grad():  # attention begins at 0
        for a, b in zip(theirs.rnn_lst, mine.rnn_lst, strict=True):
            if hasattr(a.transform_module, "alpha"):
                a.transform_module.alpha.fill_(0.7)
                b.transform_module.alpha.fill_(0.7)
    layers, out = options.get("num_layers", 2), H * (2 if options.get("bidirectional") else 1)
    x = torch.randn(LENGTH, BATCH, IN, dtype=torch.float64)
    c0 = torch.randn(layers, BATCH, out, dtype=torch.float64)
    pad = torch.arange(LENGTH)[:, None] >= torch.tensor([6, 3, 5, 1])
    first = out if options.get("proj_input_to_hidden_first") else IN
    memory = [torch.randn(3, BATCH, out if i else first, dtype=torch.float64) for i in range(layers)]
    memory_pad = torch.arange(3)[:, None] < torch.tensor([0, 1, 2, 3])
    causal = torch.full((LENGTH, LENGTH + 3), -torch.inf, dtype=torch.float64).triu(4)
    compare(theirs, mine, x)
    compare(theirs, mine, x, c0=c0, mask_pad=pad)
    compare(theirs, mine, x, memory=memory, attn_mask=causal)
    compare(theirs, mine, x, memory=memory, mask_pad=pad, memory_mask_pad=memory_pad)
