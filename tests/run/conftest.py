"""A process that knows nothing of any GPU, one that has a GPU which is not here, and what calls did."""

from __future__ import annotations

import pytest
import torch
from tuning_fakes import A100, GPU, Scripted

from fastrnn._ops import cuda, library
from fastrnn._plan import gpus
from fastrnn._plan.tuning import identity, trust
from fastrnn._run import streaming
from fastrnn._run.tuning import calls, tune


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A cache of the test's own, and a process that knows nothing."""
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTRNN_TUNE", raising=False)
    trust.forget()
    yield trust.store()
    trust.forget()


@pytest.fixture
def gpu(store, monkeypatch):
    """A GPU that is not here, as far as the Python around its kernels looks at one."""
    monkeypatch.setattr(library, "cuda_loaded", True)
    monkeypatch.setattr(cuda, "loaded", lambda: False)
    monkeypatch.setattr(identity, "of", lambda _: dict(GPU))
    monkeypatch.setattr(gpus, "find", lambda *_, **__: A100)
    monkeypatch.setattr(calls, "_tried", set())
    for name, value in {
        "is_available": True,
        "current_device": 0,
        "device_count": 1,
        "get_device_name": "Test GPU",
        "is_current_stream_capturing": False,
        "synchronize": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    return store


@pytest.fixture
def on(gpu, monkeypatch):
    """FASTRNN_TUNE=on, with a runner that finds everything right and fast."""
    monkeypatch.setenv("FASTRNN_TUNE", "on")
    runner = Scripted(gpu)
    monkeypatch.setattr(tune, "runner_for", lambda *_: runner)
    eligible = trust.eligible
    monkeypatch.setattr(trust, "eligible", lambda _: eligible(torch.zeros(1)))
    return runner


@pytest.fixture
def scripted(gpu, monkeypatch):
    runner = Scripted(gpu)
    monkeypatch.setattr(tune, "runner_for", lambda *_: runner)
    return runner


@pytest.fixture
def long_calls(monkeypatch):
    """Which calls of a streamer went the long way."""
    calls, checked = [], streaming.Streamer._checked

    def note(self):
        calls.append(1)
        return checked(self)

    monkeypatch.setattr(streaming.Streamer, "_checked", note)
    return calls
