"""Two gloo processes against one: DDP, DDP with torch.compile, FSDP2 give the whole batch's gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import randn
from tolerances import assert_close
from torch import distributed, nn

import fastrnn

WORLD, ROWS = 2, 4


def _model() -> nn.Module:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = fastrnn.LSTM(4, 6, 2, bidirectional=True)
            self.gru = fastrnn.GRU(12, 5)

        def forward(self, x):
            return self.gru(self.lstm(x)[0])[0]

    return Model()


def _worker(kind: str, folder: str) -> None:
    """One process: its half of the batch, and at the end rank 0 writes the gradients down."""
    rank = int(os.environ["RANK"])
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    torch.set_num_threads(1)
    model = _model()
    if kind == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (WORLD,))
        for layer in (model.lstm, model.gru):
            fully_shard(layer, mesh=mesh)
        call = fully_shard(model, mesh=mesh)
    else:
        call = nn.parallel.DistributedDataParallel(model)
        if kind == "compiled":
            call = torch.compile(call, backend="aot_eager")
    half = randn(3, ROWS, 4).chunk(WORLD, dim=1)[rank]
    for _ in range(2):  # FSDP frees and gathers the weights between steps
        model.zero_grad()
        call(half).pow(2).mean().backward()
    gradients = {}
    for label, p in model.named_parameters():
        gradients[label] = p.grad.full_tensor() if kind == "fsdp2" else p.grad
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("kind", ["ddp", "compiled", "fsdp2"])
def test_two_processes(kind, tmp_path):
    """Averaged over two halves of a batch, every gradient is the whole batch's in one process."""
    here = Path(__file__).resolve()
    paths = os.pathsep.join([str(here.parents[1]), str(here.parent)])
    workers = [
        subprocess.Popen(
            [sys.executable, str(here), kind, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": paths, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        messages = [w.communicate(timeout=120)[1] for w in workers]
    finally:
        for w in workers:
            w.kill()
    assert [w.returncode for w in workers] == [0, 0], "\n".join(messages)
    model = _model()
    model(randn(3, ROWS, 4)).pow(2).mean().backward()
    found = torch.load(tmp_path / "gradients.pt")
    for label, p in model.named_parameters():
        assert_close(found[label], p.grad, torch.float32, gradient=True, what=label)


if __name__ == "__main__":
    _worker(*sys.argv[1:])
