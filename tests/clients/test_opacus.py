"""opacus: its layers' weights go into fastrnn's, per-sample gradients come out as its own, and its DP-SGD
trains fastrnn's layers as it trains its own."""

from __future__ import annotations

import pytest
import torch
from opacus import GradSampleModule, PrivacyEngine
from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

import fastrnn

DP = {"LSTM": DPLSTM, "GRU": DPGRU, "RNN": DPRNN}
ROWS, STEPS, IN, H = 16, 20, 24, 48


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("name", DP)
def test_per_sample_gradients(compare, name):
    """opacus collects them with hooks in its own layers, made of linear ones; here torch.func takes
    fastrnn's layer as it is. Two layers, two directions, opacus's state_dict loaded."""
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    torch.manual_seed(0)
    theirs = DP[name](IN, H, **options)
    x = torch.randn(ROWS, STEPS, IN)

    def opacus_runs():
        model = GradSampleModule(theirs, loss_reduction="sum")
        model(x)[0].square().sum().backward()
        found = {label: p.grad_sample for label, p in theirs.named_parameters()}
        model.to_standard_module().zero_grad()
        return found

    def ours_runs():
        ours = getattr(fastrnn, name)(IN, H, **options)
        ours.load_state_dict(theirs.state_dict())
        weights = {label: p.detach() for label, p in ours.named_parameters()}

        def loss(weights, row):
            return functional_call(ours, weights, (row.unsqueeze(0),))[0].square().sum()

        return vmap(grad(loss), in_dims=(None, 0))(weights, x)

    def run(library, times):
        for _ in range(times):
            found = ours_runs() if library == "fastrnn" else opacus_runs()
        return found

    compare(
        "opacus",
        f"per-sample gradients, DP{name}, 2 layers, 2 directions",
        "vmap(grad)",
        run,
        short=1,
        full=5,
        limit=1e-5,
        kernels=False,
    )


class Ours(fastrnn.LSTM):
    """What opacus can hook: a layer that returns one tensor."""

    def forward(self, input):
        return super().forward(input)[0]


class Theirs(nn.Module):
    """The same of opacus's own layer."""

    def __init__(self, *args, **options):
        super().__init__()
        self.layer = DPLSTM(*args, **options)

    def forward(self, input):
        return self.layer(input)[0]


def _train(library: str, steps: int) -> dict[str, torch.Tensor]:
    """So many steps of DP-SGD with clipping; the weights, by the ends of their names."""
    layer = Theirs if library == "torch.nn" else Ours
    model = nn.Sequential(layer(IN, H, batch_first=True), nn.Linear(H, 1))
    parameters = {name.rpartition(".")[2]: p for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in sorted(parameters):  # their order and their initial values differ
            parameters[name].uniform_(-0.15, 0.15, generator=generator)
    x = torch.randn(ROWS * steps, STEPS, IN, generator=generator)
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        data_loader=DataLoader(TensorDataset(x, x.mean((1, 2)).unsqueeze(1)), batch_size=ROWS),
        noise_multiplier=0.0,  # it is drawn in the order of the parameters
        max_grad_norm=0.1,
        poisson_sampling=False,
    )
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(private(inputs)[:, -1], targets).backward()
        optimizer.step()
    return {name: p.detach() for name, p in parameters.items()}


@pytest.mark.filterwarnings("ignore:.*Secure RNG", "ignore:Full backward hook")
def test_dp_sgd(compare):
    """Per-sample clipping by PrivacyEngine: the weights after training are those with opacus's own layer."""
    compare(
        "opacus",
        "DP-SGD with PrivacyEngine, LSTM",
        "subclass, output only",
        _train,
        short=2,
        full=20,
        limit=1e-4,
    )


def test_own_tests(own_tests):
    """What opacus tests its layers against torch.nn's with passes against fastrnn's kernels."""
    own_tests("--pyargs", "opacus.tests.dp_layers.dp_rnn_test", summary="1 passed")
