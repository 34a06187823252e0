"""Every architecture learns its task: a quick run in ``make test``, the full one in ``make models``."""

from __future__ import annotations

import _demo
import pytest


@pytest.mark.parametrize("name", _demo.NAMES)
def test_training_reaches_the_targets(name, request, record_figures):
    """Protects what the README says of each architecture: it trains to the score that it names."""
    full = request.config.getoption("--full")
    demo = _demo.load(name)(seed=0)
    demo.train(demo.steps if full else demo.quick_steps)
    score = demo.score() | (demo.compare() if full else {})
    targets = demo.targets if full else demo.quick_targets
    record_figures(name, score, targets)
    assert not _demo.missed(score, targets)


@pytest.mark.parametrize("name", _demo.NAMES)
def test_sample_and_picture(name, tmp_path):
    """Protects what an example shows: a sample in words and a picture, after any amount of training."""
    pytest.importorskip("matplotlib")
    demo = _demo.load(name)(seed=1)
    assert len(demo.train(2)) == 2
    assert demo.sample().strip()
    demo.picture(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
