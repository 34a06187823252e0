"""Code and checkpoints written for the ``sru`` package."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from sru_models import IN, B, H, L
from torch import nn

import fastrnn
import fastrnn.compat.sru as compat


def test_loads_2_6():
    """2.6's keys and layout, also of a layer whose projection 2.6 ignored, and of one with custom_m."""
    new = fastrnn.SRU(IN, H, projection_size=4)
    old = {}
    for i, layer in enumerate(new.rnn_lst):
        first, last = layer.transform_module
        old |= {f"rnn_lst.{i}.weight_proj": first.weight.t(), f"rnn_lst.{i}.weight": last.weight.t()}
        old |= {f"rnn_lst.{i}.{k}": getattr(layer, k) for k in ("weight_c", "bias", "scale_x")}
    other = fastrnn.SRU(IN, H, projection_size=4)
    assert other.load_state_dict({k: v.detach().clone() for k, v in old.items()}).missing_keys == []
    for key, value in new.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key

    ignored = compat.SRU(IN, H, projection_size=5, sru_version="2.6.0")  # no narrower than the input
    assert [layer.projection_size for layer in ignored.rnn_lst] == [0, 5]
    checkpoint = {
        "rnn_lst.0.weight": ignored.rnn_lst[0].weight.detach(),
        "rnn_lst.1.weight": ignored.rnn_lst[1].weight.detach(),
        "rnn_lst.1.weight_proj": ignored.rnn_lst[1].weight_proj.detach(),
    }
    checkpoint |= {k: v for k, v in ignored.state_dict().items() if "transform" not in k}
    target = fastrnn.SRU(IN, H, projection_size=5)
    state = torch.get_rng_state()
    target.load_state_dict(checkpoint)
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(L, B, IN)
    assert torch.equal(target(x)[0], ignored(x)[0])

    custom = compat.SRU(IN, H, 1, custom_m=nn.Linear(IN, 4 * H))
    renamed = {k.replace("transform_module", "custom_m"): v for k, v in custom.state_dict().items()}
    compat.SRU(IN, H, 1, custom_m=nn.Linear(IN, 4 * H)).load_state_dict(renamed)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fastrnn.SRU(IN, H + 1, projection_size=4).load_state_dict(old)


def test_compat_signatures():
    """Positional calls of both versions, by the types of their arguments; defaults and names of each."""
    v26 = compat.SRU(IN, H, 2, 0.1, 0.0, False, 0, True, False, -1.0, True)
    assert (v26[0].activation, v26[0].highway_bias, v26[0].init) == ("tanh", -1.0, "2.6")
    v30 = compat.SRU(IN, H, 2, 0.1, 0.0, False, 0, -1.0, True, True)
    assert (v30[0].activation, v30[0].highway_bias, v30[0].normalize_after) == ("none", -1.0, True)
    assert v30[0].init == "3.0"
    assert compat.SRU(IN, H).rnn_lst[0].weight_c_init == 1.0
    assert compat.SRU(IN, H, sru_version="2.6.0").rnn_lst[0].weight_c_init is None
    cell = compat.SRUCell(IN, H, n_proj=3)
    assert (cell.projection_size, cell.rescale, cell.weight.shape) == (3, True, (3, 4 * H))
    assert cell.weight_proj.shape == (IN, 3)
    cell.weight.data.zero_()
    assert not cell.transform_module[1].weight.any()
    assert isinstance(compat.SRU(IN, H)[0], compat.SRUCell)
    assert isinstance(compat.SRUpp(IN, H, 4)[1], compat.SRUppCell)
    with pytest.raises(TypeError, match="by position and by name"):
        compat.SRU(IN, H, 2, num_layers=2)
    compat.default_version = "2.6.0"
    try:
        assert compat.SRU(IN, H)[0].init == "2.6"
    finally:
        compat.default_version = compat.__version__


def _cells_2_6():
    """A cell without and one with a projection, with the weights that 2.6 has."""
    torch.manual_seed(0)
    plain = compat.SRUCell(IN, H, sru_version="2.6.0")
    projected = compat.SRUCell(IN, H, n_proj=2, sru_version="2.6.0")
    return [(plain, "weight"), (projected, "weight"), (projected, "weight_proj")]


@pytest.mark.parametrize("case", range(3))
def test_weight_has_its_gradient(case):
    """cell.weight is a new view at every look, and yet has the gradient, which may be read, clipped, set and
    cleared there; so has requires_grad. A penalty on it reaches the Parameter."""
    cell, name = _cells_2_6()[case]
    own = cell._linear(name).weight
    x = torch.randn(L, B, IN)
    assert getattr(cell, name).grad is None
    cell(x)[0].sum().backward()
    weight = getattr(cell, name)
    assert weight.shape == own.shape[::-1]
    assert own.grad.abs().sum() > 0
    assert torch.equal(weight.grad, own.grad.t())
    weight.grad.mul_(0.5)
    nn.utils.clip_grad_norm_([getattr(cell, name)], 1e-3)
    assert own.grad.norm() <= 1.01e-3
    weight.grad = torch.ones_like(weight)
    assert torch.equal(own.grad, torch.ones_like(own))
    weight.grad = None
    assert own.grad is None
    (getattr(cell, name) ** 2).sum().backward()
    assert torch.allclose(own.grad, 2 * own)
    assert type(weight * 2) is torch.Tensor
    getattr(cell, name).requires_grad = False
    assert not own.requires_grad
    getattr(cell, name).requires_grad_()
    assert own.requires_grad
    with torch.no_grad():
        nn.init.constant_(getattr(cell, name), 3.0)
        getattr(cell, name)[0, 1] = 4.0
    assert own[1, 0] == 4
    assert own[0, 0] == 3


@pytest.mark.parametrize("case", range(3))
def test_weight_may_be_assigned(case):
    """A Parameter in 2.6's layout becomes the layer's, and is the one that optimizers train."""
    cell, name = _cells_2_6()[case]
    other, _ = _cells_2_6()[case]
    keys = list(cell.state_dict())
    parameter = nn.Parameter(torch.randn_like(getattr(cell, name)))
    values = parameter.detach().clone()
    setattr(cell, name, parameter)
    assert list(cell.state_dict()) == keys
    assert any(p is parameter for p in cell.parameters())
    assert torch.equal(getattr(cell, name), values)
    x = torch.randn(L, B, IN)
    with torch.no_grad():
        getattr(other, name).copy_(values)
    assert torch.equal(cell(x)[0], other(x)[0])
    cell(x)[0].sum().backward()
    torch.optim.SGD([parameter], 0.1).step()
    assert not torch.equal(getattr(cell, name), values)
    setattr(cell, name, parameter)  # once more changes nothing
    assert getattr(cell, name).shape == values.shape
    setattr(other, name, getattr(cell, name))  # tied
    assert other._linear(name).weight is parameter
    with pytest.raises(RuntimeError, match=rf"{name}: expected a Parameter of size .*{values.shape[0]}"):
        setattr(cell, name, nn.Parameter(torch.ones(values.shape[0] + 1, values.shape[1])))
    with pytest.raises(TypeError, match=rf"{name}: expected a torch.nn.Parameter, got"):
        setattr(cell, name, values)


@pytest.mark.parametrize("case", range(3))
def test_weight_may_be_copied_and_saved(case, tmp_path):
    """Copies and files hold a Parameter of 2.6's shape that is nobody else's and may be assigned."""
    cell, name = _cells_2_6()[case]
    values = getattr(cell, name).detach().clone()
    copied = copy.deepcopy(getattr(cell, name))
    torch.save({name: getattr(cell, name)}, tmp_path / "weight.pt")
    loaded = torch.load(tmp_path / "weight.pt")[name]  # weights_only, which knows no class of fastrnn's
    for own in (copied, loaded, pickle.loads(pickle.dumps(getattr(cell, name)))):
        assert type(own) is nn.Parameter
        assert own.requires_grad
        assert torch.equal(own, values)
        with torch.no_grad():
            getattr(cell, name).zero_()
        assert torch.equal(own, values)
        setattr(cell, name, own)
        assert torch.equal(getattr(cell, name), values)


def test_weight_of_none():
    with pytest.raises(AttributeError, match="no weight_proj to assign to"):
        compat.SRUCell(IN, H, sru_version="2.6.0").weight_proj = nn.Parameter(torch.ones(2, 2))


def test_custom_m_is_a_function():
    """A plain function, as sru takes one: alone, with V, one for every layer or one each; it keeps its name,
    and classes, which are callable too, stay errors."""
    weight = torch.randn(4 * H, IN)
    x = torch.randn(L, B, IN)

    def linear(x):
        return x @ weight.t()

    module = nn.Linear(IN, 4 * H, bias=False)
    module.weight.data.copy_(weight)
    cell = compat.SRUCell(IN, H, custom_m=linear)
    like = compat.SRUCell(IN, H, custom_m=module)
    like.load_state_dict({**cell.state_dict(), "transform_module.weight": weight})
    assert cell.custom_m is linear
    assert torch.allclose(cell(x)[0], like(x)[0], atol=1e-6)
    assert copy.deepcopy(cell).custom_m is linear
    assert "linear" in repr(cell)

    with_v = compat.SRUCell(IN, H, custom_m=lambda x: (linear(x), torch.zeros(2 * H)))
    with_v.load_state_dict(cell.state_dict())
    assert torch.allclose(with_v(x)[0], cell(x)[0], atol=1e-6)

    each = [linear, lambda h: torch.cat([h, h, h], -1).view(*h.shape[:-1], 3 * H)]
    stack = fastrnn.SRU(IN, H, 2, custom_m=each)
    y, _ = stack(x)
    assert y.shape == (L, B, H)
    shared = compat.SRU(H, H, 2, custom_m=each[1])
    assert shared(torch.randn(L, B, H))[0].shape == (L, B, H)
    packed = nn.utils.rnn.pack_padded_sequence(x, [L] * B)
    assert torch.allclose(stack(packed)[0].data, y.flatten(0, 1), atol=1e-6)

    cell.custom_m = module
    assert cell.custom_m is cell.transform_module
    assert torch.allclose(cell(x)[0], with_v(x)[0], atol=1e-6)
    cell.custom_m = linear
    assert cell.custom_m is linear
    for bad in (nn.Linear, 3):
        with pytest.raises(TypeError, match=r"should be a torch.nn.Module or a function, got"):
            compat.SRUCell(IN, H, custom_m=bad)
