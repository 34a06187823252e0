"""sb3-contrib's RecurrentPPO: rollouts step by step, updates on padded sequences with episode starts, and
sb3-contrib's own tests of it."""

from __future__ import annotations

import contextlib
import sys
from importlib.metadata import version
from pathlib import Path

import gymnasium
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv

import fastrnn


class WithoutVelocities(gymnasium.ObservationWrapper):
    """The pole's position and angle alone, so that the agent has to remember."""

    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.observation_space = gymnasium.spaces.Box(-10, 10, (2,))

    def observation(self, observation):
        return observation[[0, 2]]


def _learn(library: str, steps: int, road: str) -> dict[str, torch.Tensor]:
    """Train from a fixed seed; the policy's weights, and what it does on a fixed run of observations."""
    model = RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv([WithoutVelocities] * 8),
        n_steps=64,
        batch_size=128,
        n_epochs=4,
        policy_kwargs={"lstm_hidden_size": 128},
        seed=3,
        device="cpu",
    )
    if library == "fastrnn" and road == "convert":
        fastrnn.convert(model.policy)
    with fastrnn.patch() if library == "fastrnn" and road == "patch" else contextlib.nullcontext():
        model.learn(steps)
        state, states = None, []
        for observation in torch.linspace(-1, 1, 40).view(20, 2).numpy():
            _, state = model.predict(observation, state, deterministic=True)
            states.append(torch.tensor(state[0]).flatten())
    return {"hidden states": torch.stack(states), **model.policy.state_dict()}


@pytest.mark.parametrize("road", ["convert", "patch"])
def test_recurrent_ppo(compare, road):
    """The same policy, weight for weight, after 4096 steps and 128 updates."""
    compare(
        "sb3-contrib",
        "RecurrentPPO, CartPole without velocities, H=128",
        road,
        lambda library, steps: _learn(library, steps, road),
        short=512,
        full=4096,
        limit=1e-3,
    )


def test_own_tests(own_tests):
    """sb3-contrib's test_lstm.py, from its source archive: each kind of policy, shared and separate LSTMs,
    layers with dropout, states for each environment. Without its training of minutes."""
    suite = Path(sys.prefix, "sources", f"sb3_contrib-{version('sb3-contrib')}", "tests", "test_lstm.py")
    assert suite.is_file(), "make test-clients fetches it"
    own_tests("-m", "not slow", str(suite), summary="20 passed, 1 deselected")
