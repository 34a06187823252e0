"""What SRU and SRU++ refuse, and in which words."""

from __future__ import annotations

import pytest
import torch
from helpers import randn
from sru_models import F64, IN, LENGTHS, MODELS, PAD, B, H, L
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
import fastrnn.compat.sru as compat

ERRORS = {
    "dimensions": (lambda m: m(randn(B, IN, dtype=F64)), ValueError, "input should be"),
    "features": (lambda m: m(randn(L, B, IN + 1, dtype=F64)), RuntimeError, "input_size = 5, got 6"),
    "dtype": (lambda m: m(randn(L, B, IN)), ValueError, "dtype torch.float32, got torch.float64"),
    "no tensor": (lambda m: m([1.0]), TypeError, "input should be a Tensor, got a list"),
    "nested": (
        lambda m: m(torch.nested.nested_tensor([randn(2, IN), randn(1, IN)])),
        RuntimeError,
        "input should be a dense Tensor, got a nested one",
    ),
    "c0": (
        lambda m: m(randn(L, B, IN, dtype=F64), randn(2, B, H + 1, dtype=F64)),
        ValueError,
        r"c0 should have size \[2, 4, 6\], got \[2, 4, 7\]",
    ),
    "c0 dtype": (lambda m: m(randn(L, B, IN, dtype=F64), randn(2, B, H)), ValueError, "c0 should have the"),
    "mask": (
        lambda m: m(randn(L, B, IN, dtype=F64), mask_pad=PAD.t()),
        ValueError,
        r"mask_pad should have size \[7, 4\], got \[4, 7\]",
    ),
    "mask device": (
        lambda m: m(randn(L, B, IN, dtype=F64), mask_pad=PAD.to("meta")),
        RuntimeError,
        "mask_pad should be on the input's device cpu, got meta",
    ),
    "mask and packed": (
        lambda m: m(pack_padded_sequence(randn(L, B, IN, dtype=F64), LENGTHS, False, False), mask_pad=PAD),
        ValueError,
        "mask_pad should be None",
    ),
}
PLUS_ERRORS = {
    "memory's dtype": (
        lambda m, x: m(x, memory=[torch.zeros(2, B, IN), None]),
        ValueError,
        "memory should have the input's dtype torch.float64, got torch.float32",
    ),
    "memory type": (lambda m, x: m(x, memory=x), ValueError, "memory should be a list"),
    "memory length": (lambda m, x: m(x, memory=[x]), ValueError, "one entry a layer, 2, got 1"),
    "memory size": (
        lambda m, x: m(x, memory=[x[:, :2], None]),
        ValueError,
        r"memory should .*\[7, 4, 5\]",
    ),
    "attn_mask size": (lambda m, x: m(x, attn_mask=torch.zeros(L, B)), ValueError, r"attn_mask .*\[7, 7\]"),
    "attn_mask bool": (
        lambda m, x: m(x, attn_mask=torch.zeros(L, L, dtype=torch.bool)),
        TypeError,
        "added to the scores",
    ),
    "memory_mask_pad": (
        lambda m, x: m(x, memory=[x, None], memory_mask_pad=PAD.t()),
        ValueError,
        r"memory_mask_pad should have size \[7, 4\]",
    ),
    "two masks": (
        lambda m, x: m(x, attn_mask=torch.zeros(L, L), is_causal=True),
        ValueError,
        "attn_mask should be None",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("name", ["SRU", "SRUpp"])
def test_errors(name, call, kind, message):
    """What does not fit is refused: the message names the argument, what was expected and what came."""
    with pytest.raises(kind, match=message):
        call(MODELS[name]())


@pytest.mark.parametrize(("call", "kind", "message"), PLUS_ERRORS.values(), ids=PLUS_ERRORS)
def test_attention_errors(call, kind, message):
    """As test_errors, for the arguments of SRU++ alone."""
    with pytest.raises(kind, match=message):
        call(MODELS["SRUpp"](), randn(L, B, IN, dtype=F64))


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: fastrnn.SRU(0, 3), ValueError, "input_size should be greater than zero, got 0"),
        (lambda: fastrnn.SRU(3, 2.5), TypeError, "hidden_size should be an int, got float"),
        (lambda: fastrnn.SRU(3, 3, dropout=1.5), ValueError, "dropout should be a probability"),
        (lambda: fastrnn.SRU(3, 3, projection_size=[1]), ValueError, "one entry a layer, 2, got 1"),
        (lambda: fastrnn.SRU(3, 3, projection_size=-1), ValueError, "projection_size should be zero or more"),
        (lambda: fastrnn.SRU(3, 3, backend="fast"), ValueError, "backend should be 'auto'"),
        (lambda: fastrnn.SRU(3, 3, backend="cudnn"), ValueError, "'fused' or 'reference', got 'cudnn'"),
        (lambda: fastrnn.SRU(3, 3, dropout=None), TypeError, "dropout should be a number, got NoneType"),
        (lambda: fastrnn.SRU(3, 3, highway_bias="-1"), TypeError, "highway_bias should be a number, got str"),
        (
            lambda: fastrnn.SRU(3, 3, weight_c_init="1"),
            TypeError,
            "weight_c_init should be a number, got str",
        ),
        (
            lambda: fastrnn.SRU(3, 3, 1, transform_module=3),
            TypeError,
            "should be a torch.nn.Module or a function, got int",
        ),
        (lambda: fastrnn.SRUpp(3, 3, 4, dropout=None), TypeError, "dropout should be a number, got NoneType"),
        (lambda: fastrnn.SRU(3, 3, init="2"), ValueError, "init should be '3.0' or '2.6'"),
        (
            lambda: fastrnn.SRU(3, 3, custom_m=nn.Linear(3, 9), transform_module=nn.Linear(3, 9)),
            TypeError,
            "the same argument",
        ),
        (lambda: fastrnn.SRUpp(3, 3, 5, num_heads=2), ValueError, "divisible by num_heads = 2, got 5"),
        (
            lambda: fastrnn.SRUpp(3, 3, 4, attention_every_n_layers=2, attention_last_n_layers=1),
            ValueError,
            "should not both be set",
        ),
        (lambda: fastrnn.SRU(3, 3, projection_size=None), TypeError, "projection_size should .* NoneType"),
        (lambda: fastrnn.SRU(3, 3, highway_bias={}), TypeError, "highway_bias should be a number, got dict"),
        (lambda: fastrnn.SRUpp(3, 3, 4, attention_last_n_layers=None), TypeError, "should be an int, got No"),
        (lambda: fastrnn.SRUppAttention(3, 2.5, 4), TypeError, "out_features should be an int, got float"),
        (lambda: fastrnn.SRUppProjectedLinear(3, 9, 0), ValueError, "proj_features should be greater than"),
        (lambda: fastrnn.SRUppProjectedLinear(3, 9, 4, dropout=2), ValueError, "dropout should be a prob"),
        (lambda: compat.SRU(3, 3, sru_version="1"), ValueError, "sru_version should be"),
    ],
)
def test_constructor_errors(build, kind, message):
    """Bad arguments are refused where they are given."""
    with pytest.raises(kind, match=message):
        build()


@pytest.mark.parametrize(
    ("input", "kind", "message"),
    [
        (None, TypeError, "input should be a Tensor, got NoneType"),
        (torch.zeros(L, B, IN + 1), RuntimeError, "in_features = 5, got 6"),
        (torch.zeros(()), ValueError, "in_features = 5, got a scalar"),
    ],
)
@pytest.mark.parametrize("transform", [fastrnn.SRUppAttention, fastrnn.SRUppProjectedLinear])
def test_errors_of_transforms_called_alone(transform, input, kind, message):
    """The transforms of SRU++ are public: what is wrong with their input is theirs to say."""
    with pytest.raises(kind, match=message):
        transform(IN, 4 * H, 4)(input)


def test_sparse_input():
    """A sparse input gives what the same numbers give in a dense one."""
    x = randn(L, B, IN, dtype=F64)
    for name in ("SRU", "SRUpp"):
        m = MODELS[name]()
        assert torch.equal(m(x.to_sparse())[0], m(x)[0])
    assert torch.equal(m[0](x.to_sparse())[0], m[0](x)[0])


def test_transform_module_errors():
    """A transform module that returns the wrong size, or too much, is told so."""
    x = randn(L, B, IN, dtype=F64)
    small = fastrnn.SRU(IN, H, 1, transform_module=nn.Linear(IN, 3, dtype=F64), dtype=F64)
    with pytest.raises(ValueError, match="should return U of size"):
        small(x)

    class Three(nn.Linear):
        def forward(self, x):
            return x, x, x

    with pytest.raises(ValueError, match="1 or 2 tensors, got 3"):
        fastrnn.SRU(IN, H, 1, transform_module=Three(IN, 4 * H, dtype=F64), dtype=F64)(x)
