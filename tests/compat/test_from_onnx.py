"""fastrnn.from_onnx: ONNX's own cases of its LSTM, GRU and RNN nodes, every attribute that is covered against
ONNX Runtime, and a clear error for the others."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
import torch
from tolerances import assert_close

import fastrnn

onnx = pytest.importorskip("onnx")
helper = onnx.helper

T, B, I, H = 5, 3, 4, 6  # noqa: E741
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def cases():
    """The cases of the onnx package, which it makes when their files are imported."""
    from onnx.backend.test.case import node

    for op in GATES:
        importlib.import_module(f"{node.__name__}.{op.lower()}")
    return [case for case in node._NodeTestCases if case.model.graph.node[0].op_type in GATES]


CASES = cases()


def test_there_are_eighteen():
    """The package's cases, all of them; where it gets more, they are tested too."""
    assert len(CASES) >= 18


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnxs_own_cases(case):
    """Results as the cases say, from the node and from the model."""
    (node,) = case.model.graph.node
    ((inputs, outputs),) = case.data_sets
    for source in (node, case.model, case.model.SerializeToString()):
        layer = fastrnn.from_onnx(source)
        found = layer(*(torch.from_numpy(np.array(i)) for i in inputs))
        wanted = [(got, name) for got, name in zip(found, [*node.output, ""], strict=False) if name]
        assert len(wanted) == len(outputs)
        for (got, name), want in zip(wanted, outputs, strict=True):
            assert_close(got.detach(), torch.from_numpy(want), torch.float32, what=name)


def model(op: str, *, known: bool = True, given=(), **attributes):
    """A model of one node, and its inputs that are no weights. given: names of optional inputs."""
    rng, D = np.random.default_rng(0), 2 if attributes.get("direction") == "bidirectional" else 1
    G, first = GATES[op], (B,) if attributes.get("layout") else ()

    def draw(*sizes):
        return rng.uniform(-0.7, 0.7, sizes).astype(np.float32)

    weights = {"W": draw(D, G * H, I), "R": draw(D, G * H, H), "B": draw(D, 2 * G * H), "P": draw(D, 3 * H)}
    state = (B, D, H) if first else (D, B, H)
    others = {"X": draw(*((B, T, I) if first else (T, B, I))), "initial_h": draw(*state)}
    others |= {"initial_c": draw(*state), "sequence_lens": np.array([T, 2, 3], np.int32)}
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h"] + ["initial_c", "P"] * (op == "LSTM")
    named = [n if n in ("X", "W", "R", "B", *given) else "" for n in names]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, named, outputs, name="it", hidden_size=H, **attributes)
    inside = [n for n in named if n in weights]
    feeds = {n: others[n] for n in named if n in others}
    types = {n: onnx.TensorProto.INT32 if n == "sequence_lens" else onnx.TensorProto.FLOAT for n in feeds}
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(n, types[n], feeds[n].shape) for n in feeds],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs],
        [onnx.numpy_helper.from_array(weights[n], n) for n in inside],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return made, feeds


ATTRIBUTES = [
    ("LSTM", {}, ()),
    ("LSTM", {}, ("P",)),
    ("LSTM", {"clip": 0.4}, ("P", "initial_c")),
    ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, ("initial_h", "initial_c")),
    ("GRU", {}, ()),
    ("GRU", {"linear_before_reset": 1}, ("initial_h",)),
    ("GRU", {"linear_before_reset": 1, "clip": 0.3}, ()),
    ("GRU", {"clip": 0.3}, ("initial_h",)),
    ("GRU", {"activations": ["Relu", "Sigmoid"]}, ()),
    ("RNN", {}, ("initial_h",)),
    ("RNN", {"activations": ["Relu"]}, ()),
    ("RNN", {"activations": ["Sigmoid"], "clip": 0.5}, ()),
]


@pytest.mark.parametrize("lens", [False, True], ids=["", "sequence_lens"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "attributes", "given"), ATTRIBUTES, ids=str)
def test_as_onnx_runtime(op, attributes, given, direction, lens):
    """Every covered attribute, with what ONNX Runtime makes of it."""
    runtime = pytest.importorskip("onnxruntime")
    attributes = dict(attributes)
    if "activations" in attributes and direction == "bidirectional":
        attributes["activations"] = attributes["activations"] * 2
    given = (*given, "sequence_lens") if lens else given
    made, feeds = model(op, given=given, direction=direction, **attributes)
    session = runtime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    layer = fastrnn.from_onnx(made)
    found = layer(**{k: torch.from_numpy(v) for k, v in feeds.items()})
    for got, want in zip(found, session.run(None, feeds), strict=True):
        assert_close(got.detach(), torch.from_numpy(want), torch.float32, slack=4)
    found[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(("op", "direction"), itertools.product(GATES, ["forward", "bidirectional"]))
def test_layout(op, direction):
    """layout=1 is the batch first, in and out."""
    made, feeds = model(op, given=("initial_h",), direction=direction, layout=1)
    other, _ = model(op, given=("initial_h",), direction=direction)
    first = {k: torch.from_numpy(v) for k, v in feeds.items()}
    second = {k: v.transpose(0, 1) for k, v in first.items()}
    y, *states = fastrnn.from_onnx(made)(**first)
    want, *wanted = fastrnn.from_onnx(other)(**second)
    assert_close(y, want.permute(2, 0, 1, 3), torch.float32)
    for a, b in zip(states, wanted, strict=True):
        assert_close(a, b.transpose(0, 1), torch.float32)


@pytest.mark.parametrize("peephole", [False, True])
def test_input_forget(peephole):
    """Coupled gates, by their equations, which ONNX Runtime does not compute."""
    made, feeds = model("LSTM", given=("P",) * peephole, input_forget=1)
    layer = fastrnn.from_onnx(made)
    y, *_ = layer(torch.from_numpy(feeds["X"]))
    w = {k.removesuffix("_l0"): v.detach().double() for k, v in layer.named_parameters()}
    h = c = torch.zeros(B, H, dtype=torch.float64)
    p_i, _, p_o = w["weight_peephole"].chunk(3) if peephole else (0, 0, 0)
    for t, x in enumerate(torch.from_numpy(feeds["X"]).double()):
        pre = x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
        i, _, g, o = pre.chunk(4, 1)
        i = torch.sigmoid(i + p_i * c)
        c = (1 - i) * c + i * torch.tanh(g)
        h = torch.sigmoid(o + p_o * c) * torch.tanh(c)
        assert_close(y[t, 0], h, torch.float32)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_there_and_back(name, tmp_path):
    """A layer that torch.onnx.export wrote to a file, read back: the same numbers, weights as parameters."""
    pytest.importorskip("onnxscript")
    layer = getattr(fastrnn, name)(I, H, bidirectional=True).eval()
    x = torch.randn(T, B, I)
    path = tmp_path / "model.onnx"
    torch.onnx.export(layer, (x,), path, dynamo=True, verbose=False)
    back = fastrnn.from_onnx(path)
    y, h, *_ = back(x)
    want, state = layer(x)
    assert_close(y.transpose(1, 2).flatten(2), want, torch.float32)
    assert_close(h, state[0] if name == "LSTM" else state, torch.float32)
    assert back.state_dict().keys() == layer.state_dict().keys()
    layer.load_state_dict(back.state_dict())


UNCOVERED = [
    ("LSTM", {"activations": ["Sigmoid", "Elu", "Tanh"]}, "activations.*Elu"),
    ("LSTM", {"activations": ["Sigmoid", "Tanh"]}, "activations: expected 3"),
    ("GRU", {"activation_alpha": [0.5]}, "activation_alpha"),
    ("LSTM", {"clip": -1.0}, "clip should be at least 0"),
    ("RNN", {"direction": "sideways"}, "direction should be one of"),
    ("LSTM", {"layout": 2}, "layout should be 0 or 1"),
    ("GRU", {"input_forget": 1}, "input_forget"),
    ("RNN", {"output_sequence": 1}, "output_sequence"),
]


@pytest.mark.parametrize(("op", "attributes", "text"), UNCOVERED)
def test_uncovered(op, attributes, text):
    """What is not covered raises, and names the attribute."""
    node = helper.make_node(op, ["X", "W", "R"], ["Y"], hidden_size=H, **attributes)
    with pytest.raises(ValueError, match=text):
        fastrnn.from_onnx(node)


def test_wrong_sources():
    """No node, another node, several, no model."""
    with pytest.raises(TypeError, match="a node, a model or the path"):
        fastrnn.from_onnx(3)
    with pytest.raises(ValueError, match="expected an LSTM, GRU or RNN node, got Relu"):
        fastrnn.from_onnx(helper.make_node("Relu", ["X"], ["Y"]))
    made, feeds = model("GRU")
    with pytest.raises(ValueError, match="There are: GRU 'it'"):
        fastrnn.from_onnx(made, name="other")
    layer = fastrnn.from_onnx(made, name="Y_h")
    with pytest.raises(TypeError, match="at most 1 inputs"):
        layer(*[torch.zeros(1)] * 2)
    with pytest.raises(TypeError, match="unexpected input 'initial_c'"):
        layer(torch.from_numpy(feeds["X"]), initial_c=torch.zeros(1, B, H))
