"""The other contenders of a GPU run: torch.nn's weights in their layouts, and their gradients back.

The packages need a GPU, or are not installed: their parts are played by what they say that they compute.
"""

import functools
import sys
import types

import pytest
import torch

from benchmarks.lab import worker
from benchmarks.lab.cases import Case
from benchmarks.lab.contenders import compile as compiled
from benchmarks.lab.contenders import contender as shared
from benchmarks.lab.contenders import registry as contenders
from benchmarks.lab.contenders.contender import Unsupported, mode
from benchmarks.lab.problem import Problem
from fastrnn.proof.timing import AGREEMENT, disagreement


def case_of(cell="lstm", training=True, **changes) -> Case:
    return Case(cell, "layers", training, **{"T": 5, "B": 3, "I": 7, "H": 6, **changes})


def agrees(contender, problem, limit=1e-5):
    """Output and gradients are torch.nn's, twice: nothing piles up."""
    expected = contenders.build("torch", problem, 1).result()
    for _ in range(2):
        result = contender.result()
        assert result.keys() == expected.keys()
        assert disagreement(result, expected) < limit
    if contender.prepare:
        contender.prepare()
    with mode(problem.case):
        contender.call()


def play(monkeypatch, name: str, **members) -> types.ModuleType:
    """A package that can be imported."""
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace()
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


# FlashRNN


class FlashRNNConfig:
    """Its names of dimensions, as the package's own configuration takes them."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


def flashrnn(Wx, R, b, states, config):
    """What FlashRNN's README and its vanilla backend state, from and to the layouts of the configuration."""

    def to(tensor, have, want):
        return tensor.permute([have.index(d) for d in want])

    Wx, R = to(Wx, config.input_shape, "TBHGD"), to(R, config.recurrent_shape, "GHDP")
    b, state = to(b, config.bias_shape, "GHD"), to(states, config.output_shape, "TSBHD")[0]
    assert Wx.shape[2] == R.shape[1] == config.num_heads == 1
    found = []
    for gx in Wx.unbind(0):
        Ry = torch.einsum("ghdp,bhp->bghd", R, state[0])
        gx = gx.transpose(1, 2)  # B, gates, heads, units
        if config.function == "gru":
            # Gates of R: n's recurrent part, r, z; of W: r, z, n; biases: n's recurrent part, r, z, n.
            r, z = torch.sigmoid(gx[:, 0] + Ry[:, 1] + b[1]), torch.sigmoid(gx[:, 1] + Ry[:, 2] + b[2])
            n = torch.tanh(gx[:, 2] + b[3] + r * (Ry[:, 0] + b[0]))
            state = (z * state[0] + (1 - z) * n)[None]
        elif config.function == "elman":
            state = torch.tanh(gx + Ry + b)[:, 0][None]
        else:
            i, f, z, o = (gx + Ry + b).unbind(1)
            c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(z)
            state = torch.stack([torch.sigmoid(o) * torch.tanh(c), c])
        found.append(state)
    return to(torch.stack(found), "TSBHD", config.output_shape), None


@pytest.mark.parametrize(
    ("key", "cell", "dtype"),
    [
        ("flashrnn", "lstm", "tf32"),
        ("flashrnn", "rnn", "tf32"),
        ("flashrnn_step", "lstm", "float32"),
        ("flashrnn_step", "gru", "float32"),
        ("flashrnn_step", "rnn", "float32"),
        ("flashrnn_triton", "lstm", "tf32"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_flashrnn(monkeypatch, key, cell, dtype, training):
    """Every backend's layout of weights, biases and states; gates in its order; gradients back in torch's."""
    play(monkeypatch, "flashrnn", flashrnn=flashrnn, FlashRNNConfig=FlashRNNConfig)
    problem = Problem(case_of(cell, training, dtype=dtype))
    agrees(contenders.ROW[key].build(problem, 1), problem)


# haste


class Haste(torch.nn.Module):
    """haste's layers as its documents describe them: weights (I, G*H), gates i, g, f, o or z, r, h."""

    def __init__(self, cell, inputs, units):
        super().__init__()
        self.cell, self.units = cell, units

    def from_native_weights(self, w_ih, w_hh, b_ih, b_hh):
        order = (0, 2, 1, 3) if self.cell == "lstm" else (1, 0, 2)

        def reorder(w):
            blocks = w.chunk(len(order))
            return torch.cat([blocks[g] for g in order])

        self.kernel = torch.nn.Parameter(reorder(w_ih).t().contiguous())
        self.recurrent_kernel = torch.nn.Parameter(reorder(w_hh).t().contiguous())
        biases = [reorder(b_ih), reorder(b_hh)]
        self.bias = torch.nn.Parameter(sum(biases) if self.cell == "lstm" else biases[0])
        if self.cell == "gru":
            self.recurrent_bias = torch.nn.Parameter(biases[1])

    def forward(self, x):
        h = c = x.new_zeros(x.size(1), self.units)
        hs = []
        for gx in (x @ self.kernel + self.bias).unbind(0):
            gh = h @ self.recurrent_kernel
            if self.cell == "lstm":
                i, g, f, o = (gx + gh).chunk(4, -1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                (x_z, x_r, x_n), (h_z, h_r, h_n) = gx.chunk(3, -1), (gh + self.recurrent_bias).chunk(3, -1)
                z = torch.sigmoid(x_z + h_z)
                h = z * h + (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            hs.append(h)
        return torch.stack(hs), h


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("training", [False, True])
def test_haste(monkeypatch, cell, training):
    """Its own method takes the weights; the gradients come back in torch's order."""
    layers = {"LSTM": functools.partial(Haste, "lstm"), "GRU": functools.partial(Haste, "gru")}
    play(monkeypatch, "haste_pytorch", **layers)
    problem = Problem(case_of(cell, training))
    agrees(contenders.ROW["haste"].build(problem, 1), problem)


# TorchRL


def torchrl_layer(cell, x, *arguments, input_precision):
    """lstm_triton and gru_triton as their docstrings state them: batch first, torch.nn's weights, a state to
    restart from at every step, the first of which is the initial one."""
    states = 2 if cell == "lstm" else 1
    hidden, weights, begins = arguments[:states], arguments[states:-1], arguments[-1]
    assert x.is_contiguous()
    assert {tuple(h.shape) for h in hidden} == {(*x.shape[:2], weights[1].size(1))}
    assert begins.shape == x.shape[:2]
    assert not begins.any()
    layer = getattr(torch, cell)
    initial = [h[:, 0][None] for h in hidden]
    return layer(x, initial if states == 2 else initial[0], list(weights), True, 1, 0.0, False, False, True)


@pytest.mark.parametrize(("cell", "dtype"), [("lstm", "float32"), ("gru", "tf32")])
@pytest.mark.parametrize("training", [False, True])
def test_torchrl(monkeypatch, cell, dtype, training):
    """Batch first for it, steps first for the comparison; precision as the case says."""
    asked = []

    def function(which):
        def call(*arguments, input_precision):
            asked.append(input_precision)
            return torchrl_layer(which, *arguments, input_precision=input_precision)

        return call

    play(monkeypatch, "torchrl")
    play(
        monkeypatch,
        "torchrl.modules.tensordict_module._rnn_triton",
        lstm_triton=function("lstm"),
        gru_triton=function("gru"),
    )
    problem = Problem(case_of(cell, training, dtype=dtype))
    agrees(contenders.ROW["torchrl"].build(problem, 1), problem)
    assert set(asked) == {"ieee" if dtype == "float32" else "tf32"}


# torch.compile


@pytest.mark.parametrize(
    ("cell", "training", "dtype", "steps"),
    [("lstm", True, "bfloat16", 5), ("gru", False, "bfloat16", 32), ("rnn", True, "float32", 7)],
)
def test_compiled(monkeypatch, cell, training, dtype, steps):
    """The plain cell, several steps at a time, as many as divide T; one graph of all of them."""
    graphs, options = [], []
    genuine = torch.compile

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    def compile_(module, **asked):
        options.append(asked)
        return genuine(module, backend=backend, dynamic=asked["dynamic"], fullgraph=asked["fullgraph"])

    monkeypatch.setattr(torch, "compile", compile_)
    compiled.forget()
    problem = Problem(case_of(cell, training, dtype=dtype, T=steps))
    contender = compiled.build(problem, graphs=training)
    agrees(contender, problem, limit=AGREEMENT[dtype])
    unrolled = {5: 5, 32: 16, 7: 7}[steps]
    assert contender.label.endswith(f", {unrolled} steps at a time")
    assert len(graphs) == 1
    assert options == [
        {"dynamic": False, "fullgraph": True} | ({"mode": "reduce-overhead"} if training else {})
    ]


# Who does what


def test_each_does_only_its_cases(monkeypatch):
    """What a contender does not do is said, whether or not it is installed; on the CPU none is run."""
    reasons = {}
    for key in contenders.CUDA_PEERS:
        for name, case in {
            "layers": case_of(layers=2),
            "packed": Case("lstm", "packed", False, 5, 3, 7, 7),
            "float64": case_of(dtype="float64"),
            "rnn": case_of("rnn", dtype="float32"),
            "half": case_of(dtype="float16", H=128, I=128),
        }.items():
            try:
                contenders.ROW[key].build(Problem(case), 1)
            except Unsupported as reason:
                reasons[key, name] = str(reason)
        with pytest.raises(Unsupported, match="on a GPU only"):
            contenders.build(key, Problem(case_of()), 1)
    for key in contenders.CUDA_PEERS:
        assert reasons[key, "layers"] == reasons[key, "packed"] == "single layers only"
        assert reasons[key, "float64"].endswith("only")
    assert reasons["haste", "rnn"] == "LSTM and GRU only"
    assert reasons["torchrl", "half"] == "float32 and tf32 only"
    assert reasons["flashrnn_triton", "half"] == "H up to 64 only"
    monkeypatch.setattr(shared.importlib.util, "find_spec", lambda name: None)
    for key in ("haste", "torchrl", "flashrnn_step"):
        with pytest.raises(Unsupported, match="is not installed"):
            contenders.ROW[key].build(Problem(case_of()), 1)


def test_a_copy_keeps_cudnns_weights_in_one_piece(monkeypatch):
    """A bare copy of nn.LSTM has its weights apart, which cuDNN would gather at every call: unfair to it."""
    flattened = []
    monkeypatch.setattr(torch.nn.LSTM, "flatten_parameters", lambda self: flattened.append(self))
    problem = Problem(case_of())
    copied = shared.own_copy(problem.module)
    assert flattened[-1] is copied
    assert copied.weight_hh_l0.data_ptr() != problem.module.weight_hh_l0.data_ptr()


def test_a_method_that_loses_digits_is_asked_in_float64():
    """Whether the log-space scan computes the same is asked where float32 does not show it, of a row that is
    offered in float32 alone."""
    case = case_of(cell="mingru", training=True, T=30, B=2, H=8, I=8)
    assert worker._same_in_float64("log_scan", case)
    assert not worker._same_in_float64("xlstm", case)
