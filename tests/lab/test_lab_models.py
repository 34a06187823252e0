"""``python -m benchmarks.lab --models``: whole models with fastrnn's layers and with torch.nn's."""

from __future__ import annotations

import json

import _demo
import pytest
import torch
from torch import nn

import fastrnn
from benchmarks.lab import models
from benchmarks.lab.__main__ import main
from fastrnn.cli import console


class Small(_demo.Demo):
    """Any layer on rows of unequal length."""

    title = "a small model"
    steps = quick_steps = 1

    def __init__(self, seed: int = 0, layer=lambda: fastrnn.LSTM(3, 4, dropout=0.5, num_layers=2)):
        super().__init__(seed)
        self.model = nn.Sequential(layer())

    def batch(self):
        return torch.randn(5, 3, 3, generator=self.generator), torch.tensor([5, 2, 3])

    def loss(self, x, lengths):
        kwargs = {} if isinstance(self.model[0], fastrnn.SRU) else {"lengths": lengths}
        return self.model[0](x, **kwargs)[0].square().mean()

    def score(self):
        return {}

    def sample(self):
        return ""

    def picture(self, path):
        pass


def test_torchs_layer_takes_lengths():
    """Protects the rival: nn.LSTM with lengths by packing gives fastrnn's numbers."""
    for batch_first in (False, True):
        ours = fastrnn.LSTM(3, 4, bidirectional=True, batch_first=batch_first)
        theirs = nn.Sequential(fastrnn.LSTM(3, 4, bidirectional=True, batch_first=batch_first))
        theirs[0].load_state_dict(ours.state_dict())
        assert models.swap(theirs) == 1
        assert type(theirs[0]) is nn.LSTM
        x = torch.randn(5, 5, 3)
        for lengths in (None, [2, 5, 1, 4, 3]):
            (y, (h, c)), (y2, (h2, c2)) = ours(x, lengths=lengths), theirs[0](x, lengths=lengths)
            for a, b in ((y, y2), (h, h2), (c, c2)):
                torch.testing.assert_close(a, b)


def test_the_twin_is_reverted_and_agrees():
    """Protects what is compared: no layer of fastrnn's in the twin, and equal loss and gradients."""
    ours, theirs = Small(), Small()
    models.swap(theirs.model)
    assert not [m for m in theirs.model.modules() if type(m).__module__.startswith("fastrnn")]
    batch = ours.batch()
    assert models.difference(ours, theirs, batch) < 1e-5
    with torch.no_grad():
        theirs.model[0].weight_ih_l0.mul_(1.1)
    assert models.difference(ours, theirs, batch) > models.AGREEMENT


def test_training_steps_keep_the_weights():
    """Protects the timing: every round works on the same weights."""
    demo = Small()
    before = {k: v.clone() for k, v in demo.model.state_dict().items()}
    step = models.contender("fastrnn", demo, demo.batch(), "training step")
    step.enter()
    step.call()
    assert demo.model.training
    assert all(p.grad is not None for p in demo.model.parameters())
    for k, v in demo.model.state_dict().items():
        torch.testing.assert_close(v, before[k], rtol=0, atol=0)


def wrong(seed: int = 0):
    """A demo whose second model differs from the first."""
    demo = Small(seed)
    with torch.no_grad():
        demo.model[0].weight_hh_l0.add_(next(wrong.shift))
    return demo


wrong.shift = iter((0.0, 0.5))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (lambda seed: Small(seed, lambda: fastrnn.SRU(3, 4)), "no recurrent layers of torch.nn's kinds"),
        (wrong, "FAILED: loss or gradients differ by"),
        (lambda seed: Small(seed, lambda: nn.Linear(2, 2)), "no recurrent layers"),
    ],
)
def test_what_cannot_be_timed_says_why(kind, reason, monkeypatch):
    """Protects the report's honesty: a model without rival or with other numbers has no ratio."""
    kind.title = "a title"
    monkeypatch.setattr(_demo, "load", lambda name: kind)
    result = models.time_demo("any", 1, budget_s=0.1, min_rounds=1)
    assert result["skipped"].startswith(reason)
    assert "work" not in result
    assert models.table([result]).rows[0][2:] == ["–"] * 6


def test_bench_models_end_to_end(tmp_path, capsys, monkeypatch):
    """Protects the command: table, report, ratios that are those of the medians."""
    monkeypatch.setattr(console, "rich", None)
    arguments = ["--models", "seasonal", "--threads", "1", "--budget", "0.3", "--rounds", "3"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "training step, fastrnn ms" in out
    run = json.loads((tmp_path / "results.json").read_text())
    (result,) = run["results"]
    assert result["layers"] == 1
    assert result["difference"] < models.AGREEMENT
    for work in models.WORK:
        times = result["work"][work]
        expected = times["torch"]["median_s"] / times["fastrnn"]["median_s"]
        assert models.ratio(result, work) == pytest.approx(expected)
        assert f"**{expected:.2f}**" in (tmp_path / "report.md").read_text()


def test_wrong_options(monkeypatch):
    """Protects the messages for a model that is not there, and for a GPU."""
    with pytest.raises(SystemExit, match="--models: example: expected one of"):
        main(["--models", "nonsense"])
    with pytest.raises(SystemExit, match="--models runs on the CPU"):
        main(["--models", "--device", "cuda"])


def test_a_failure_is_a_line_and_the_exit_status(tmp_path, capsys, monkeypatch):
    """Protects the run: one broken model neither ends it nor passes."""

    def loss(self, *batch):
        raise RuntimeError("no such data\nsecond line")

    monkeypatch.setattr(_demo.load("seasonal"), "loss", loss)
    assert main(["--models", "seasonal", "--threads", "1", "--out", str(tmp_path)]) == 1
    assert "seasonal: FAILED: RuntimeError: no such data\n" in capsys.readouterr().out
