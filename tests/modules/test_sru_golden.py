"""SRU and SRU++ against results of the ``sru`` package, versions 2.6.0 and 3.0.0.dev6, computed in float64.

tests/data/sru_golden.pt.gz holds for each case the arguments, inputs, state_dict (also at initialisation,
from seed 0), outputs, upstream gradients and gradients.
"""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
import fastrnn.compat.sru as compat

DATA = Path(__file__).parents[1] / "data" / "sru_golden.pt.gz"
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
BACKENDS = ("auto", "reference")


@functools.cache
def cases() -> dict:
    with gzip.open(DATA) as file:
        return torch.load(file, weights_only=True)


LAYERS = [name for name, case in cases().items() if case["kind"] != "recurrence"]
RECURRENCES = [name for name, case in cases().items() if case["kind"] == "recurrence"]


def differentiable(value, dtype):
    """Floating-point tensors as leaves in dtype, everything else as it is."""
    if isinstance(value, list):
        return [differentiable(v, dtype) for v in value]
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().to(dtype).clone().requires_grad_()
    return value


def check(found: dict, expected: dict, limit: float) -> None:
    """Everything expected was found, within limit of the larger of 1 and its largest magnitude."""
    for name, value in expected.items():
        assert found[name].shape == value.shape, f"{name}: {found[name].shape}, not {value.shape}"
        error = (found[name].double() - value).abs().max() / value.abs().max().clamp_min(1)
        assert error <= limit, f"{name}: {error:.1e}"


def parameter_gradients(module) -> dict:
    """Gradients by the names of the module and by those of 2.6, in either layout."""
    found = {}
    for name, p in module.named_parameters():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        found[f"param:{name}"] = grad
        for ours, theirs in (
            ("transform_module.weight", "weight"),
            ("transform_module.1.weight", "weight"),
            ("transform_module.0.weight", "weight_proj"),
        ):
            if name.endswith(ours):
                found[f"param:{name.removesuffix(ours)}{theirs}"] = grad.T
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, dtype, backend):
    """Outputs, states, saved inputs and every gradient of the modules, with the package's own checkpoint."""
    case = cases()[name]
    module = getattr(fastrnn, case["kind"])(**case["kwargs"], backend=backend)
    module.to(dtype).load_state_dict(case["state_dict"])
    module.train(case["training"])
    masks = iter([mask.to(dtype) for mask in case["dropout_masks"]])
    if case["dropout_masks"]:
        for layer in module.rnn_lst:
            layer.get_dropout_mask_ = lambda size, p: next(masks)

    inputs = {key: differentiable(value, dtype) for key, value in case["inputs"].items()}
    lengths = inputs.get("lengths")
    x = inputs["x"] if lengths is None else pack_padded_sequence(inputs["x"], lengths, enforce_sorted=False)
    h, c, *rest = module(x, **{k: v for k, v in inputs.items() if k not in ("x", "lengths")})
    assert next(masks, None) is None
    h = pad_packed_sequence(h)[0] if isinstance(h, PackedSequence) else h
    found = {"h": h, "c": c}
    for saved in rest:
        found |= {f"saved_inputs.{i}": t for i, t in enumerate(saved["saved_inputs"])}
        found |= {f"saved_inputs[{i}]": t for i, t in enumerate(saved["saved_inputs"])}
    expected = {}
    for key, value in case["outputs"].items():
        if isinstance(value, list):
            expected |= {f"{key}[{i}]": t for i, t in enumerate(value)}
        else:
            expected[key] = value
    check(found, expected, LIMITS[dtype])

    keys = list(case["gout"])
    torch.autograd.backward([found[k] for k in keys], [case["gout"][k].to(dtype) for k in keys])
    gradients = parameter_gradients(module)
    gradients |= {k: v.grad for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    gradients |= {f"memory.{i}": t.grad for i, t in enumerate(inputs.get("memory", []))}
    gradients |= {f"memory[{i}]": t.grad for i, t in enumerate(inputs.get("memory", []))}
    missing = case["grads"].keys() - gradients.keys()
    assert not missing, f"gradients of {missing} were not compared"
    check(gradients, case["grads"], LIMITS[dtype])


@pytest.mark.parametrize("name", LAYERS)
def test_initial_values(name):
    """From the same seed the same parameters, bit for bit, under the same keys in the same order.

    torch's normal distribution ends in a logarithm and a cosine, whose last bits are those of the vector
    library that the values were recorded with; a processor without it is held to those within 4 ulp of the
    largest.
    """
    case = cases()[name]
    torch.manual_seed(case["seed"])
    if case["sru_version"].startswith("2"):
        module = compat.SRU(**case["kwargs"], sru_version="2.6.0")
        expected = fastrnn.SRU(**case["kwargs"])
        expected.load_state_dict(case["init_state_dict"])
        expected = expected.state_dict()
    else:
        module = getattr(fastrnn, case["kind"])(**case["kwargs"])
        expected = case["init_state_dict"]
    found = module.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
            assert torch.equal(found[key], value), key
        elif value.numel():
            limit = 4 * torch.finfo(value.dtype).eps * value.abs().max()
            assert (found[key] - value).abs().max() <= limit, key


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrence(name, dtype):
    """The recurrence alone, through the package's own function and layout."""
    case = cases()[name]
    tensors = {key: differentiable(value, dtype) for key, value in case["inputs"].items()}
    options = {k: v for k, v in case["kwargs"].items() if k not in ("k", "custom")}
    mask_c = tensors.pop("mask_c", None)
    h, c = compat.ops.elementwise_recurrence_naive(
        *(tensors[key] for key in ("U", "x", "weight_c", "bias", "c_init")),
        **options,
        dropout_mask_c=None if mask_c is None else mask_c.detach(),
        mask_pad=tensors.get("mask_pad"),
    )
    check({"h": h, "c": c}, case["outputs"], LIMITS[dtype])
    torch.autograd.backward([h, c], [case["gout"][k].to(dtype) for k in ("h", "c")])
    gradients = {k: t.grad for k, t in tensors.items() if isinstance(t, torch.Tensor)}
    check(gradients, case["grads"], LIMITS[dtype])
