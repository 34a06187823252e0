"""torch.onnx.export of the variants: standard nodes where ONNX has them, a Scan elsewhere, the same numbers
in ONNX Runtime at other sizes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import randn
from tolerances import assert_close
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves
from variant_cases import CASES

import fastrnn

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

IN, H = 4, 6
#: What ONNX's nodes say themselves, or what is nothing in evaluation.
STANDARD = (
    "lstm peephole",
    "lstm coupled",
    "lstm heads",
    "lstm recurrent dropout",
    "lstm weight dropout",
    "gru reset before",
    "gru heads",
    "rnn heads",
)
SCANNED = ("lstm norm", "lstm zoneout", "lstm all", "lstm projected", "gru all", "rnn relu")


class Lengths(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, lengths):
        return self.layer(x, lengths=lengths)


@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["", "bidirectional"])
@pytest.mark.parametrize("case", STANDARD + SCANNED)
def test_exported(case, bidirectional, lengths):
    """The nodes that were promised, and in ONNX Runtime the layer's numbers, T and B open."""
    name, options, variant = CASES[case]
    torch.manual_seed(0)
    layer = getattr(fastrnn, name)(IN, H, bidirectional=bidirectional, **options, **variant).eval()
    model = Lengths(layer) if lengths else layer
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, *([{0: Dim.DYNAMIC}] if lengths else ()))
    args = (randn(5, 3, IN), *([torch.tensor([5, 2, 0])] if lengths else ()))
    program = torch.onnx.export(model, args, dynamo=True, dynamic_shapes=shapes, verbose=False)
    found = Counter(node.op_type for node in program.model.graph)
    nodes = {k: v for k, v in found.items() if k in ("LSTM", "GRU", "RNN", "Scan", "Loop")}
    directions = 2 if bidirectional else 1
    assert nodes == ({name: 1} if case in STANDARD else {"Scan": directions})
    other = (randn(9, 4, IN), *([torch.tensor([9, 0, 1, 8])] if lengths else ()))
    for given in (args, other):
        want, got = tree_leaves(model(*given)), program(*given)
        for a, b in zip(got, want, strict=True):
            assert_close(a, b.detach(), torch.float32)


@pytest.mark.parametrize("case", ["lstm coupled", "lstm peephole", "gru reset before"])
def test_by_onnxs_own_evaluator(case):
    """ONNX's reference evaluator, a second reader of the nodes."""
    from onnx.reference import ReferenceEvaluator

    name, _, variant = CASES[case]
    torch.manual_seed(0)
    layer = getattr(fastrnn, name)(IN, H, **variant).eval()
    x = randn(5, 3, IN)
    program = torch.onnx.export(layer, (x,), dynamo=True, verbose=False)
    (node,) = [n for n in program.model_proto.graph.node if n.op_type == name]
    attributes = {a.name: a for a in node.attribute}
    if case == "lstm coupled":
        assert attributes["input_forget"].i == 1
    (feed,) = [i.name for i in program.model_proto.graph.input]
    got = ReferenceEvaluator(program.model_proto).run(None, {feed: x.numpy()})
    for a, b in zip(got, tree_leaves(layer(x)), strict=True):
        assert_close(torch.from_numpy(a), b.detach(), torch.float32)
