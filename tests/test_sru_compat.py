"""Code and checkpoints written for the ``sru`` package."""

from __future__ import annotations

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
