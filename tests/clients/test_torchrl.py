"""TorchRL: LSTMModule and GRUModule, step by step in an environment and over rollouts whose episodes begin in
the middle of a row.

They ask isinstance(layer, torch.nn.LSTM) to know that it takes packed sequences: hence compat's classes, by
import or convert(compat=True), or patch().
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from helpers import kernels_called
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs import GymEnv, InitTracker, StepCounter, TransformedEnv
from torchrl.modules import GRUModule, LSTMModule, ProbabilisticActor, set_recurrent_mode
from torchrl.modules.tensordict_module import rnn

import fastrnn

MODULES = {"LSTM": (LSTMModule, ("h", "c")), "GRU": (GRUModule, ("h",))}


def _module(cell: str, **options):
    module, states = MODULES[cell]
    return module(in_keys=["x", *states], out_keys=["y", *(("next", key) for key in states)], **options)


def _swap(module: nn.Module, road: str):
    """The block in which the module's layers run fastrnn's kernels, by this road."""
    if road == "convert":
        fastrnn.convert(module, compat=True)
    elif road == "patch":
        return fastrnn.patch()
    return contextlib.nullcontext()


def _rollouts(cell: str, *sizes: int) -> TensorDict:
    """Random rows of steps, with episodes that begin in the middle of most and twice in a row in one."""
    generator = torch.Generator().manual_seed(0)
    rows, steps, features, layers, hidden = sizes
    start = torch.rand(rows, steps, 1, generator=generator) < 0.1
    start[0], start[1, 3:5] = False, True
    start[: rows // 2, 0] = True  # the others go on from the state they were given
    data = {"x": torch.randn(rows, steps, features, generator=generator), "is_init": start}
    for key in MODULES[cell][1]:
        data[key] = torch.randn(rows, steps, layers, hidden, generator=generator)
        data[key] *= ~start.unsqueeze(-1)
    return TensorDict(data, [rows, steps])


@pytest.mark.parametrize("road", ["convert", "patch"])
@pytest.mark.parametrize("cell", MODULES)
def test_recurrent_mode_is_step_by_step(cell, road):
    """A rollout at once gives what its steps give one by one, with the state zeroed where an episode begins,
    and both give torch.nn's outputs, final states and gradients."""
    torch.manual_seed(0)
    theirs = _module(cell, input_size=5, hidden_size=7, num_layers=2)
    states = MODULES[cell][1]
    data = _rollouts(cell, 6, 17, 5, 2, 7)

    def at_once(module):
        module.zero_grad()
        with set_recurrent_mode(True):
            out = module(data.clone())
        out["y"].square().sum().backward()
        finals = [out["next", key][:, -1].detach() for key in states]
        return [out["y"].detach(), *finals, *(p.grad.clone() for p in module.parameters())]

    def in_steps(module):
        found, state = [], {key: data[key][:, 0] for key in states}
        for t in range(data.shape[1]):
            with torch.no_grad(), set_recurrent_mode(False):
                step = module(data[:, t].clone().update(state))
            found.append(step["y"])
            state = {key: step["next", key] for key in states}
        return [torch.stack(found, 1), *state.values()]

    expected = at_once(theirs)
    torch.testing.assert_close(in_steps(theirs), expected[: len(states) + 1])
    ours = copy.deepcopy(theirs)
    with _swap(ours, road):
        assert kernels_called(lambda: at_once(ours)) > 0
        assert kernels_called(lambda: in_steps(ours)) >= data.shape[1]
        torch.testing.assert_close(at_once(ours), expected)
        torch.testing.assert_close(in_steps(ours), expected[: len(states) + 1])


@pytest.mark.parametrize("cell", MODULES)
def test_an_instance_of_ours(cell):
    """The module takes compat's layer, makes a Python layer of it and back, with the same numbers."""
    torch.manual_seed(0)
    layer = getattr(fastrnn.compat, cell)(5, 7, 2, batch_first=True)
    module = _module(cell, **{cell.lower(): layer})
    data = _rollouts(cell, 4, 9, 5, 2, 7)

    def run():
        with torch.no_grad(), set_recurrent_mode(True):
            return module(data.clone())["y"]

    expected = run()
    assert kernels_called(run) > 0
    module.make_python_based()
    assert kernels_called(run) == 0
    torch.testing.assert_close(run(), expected)
    assert fastrnn.convert(module) is module  # TorchRL's own layers are nobody else's
    assert type(getattr(module, cell.lower())) is getattr(rnn, cell)
    module.make_cudnn_based()
    with fastrnn.patch():
        assert kernels_called(run) > 0
        torch.testing.assert_close(run(), expected)


def _learn(cell: str, library: str, road: str, iterations: int) -> dict[str, torch.Tensor]:
    """REINFORCE on CartPole: rollouts step by step, updates over whole rollouts. The weights, and the last
    rollout's states."""
    torch.manual_seed(0)
    hidden, states = 64, MODULES[cell][1]
    recurrent = _module(cell, input_size=4, hidden_size=hidden)
    env = TransformedEnv(GymEnv("CartPole-v1", device="cpu"), InitTracker())
    env.append_transform(StepCounter(40))
    env.append_transform(recurrent.make_tensordict_primer())
    env.set_seed(0)
    actor = ProbabilisticActor(
        TensorDictSequential(
            TensorDictModule(nn.Linear(4, 4), in_keys=["observation"], out_keys=["x"]),
            recurrent,
            TensorDictModule(nn.Linear(hidden, 2), in_keys=["y"], out_keys=["logits"]),
        ),
        in_keys=["logits"],
        out_keys=["action"],
        distribution_class=torch.distributions.OneHotCategorical,
        return_log_prob=False,
    )
    with _swap(actor, road if library == "fastrnn" else "none"):
        optimizer = torch.optim.Adam(actor.parameters(), lr=3e-3)
        for _ in range(iterations):
            with torch.no_grad():
                rollout = env.rollout(100, actor, break_when_any_done=False).unsqueeze(0)
            assert rollout["is_init"].sum() > 1
            with set_recurrent_mode(True):
                policy = actor.get_dist(rollout.clone())
            length = rollout["next", "step_count"].squeeze(-1).float()
            loss = -(policy.log_prob(rollout["action"].float()) * (length - length.mean()) / 10).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    carried = {f"carried {key}": rollout["next", key] for key in states}
    return {**carried, **{name: p.detach() for name, p in actor.named_parameters()}}


@pytest.mark.parametrize(("cell", "road"), [("LSTM", "convert"), ("GRU", "patch")])
def test_rollouts_and_updates(compare, cell, road):
    """The same policy after updates over rollouts that it took itself, episodes ending within them."""
    compare(
        "torchrl",
        f"{cell}Module, CartPole, rollouts and updates, H=64",
        "convert, compat=True" if road == "convert" else road,
        lambda library, iterations: _learn(cell, library, road, iterations),
        short=1,
        full=6,
        limit=1e-3,
    )
