"""Lightning's Trainer: clipping, accumulated gradients, bf16 autocast, checkpoints, torch.compile."""

from __future__ import annotations

import logging

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastrnn

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

LIBRARIES = {"torch.nn": nn, "fastrnn": fastrnn}
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


class Adding(pl.LightningModule):
    """The adding problem: the sum of the two marked numbers of a sequence."""

    def __init__(self, library, hidden: int = 96):
        super().__init__()
        self.rnn = library.LSTM(2, hidden, 2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch, _):
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def _data(rows: int) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(rows, 50, generator=generator)
    marks = torch.zeros(rows, 50)
    marks.scatter_(1, torch.rand(rows, 50, generator=generator).topk(2).indices, 1.0)
    return DataLoader(
        TensorDataset(torch.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdim=True)), 32
    )


def _trainer(folder, **options) -> pl.Trainer:
    options = {"logger": False, "enable_checkpointing": False, **options}
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def _fit(library: str, batches: int, folder, **options) -> dict[str, torch.Tensor]:
    pl.seed_everything(1, verbose=False)
    model = Adding(LIBRARIES[library])
    _trainer(folder, gradient_clip_val=1.0, **options).fit(model, _data(32 * batches))
    return {k: v.detach() for k, v in model.named_parameters()}


@pytest.mark.parametrize(
    ("what", "options", "limit"),
    [
        ("float32, gradient clipping", {}, 1e-4),
        ("accumulated gradients", {"accumulate_grad_batches": 4}, 1e-4),
        ("bf16-mixed", {"precision": "bf16-mixed"}, 0.05),
    ],
    ids=["float32", "accumulated", "bf16"],
)
def test_trainer(compare, tmp_path, what, options, limit):
    """The same weights after an epoch."""
    compare(
        "lightning",
        f"Trainer.fit, LSTM, H=96, 2 layers, {what}",
        "import",
        lambda library, batches: _fit(library, batches, tmp_path, **options),
        short=2,
        full=24,
        limit=limit,
    )


def test_checkpoints_cross_over(tmp_path):
    """A checkpoint of the Trainer with torch.nn's layer goes on with fastrnn's, optimizer state included."""
    pl.seed_everything(1, verbose=False)
    trainer = _trainer(tmp_path)
    trainer.fit(Adding(nn), _data(64))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    found = {}
    for name, library in LIBRARIES.items():
        pl.seed_everything(2, verbose=False)
        model = Adding(library)
        trainer = _trainer(tmp_path)
        trainer.fit_loop.max_epochs = 2
        trainer.fit(model, _data(64), ckpt_path=tmp_path / "half.ckpt")
        assert trainer.current_epoch == 2
        found[name] = {k: v.detach() for k, v in model.named_parameters()}
    torch.testing.assert_close(found["fastrnn"], found["torch.nn"])


def test_compiled(tmp_path):
    """Trainer.fit of a module under torch.compile(fullgraph=True): the weights of eager mode.

    Without dropout: eager and compiled code draw other masks."""
    found = []
    for compiled in (False, True):
        pl.seed_everything(1, verbose=False)
        model = Adding(fastrnn, hidden=16)
        model.rnn.dropout = 0.0
        if compiled:
            model.rnn.compile(fullgraph=True)
        _trainer(tmp_path).fit(model, _data(96))
        found.append({k: v.detach() for k, v in model.named_parameters()})
    torch._dynamo.reset()
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
