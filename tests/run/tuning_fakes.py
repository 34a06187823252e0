"""What tests of tuning share: a GPU that is not here, as data, and a runner that does as it is told."""

from __future__ import annotations

import json

import torch

from fastrnn._plan import gpus
from fastrnn._plan.tuning import cache, identity, session
from fastrnn._plan.tuning.kinds import Kind
from fastrnn._run import rnn
from fastrnn._run.tuning import calls

GPU = {"gpu": "Test GPU", "driver": "1", "library": "abc"}
H100, A100 = gpus.KNOWN["H100"], gpus.KNOWN["A100"]
#: Small, and only one CTA's and the grid's on a GPU without clusters.
KIND = Kind("lstm", 6, 3, 4, 20, dtype="bfloat16", training=True)
#: Three layers like it, of which pieces can be made: two or four.
STACK = Kind("lstm", 33, 3, 4, 20, dtype="bfloat16", training=True, layers=3)


class Scripted:
    """A runner that does as it is told, and writes down what it was asked and what the cache said then."""

    def __init__(self, store, verdicts=None, us=None, torch_us=100.0, stepwise=50.0):
        self.store, self.verdicts, self.us = store, verdicts or {}, us or {}
        self.torch_us, self.stepwise, self.asked, self.seen = torch_us, stepwise, [], []

    def verify(self, kind, candidate):
        self.asked.append(candidate.name)
        on_disk = json.loads(self.store.path.read_text())
        (device,) = on_disk["devices"].values()
        self.seen.append(device["kinds"][kind.key]["candidates"][candidate.name]["state"])
        found = self.verdicts.get(candidate.name, session.Verdict(True))
        if isinstance(found, BaseException):
            raise found
        return found

    def time(self, kind, chosen):
        self.asked.append("time")
        bad = next(
            (self.us[c.name] for c in chosen if isinstance(self.us.get(c.name), session.Verdict)), None
        )
        if bad:
            return bad
        steps = {} if kind.layers > 1 else dict.fromkeys(kind.passes, self.stepwise)
        return session.Times({c: self.us.get(c.name, 20.0) for c in chosen}, steps, self.torch_us)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def tuned(runner, kind=KIND, device=A100, **options):
    return session.Session(runner.store, dict(GPU), device, runner, **options).run([kind])[0].record


def known(store) -> dict:
    return store.read()["devices"][identity.text(GPU)]["kinds"][KIND.key]


FAULTS = {
    "wrong numbers": session.Verdict(False, "wrong numbers", "y is off by 1"),
    "NaN": session.Verdict(False, "NaN", "y"),
    "different bits": session.Verdict(False, "different bits", "y of a second run"),
    "hang": session.Verdict(False, "hang", "no answer"),
    "crash": session.Verdict(False, "crash", "signal SIGSEGV"),
    "error": session.Verdict(False, "error", "CUDA error"),
}


def written(
    store, forward="grid", backward="one_cta", device=GPU, kind=KIND, state="verified", quarantined=None
):
    record = {
        "forward": forward,
        "backward": backward,
        "candidates": {
            f"{t} {w}": {"state": state} for t in (forward, backward) for w in ("forward", "backward")
        },
    }

    def change(document):
        mine = cache.device_of(document, identity.text(device), dict(device))
        mine["kinds"][kind.key] = record
        mine["quarantined"].update(quarantined or {})

    store.update(change)


def stack(num_layers: int = 1, **changes) -> rnn.Stack:
    options = {"bias": True, "dropout": 0.0, "training": True, "bidirectional": False, "batch_first": False}
    options |= {"num_layers": num_layers, "save": "gates", "backend": "auto"}
    return rnn.Stack("LSTM", "lstm", 4, 20, 0, **(options | changes))


def first_call(x=None):
    """What a call of a layer is told."""
    x = torch.zeros(6, 3, 4, dtype=torch.bfloat16) if x is None else x

    class Called:
        dtype, device, size = x.dtype, torch.device("cuda", 0), x.size

    called = Called()
    return calls.doubt(stack(), called, 3, None, True)
