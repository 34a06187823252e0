"""Two gloo processes against one: DDP, DDP with torch.compile, FSDP2 give the whole batch's gradients, and
benchmarks/char_lm.py under torchrun the losses of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import HANGS_S, randn
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
    # DDP, of any module, leaves the group's threads behind it, and where one of them is at work while Python
    # ends, the process ends with std::terminate: it ends here, when all is written.
    os._exit(0)


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("kind", ["ddp", "compiled", "fsdp2"])
def test_two_processes(kind, tmp_path):
    """Averaged over two halves of a batch, every gradient is the whole batch's in one process."""
    here = Path(__file__).resolve()
    paths = os.pathsep.join([str(here.parents[2]), str(here.parents[1])])
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
        messages = [w.communicate(timeout=HANGS_S)[1] for w in workers]
    finally:
        for w in workers:
            w.kill()
    assert [w.returncode for w in workers] == [0, 0], "\n".join(messages)
    model = _model()
    model(randn(3, ROWS, 4)).pow(2).mean().backward()
    found = torch.load(tmp_path / "gradients.pt")
    for label, p in model.named_parameters():
        assert_close(found[label], p.grad, torch.float32, gradient=True, what=label)


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed")
def test_char_lm_under_torchrun(tmp_path, monkeypatch):
    """Two processes with half of each batch have the losses of one with all of it, step by step; one of them
    prints and writes, and at equal time all stop after the same step; a batch that cannot be shared is an
    error that says so."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "char_lm.py"
    arguments = ["--hidden", "16", "--steps", "6", "--batch", "4", "--length", "12", "--write", "0"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    done = subprocess.run(
        [*launcher, str(script), *arguments, "--threads", "1", "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"processes: {WORLD}" in done.stdout
    assert done.stdout.count("they coincide") == 1

    spec = importlib.util.spec_from_file_location("char_lm", script)
    char_lm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(char_lm)
    assert char_lm.main([*arguments, "--no-race", "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / kind / "char_lm-lstm-16.json").read_text()) for kind in ("one", "two"))
    for library, losses in one["losses"].items():
        assert len(losses) == 6
        found = torch.tensor(two["losses"][library])
        assert_close(found, torch.tensor(losses), torch.float32, gradient=True, what=library)
    assert len(two["equal_time"]) == 3

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit, match="--batch should be a multiple of the 3 processes, got 4"):
        char_lm.main(arguments)


if __name__ == "__main__":
    _worker(*sys.argv[1:])
