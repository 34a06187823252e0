"""PyTorch Geometric: what it builds of torch.nn's LSTM, GRU and GRUCell, on graphs of uneven sizes."""

from __future__ import annotations

import contextlib
import copy
import io

import pytest
import torch
from helpers import flat, kernels_called
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GatedGraphConv, SAGEConv, TGNMemory
from torch_geometric.nn.aggr import GRUAggregation, LCMAggregation, LSTMAggregation, Set2Set
from torch_geometric.nn.models import AttentiveFP, JumpingKnowledge, RENet
from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator
from torch_geometric.utils import sort_edge_index

import fastrnn

C = 16


def _index(nodes: int, into: int) -> torch.Tensor:
    """Sorted indices of uneven groups, with one group that is empty."""
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(into, (nodes,), generator=generator)
    return index[index != into // 2].sort()[0]


INDEX = _index(60, 9)
NODES, GROUPS = len(INDEX), 9


def _edges() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return sort_edge_index(torch.randint(NODES, (2, 4 * NODES), generator=generator), sort_by_row=False)


def _attentive(module, x):
    edges = _edges()
    features = torch.linspace(-1, 1, 3 * edges.shape[1], dtype=x.dtype).view(-1, 3)
    return module(x, edges, features, torch.arange(NODES) * 4 // NODES)


def _jumping(module, x):
    return module([x, x.flip(0), x * 0.5])


#: Each with how it is called; x has a row of C numbers for each node.
MODULES = {
    "LSTMAggregation": (lambda: LSTMAggregation(C, 20), lambda m, x: m(x, INDEX, dim_size=GROUPS)),
    "LSTMAggregation, 2 layers": (
        lambda: LSTMAggregation(C, 20, num_layers=2, bidirectional=True, proj_size=7),
        lambda m, x: m(x, INDEX, dim_size=GROUPS),
    ),
    "GRUAggregation": (lambda: GRUAggregation(C, 20), lambda m, x: m(x, INDEX, dim_size=GROUPS)),
    "LCMAggregation": (lambda: LCMAggregation(C, 20), lambda m, x: m(x, INDEX, dim_size=GROUPS)),
    "Set2Set": (lambda: Set2Set(C, processing_steps=4), lambda m, x: m(x, INDEX, dim_size=GROUPS)),
    "Set2Set, 2 layers": (
        lambda: Set2Set(C, processing_steps=3, num_layers=2),
        lambda m, x: m(x, INDEX, dim_size=GROUPS),
    ),
    "JumpingKnowledge": (lambda: JumpingKnowledge("lstm", channels=C, num_layers=3), _jumping),
    "SAGEConv, aggr=lstm": (lambda: SAGEConv(C, 20, aggr="lstm"), lambda m, x: m(x, _edges())),
    "GatedGraphConv": (lambda: GatedGraphConv(C, num_layers=3), lambda m, x: m(x, _edges())),
    "AttentiveFP": (
        # Edits the cell's output in place before the backward: gru(h, x).relu_().
        lambda: AttentiveFP(C, 20, 5, edge_dim=3, num_layers=3, num_timesteps=2),
        _attentive,
    ),
}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("road", ["convert", "patch"])
@pytest.mark.parametrize("name", MODULES)
def test_module(name, road, dtype, limit):
    """Output and every gradient, the input's too, are those with torch.nn's layer."""
    make, call = MODULES[name]
    torch.manual_seed(0)
    theirs = make().to(dtype)
    ours = copy.deepcopy(theirs)
    x = torch.randn(NODES, C, dtype=dtype)

    def run(module):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        out = call(module, leaf)
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        return [out.detach(), leaf.grad, *(p.grad.clone() for p in module.parameters())]

    expected = run(theirs)
    if road == "convert":
        fastrnn.convert(ours)
    with fastrnn.patch() if road == "patch" else contextlib.nullcontext():
        assert kernels_called(lambda: run(ours)) > 0
        found = run(ours)
    for got, wanted in zip(found, expected, strict=True):
        # Not below 1: a softmax does not see a bias before it, whose gradient is what rounding left.
        torch.testing.assert_close(got, wanted, rtol=0, atol=limit * wanted.abs().max().clamp_min(1).item())


@pytest.mark.parametrize("road", ["convert", "patch"])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted(road):
    """PyTorch Geometric's tests script JumpingKnowledge: so does this, saves it, loads it and compares."""
    torch.manual_seed(0)
    module = JumpingKnowledge("lstm", channels=C, num_layers=3)
    x = torch.randn(NODES, C)
    expected = _jumping(module, x)
    if road == "convert":
        fastrnn.convert(module)
    with fastrnn.patch() if road == "patch" else contextlib.nullcontext():
        scripted = torch.jit.script(module)
        torch.testing.assert_close(_jumping(scripted, x), expected)
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
    buffer.seek(0)
    torch.testing.assert_close(_jumping(torch.jit.load(buffer), x), expected)


@pytest.mark.parametrize("road", ["convert", "patch"])
def test_renet(road):
    """RENet's two GRUs over histories of events: predictions and gradients, for each number of layers."""
    nodes, relations, steps, rows = 12, 3, 5, 6
    generator = torch.Generator().manual_seed(4)

    def event():
        length = int(torch.randint(1, 8, (), generator=generator))
        history = {
            f"h_{side}{end}": torch.randint(top, (length,), generator=generator)
            for side in ("sub", "obj")
            for end, top in (("", nodes), ("_t", steps))
        }
        one = {
            name: torch.randint(top, (1,), generator=generator)
            for name, top in (("sub", nodes), ("rel", relations), ("obj", nodes))
        }
        return Data(**one, **history, num_nodes=1)

    data = Batch.from_data_list([event() for _ in range(rows)], follow_batch=["h_sub", "h_obj"])
    torch.manual_seed(0)
    theirs = RENet(nodes, relations, C, steps)

    def run(module):
        module.zero_grad()
        out = flat(module(data))
        sum(t.square().sum() for t in out).backward()
        return [*(t.detach() for t in out), *(p.grad.clone() for p in module.parameters())]

    expected = run(theirs)
    ours = copy.deepcopy(theirs)
    if road == "convert":
        fastrnn.convert(ours)
    with fastrnn.patch() if road == "patch" else contextlib.nullcontext():
        assert kernels_called(lambda: run(ours)) > 0
        torch.testing.assert_close(run(ours), expected, rtol=1e-4, atol=1e-4)


def _temporal(library: str, road: str, epochs: int) -> dict[str, torch.Tensor]:
    """TGNMemory, trained to tell the events that came from those that did not; its memory after them."""
    events, nodes = 400, 30
    generator = torch.Generator().manual_seed(5)
    source = torch.randint(nodes // 2, (events,), generator=generator)
    target = nodes // 2 + (source + torch.randint(2, (events,), generator=generator)) % (nodes // 2)
    message = torch.randn(events, 4, generator=generator)
    torch.manual_seed(0)
    memory = TGNMemory(nodes, 4, 48, 8, IdentityMessage(4, 48, 8), LastAggregator())
    score = nn.Bilinear(48, 48, 1)
    model = nn.ModuleDict({"memory": memory, "score": score})
    if library == "fastrnn" and road == "convert":
        fastrnn.convert(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with fastrnn.patch() if library == "fastrnn" and road == "patch" else contextlib.nullcontext():
        for _ in range(epochs):
            memory.train()
            memory.reset_state()
            for at in range(0, events, 50):
                part = slice(at, at + 50)
                wrong = nodes // 2 + (target[part] + 3) % (nodes // 2)
                ids = torch.cat([source[part], target[part], wrong]).unique()
                place = torch.empty(nodes, dtype=torch.long)
                place[ids] = torch.arange(len(ids))
                z, _ = memory(ids)
                pairs = [(z[place[source[part]]], z[place[t]]) for t in (target[part], wrong)]
                logits = torch.cat([score(*pair) for pair in pairs])
                wanted = torch.cat([torch.ones(len(wrong), 1), torch.zeros(len(wrong), 1)])
                loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
                memory.update_state(source[part], target[part], torch.arange(events)[part], message[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                memory.detach()
        memory.eval()
    return {"memory": memory.memory.detach(), **{name: p.detach() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("road", ["convert", "patch"])
def test_temporal_graph_network(compare, road):
    """The same memory of every node and the same weights after training over a stream of events."""
    compare(
        "torch_geometric",
        "TGNMemory, H=48",
        road,
        lambda library, epochs: _temporal(library, road, epochs),
        short=1,
        full=4,
        limit=1e-3,
    )
