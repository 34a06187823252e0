"""The operators that take lists: called again with the same one, as TorchScript does, they find it whole."""

from __future__ import annotations

import pytest
import torch
from helpers import randn
from torch import Tensor
from torchscript_models import IN, H

import fastrnn
from fastrnn._ops import library

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


def _arguments(cell: str = "lstm") -> dict:
    layer = fastrnn.LSTM(IN, H)
    x, h, c = randn(5, 3, IN), randn(1, 3, H), randn(1, 3, H)
    weights = [w.detach() for w in layer.parameters()]
    y, _, _, gates, cells = library.forward(x, h, c, weights, None, None, None, cell, True, 1)
    kept = {"y": y, "gates": gates, "cells": cells}
    return {"x": x, "h": h, "c": c, "weights": weights, "grad": torch.ones_like(y), **kept}


@torch.jit.script
def _twice(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: list[Tensor],
    grad: Tensor,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
):
    ops = torch.jit.annotate(list[list[Tensor]], [])
    for _ in range(2):
        a = torch.ops.fastrnn.rnn_forward(x, h, c, weights, None, None, None, "lstm", True, 1)
        ops.append([a[0], a[1], a[2], a[3], a[4]])
        e = torch.ops.fastrnn.rnn_layer(x, h, c, weights, None, None, None, "lstm", True, True, 1)
        ops.append([e[0], e[1], e[2], e[3]])
        f = torch.ops.fastrnn.rnn_backward(
            grad, None, None, None, x, h, c, weights, None, None, None, y, gates, cells, "lstm", True, 15
        )
        ops.append([f[0], f[1], f[2], f[3][0], f[3][1], f[3][2], f[3][3]])
        i = torch.ops.fastrnn.rnn_backward_unlisted(
            grad, None, None, None, x, h, c, weights, None, None, None, y, gates, cells, "lstm", True, 15
        )
        ops.append([i[0], i[1], i[2], i[3], i[4], i[5], i[6]])
        j = torch.ops.fastrnn.rnn_backward_unlisted_variant(
            grad, None, None, None, x, h, c, weights, None, None, None, y, gates, cells, "lstm", True, 15
        )
        ops.append([j[0], j[1], j[2], j[3], j[4], j[5], j[6]])
        packed = [torch.ops.fastrnn.rnn_pack(weights, "lstm", True)]
        for _ in range(2):
            k = torch.ops.fastrnn.rnn_stream(x, h, c, packed)
            ops.append([packed[0], k[0], k[1], k[2]])
        quantized = [
            torch.ops.fastrnn.rnn_pack_quantized(
                weights[0].to(torch.bfloat16),
                weights[1].to(torch.bfloat16),
                None,
                None,
                None,
                None,
                weights[2],
                weights[3],
                "lstm",
            )
        ]
        for _ in range(2):
            n = torch.ops.fastrnn.rnn_quantized(x, h, c, quantized, None, None, False)
            ops.append([quantized[0], n[0], n[1], n[2]])
    return ops, weights


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_operators_leave_the_list(mode):
    """Every operator that takes a list, through TorchScript, twice, with one list: the caller's still."""
    given = _arguments()
    with mode():
        results, weights = _twice(*given.values())
        half = len(results) // 2
        for first, second in zip(results[:half], results[half:], strict=True):
            for a, b in zip(first, second, strict=True):
                assert torch.equal(a, b)
        assert all(torch.equal(w, v) for w, v in zip(weights, given["weights"], strict=True))
    arguments = [given[name] for name in ("x", "h", "c", "weights")]
    for a, b in zip(results[0], library.forward(*arguments, None, None, None, "lstm", True, 1), strict=True):
        assert torch.equal(a, b)


def test_operators_by_their_short_name():
    """Eager code and compilers that name no overload find the one of TorchScript first: it is as good."""
    x, h, c, weights = (v for k, v in _arguments().items() if k in ("x", "h", "c", "weights"))

    def call(x, h, c, weights):
        layer = torch.ops.fastrnn.rnn_layer(x, h, c, weights, None, None, None, "lstm", True, True, 1)
        return *layer, *torch.ops.fastrnn.rnn_forward(x, h, c, weights, None, None, None, "lstm", True, 1)

    expected = call(x, h, c, weights)
    for a, b in zip(
        torch.compile(call, fullgraph=True, backend="aot_eager")(x, h, c, weights), expected, strict=True
    ):
        assert torch.equal(a, b)
    x.requires_grad_()
    assert torch.autograd.grad(call(x, h, c, weights)[0].sum(), x)[0].abs().sum() > 0


def test_no_operator_is_forgotten():
    """Those called above are all that take a list, but for torch's own layer as an operator, which is for
    graphs of torch.compile alone: traced and scripted programs have torch's."""
    names = torch._C._dispatch_get_all_op_names()
    names = {n for n in names if n.startswith("fastrnn::") and not n.endswith(".script")}
    schemas = {n: torch._C._get_schema(n, "") for n in names}
    with_lists = {n.removeprefix("fastrnn::") for n, s in schemas.items() if "Tensor[]" in _inputs(str(s))}
    with_lists -= {"torch_layer", "torch_layer_backward"}
    called = str(_twice.inlined_graph)
    assert with_lists
    for name in with_lists:
        assert f"fastrnn::{name}(" in called, name
        assert "script" in getattr(torch.ops.fastrnn, name).overloads()


def _inputs(schema: str) -> str:
    return schema.split("->")[0]
