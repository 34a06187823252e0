"""Parameters: names, initial values, checkpoints, pickles, and whatever else replaces weights."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from helpers import CELLS, LAYERS, compare, flat, pair, randn
from tolerances import assert_close
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastrnn

OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "num_layers": 3},
    {"proj_size": 2, "bidirectional": True, "num_layers": 2},
    {"proj_size": 3, "bias": False},
]
LAYER_OPTIONS = [(n, o) for n in LAYERS for o in OPTIONS if n == "LSTM" or "proj_size" not in o]
ALL = [*LAYER_OPTIONS, *((n, o) for n in CELLS for o in ({}, {"bias": False}))]
X = randn(4, 3, 5)


def _same_outputs(ours, theirs, x=X):
    x = x[0] if isinstance(theirs, nn.RNNCellBase) else x
    for got, expected in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        assert_close(got, expected, expected.dtype, slack=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize(("name", "options"), ALL)
def test_seeded_initialisation(name, options, dtype):
    """The same seed gives the same names, order, bits, and state of the generator afterwards."""
    modules, states = [], []
    for namespace in (fastrnn, nn):
        torch.manual_seed(3)
        modules.append(getattr(namespace, name)(5, 7, dtype=dtype, **options))
        states.append(torch.get_rng_state())
    ours, theirs = (list(m.named_parameters()) for m in modules)
    assert [k for k, _ in ours] == [k for k, _ in theirs]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    assert torch.equal(*states)
    assert modules[0].__dict__["_parameters"].keys() == modules[1].__dict__["_parameters"].keys()
    for m, k in zip(modules, range(2), strict=True):
        torch.manual_seed(5)
        m.reset_parameters()
        states[k] = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in modules), strict=True))
    assert torch.equal(*states)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_checkpoints_both_ways(name, options):
    """state_dict has the same keys in the same order, and loads in both directions, strictly."""
    ours, theirs = getattr(fastrnn, name)(5, 7, **options), getattr(nn, name)(5, 7, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.load_state_dict(theirs.state_dict()) == nn.modules.module._IncompatibleKeys([], [])
    _same_outputs(ours, theirs)
    theirs.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    _same_outputs(ours, theirs)
    other = getattr(fastrnn, name)(5, 7, **options)
    other.load_state_dict(theirs.state_dict(), assign=True)
    _same_outputs(other, theirs)


@pytest.mark.parametrize(("name", "options"), LAYER_OPTIONS)
def test_bookkeeping(name, options):
    """The private lists that third-party code reads hold what torch's hold."""
    ours, theirs = pair(name, 5, 7, **options)
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert ours._all_weights == theirs._all_weights
    assert [w is getattr(ours, k) for w, k in zip(ours._flat_weights, ours._flat_weights_names, strict=True)]
    for group, expected in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(group, expected, strict=True))
    assert ours.flatten_parameters() is None
    missing = set(vars(theirs)) - set(vars(ours))
    assert not missing


@pytest.mark.parametrize(("name", "options"), ALL)
def test_pickles_and_copies(name, options):
    """Whole modules survive pickle, torch.save and deepcopy, tied to their own weights; options included."""
    ours, theirs = pair(name, 5, 7, **options)
    if name in LAYERS:
        ours.save, ours.backend = "recompute", "reference"
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for m in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), saved):
        assert type(m) is type(ours)
        assert repr(m) == repr(ours)
        _same_outputs(m, theirs)
        with torch.no_grad():
            m.get_parameter(next(iter(m.state_dict()))).zero_()
        _same_outputs(ours, theirs)
        changed = copy.deepcopy(theirs)
        changed.load_state_dict(m.state_dict())
        _same_outputs(m, changed)


def _older(state: dict, version: str) -> dict:
    """What a pickle written by an older torch holds."""
    state.pop("proj_size", None)
    state.pop("save", None)
    state.pop("backend", None)
    if version in ("names only", "weights"):
        del state["_flat_weights"], state["_flat_weights_names"]
    if version == "weights":
        groups = state.pop("_all_weights")
        state["all_weights"] = [[state["_parameters"][k] for k in group] for group in groups]
    return state


@pytest.mark.parametrize("version", ["before proj_size", "names only", "weights"])
@pytest.mark.parametrize("options", OPTIONS[:3])
@pytest.mark.parametrize("name", LAYERS)
def test_old_pickles(name, options, version):
    """Pickles without proj_size (before torch 1.8), without the list of weights, or without names load."""
    ours, theirs = pair(name, 5, 7, **options)
    old = type(ours).__new__(type(ours))
    old.__setstate__(_older(ours.__getstate__(), version))
    assert (old.proj_size, old.save, old.backend) == (0, "gates", "auto")
    assert old._all_weights == theirs._all_weights
    assert old._flat_weights_names == theirs._flat_weights_names
    _same_outputs(old, theirs)
    _same_outputs(copy.deepcopy(old), theirs)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_replaced_and_edited_weights(name):
    """There is no cache of weights: every way to change one shows in the next call."""
    ours, theirs = pair(name, 5, 7)
    key = "weight_hh_l0" if name in LAYERS else "weight_ih"
    new = randn(*getattr(ours, key).shape)

    def both(change):
        for m in (ours, theirs):
            change(m)
        _same_outputs(ours, theirs)

    before = flat(ours(X[0] if name in CELLS else X))[0]
    both(lambda m: setattr(getattr(m, key), "data", new.clone()))
    assert not torch.equal(before, flat(ours(X[0] if name in CELLS else X))[0])
    with torch.no_grad():
        both(lambda m: getattr(m, key).mul_(0.5))
        both(lambda m: getattr(m, key).copy_(new.mT.reshape(new.shape)))
    both(lambda m: setattr(m, key, nn.Parameter(new * 0.1)))
    both(lambda m: getattr(m, key).data.zero_())
    both(lambda m: torch.manual_seed(1) and m.reset_parameters())
    both(lambda m: setattr(getattr(m, key), "data", new.mT.contiguous().mT))  # strided


@pytest.mark.parametrize("name", LAYERS)
def test_weight_drop(name):
    """AWD-LSTM's weight drop deletes a parameter and sets a plain tensor in its place before every call."""
    ours, theirs = pair(name, 5, 7)
    raws = []
    for m in (ours, theirs):
        raw = nn.Parameter(m.weight_hh_l0.detach().clone())
        del m.weight_hh_l0
        raws.append(raw)
    for seed in range(3):
        for m, raw in zip((ours, theirs), raws, strict=True):
            torch.manual_seed(seed)
            m.weight_hh_l0 = nn.functional.dropout(raw, 0.5)
        _same_outputs(ours, theirs)
    for m in (ours, theirs):
        flat(m(X))[0].sum().backward()
    assert_close(raws[0].grad, raws[1].grad, torch.float32, gradient=True)


@pytest.mark.parametrize("name", LAYERS)
def test_deleted_weight(name):
    """A deleted weight must not stop a move to another device or dtype, and is named when it is missed."""
    ours, theirs = pair(name, 5, 7)
    for m in (ours, theirs):
        del m.weight_hh_l0
    _same_outputs(ours, theirs)  # both still hold it in _flat_weights
    for m in (ours, theirs):
        m.to(torch.float64)
        m.cpu()
        assert m._flat_weights[1] is None
    with pytest.raises(TypeError, match="weight_hh_l0"):
        ours(X.double())
    ours.weight_hh_l0 = nn.Parameter(randn(ours.weight_ih_l0.size(0), 7, dtype=torch.float64))
    assert ours(X.double())[0].shape == (4, 3, 7)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", ["old", "parametrized"])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_weight_norm(name, kind):
    """Both kinds of weight norm: values, gradients of g and v, and what comes back when it is removed."""
    ours, theirs = pair(name, 5, 7, dtype=torch.float64)
    key = "weight_hh_l0" if name in LAYERS else "weight_hh"
    for m in (ours, theirs):
        apply = nn.utils.weight_norm if kind == "old" else parametrizations.weight_norm
        apply(m, key)
    x = X.double()
    compare(ours, theirs, x[0] if name in CELLS else x)
    for m in (ours, theirs):
        for p in m.parameters():
            p.data.mul_(1.5)
    compare(ours, theirs, x[0] if name in CELLS else x)
    for m in (ours, theirs):
        if kind == "old":
            nn.utils.remove_weight_norm(m, key)
        else:
            nn.utils.parametrize.remove_parametrizations(m, key)
    compare(ours, theirs, x[0] if name in CELLS else x)


@pytest.mark.parametrize("name", LAYERS)
def test_prune(name):
    """Pruning masks a weight through a hook before every call, and can be made permanent."""
    ours, theirs = pair(name, 5, 7, dtype=torch.float64)
    for m in (ours, theirs):
        prune.l1_unstructured(m, "weight_hh_l0", amount=0.5)
    compare(ours, theirs, X.double())
    for m in (ours, theirs):
        prune.remove(m, "weight_hh_l0")
    compare(ours, theirs, X.double())


@pytest.mark.parametrize("name", LAYERS)
def test_tied_biases(name):
    """One parameter in two places: values, and the sum of both places' gradients."""
    ours, theirs = pair(name, 5, 7, 2, dtype=torch.float64)
    for m in (ours, theirs):
        m.bias_hh_l0 = m.bias_ih_l0
        m.weight_hh_l1 = m.weight_hh_l0
    assert len(list(ours.parameters())) == 6
    compare(ours, theirs, X.double())
    compare(copy.deepcopy(ours), theirs, X.double())


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_functional_call(name):
    """functional_call swaps the weights for one call, with gradients to the ones swapped in."""
    ours, theirs = pair(name, 5, 7)
    x = X[0] if name in CELLS else X
    before = flat(ours(x))
    new = {k: (p.detach() * 0.5).requires_grad_() for k, p in theirs.named_parameters()}
    outcomes = []
    for m in (ours, theirs):
        out = flat(torch.func.functional_call(m, new, (x,)))
        outcomes.append([*out, *torch.autograd.grad(sum(t.sum() for t in out), list(new.values()))])
    for got, expected in zip(*outcomes, strict=True):
        assert_close(got, expected, torch.float32, gradient=True)
    assert all(torch.equal(a, b) for a, b in zip(flat(ours(x)), before, strict=True))
    some = {k: v for k, v in new.items() if "hh" in k}
    for got, expected in zip(
        *(flat(torch.func.functional_call(m, some, (x,))) for m in (ours, theirs)), strict=True
    ):
        assert_close(got, expected, torch.float32, slack=2)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_meta_device(name):
    """Made without memory, then given some: the weights in use are the ones that were filled."""
    cls = getattr(fastrnn, name)
    _, theirs = pair(name, 5, 7)
    empty = cls(5, 7, device="meta").to_empty(device="cpu")
    empty.load_state_dict(theirs.state_dict())
    _same_outputs(empty, theirs)
    assigned = cls(5, 7, device="meta")
    assigned.load_state_dict(theirs.state_dict(), assign=True)
    _same_outputs(assigned, theirs)
    with torch.device("meta"):
        m = cls(5, 7)
    assert all(p.is_meta for p in m.parameters())


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_conversions(name, swap):
    """.double(), .to() and friends rebuild the list of weights, also where they swap tensors in place."""
    ours, theirs = pair(name, 5, 7)
    previous = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for m in (ours, theirs):
            m.double()
        _same_outputs(ours, theirs, X.double())
        for m in (ours, theirs):
            m.to(torch.float32).share_memory()
        _same_outputs(ours, theirs)
        ours.requires_grad_(False)
        assert not flat(ours(X[0] if name in CELLS else X))[0].requires_grad
    finally:
        torch.__future__.set_swap_module_params_on_conversion(previous)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_not_kept_alive(name):
    """No cache means no leak: replaced weights and collected modules are gone."""
    m = getattr(fastrnn, name)(5, 7)
    m(X)
    old = weakref.ref(m.weight_hh_l0)
    m.weight_hh_l0 = nn.Parameter(m.weight_hh_l0.detach().clone())
    m(X)
    gc.collect()
    assert old() is None
    module = weakref.ref(m)
    del m
    gc.collect()
    assert module() is None


@pytest.mark.parametrize("name", LAYERS)
def test_data_parallel_replicas(name):
    """A replica's weights are plain attributes, and its lists are its own."""
    ours, theirs = pair(name, 5, 7)
    replica = ours._replicate_for_data_parallel()
    assert replica._flat_weights is not ours._flat_weights
    for key, p in ours.named_parameters():
        setattr(replica, key, p * 1.0)
    _same_outputs(replica, theirs)
    _same_outputs(ours, theirs)
