"""Stacked layers as a wavefront: verified and timed like a tier, and nobody's default before that."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emu.build import library as emulator
from tuning_fakes import A100, FAULTS, GPU, STACK, Scripted, stack, tuned

import fastrnn
from fastrnn import cli
from fastrnn._ops import cuda, devices
from fastrnn._plan.route import Route
from fastrnn._plan.tuning import cache, identity, session, stacks, trust
from fastrnn._plan.tuning.kinds import Stack, of_stack
from fastrnn._plan.tuning.stacks import Wave
from fastrnn._run import rnn, wavefront
from fastrnn._run.tuning import calls, child, tune

CHILD = Path(__file__).with_name("tuning_child.py")
LAYERS = stacks.layers_of(STACK)
WAVES = [f"wavefront_{n} one_cta/one_cta" for n in (2, 4)]


def of_layers(store, states=None) -> None:
    """Layers of the stack, tuned: both tiers verified, one CTA's the faster one."""
    record = {"forward": "torch", "backward": "torch", "candidates": {}}
    for which in ("forward", "backward"):
        record["candidates"] |= {
            f"one_cta {which}": {"state": "verified", "us": 5.0},
            f"grid {which}": {"state": "verified", "us": 7.0},
        }
    record["candidates"] |= {name: {"state": state} for name, state in (states or {}).items()}

    def change(document):
        kinds = cache.device_of(document, identity.text(GPU), dict(GPU))["kinds"]
        kinds.update({kind.key: record for kind in LAYERS})

    store.update(change)


def all_of(store) -> dict:
    return store.read()["devices"][identity.text(GPU)]["kinds"]


def fast(store, **us) -> Scripted:
    """A runner for which four pieces are the fastest, and torch's own layers the slowest."""
    times = dict(zip(WAVES, (60.0, 40.0), strict=True)) | {"layers one_cta/one_cta": 80.0} | us
    return Scripted(store, us=times, torch_us=100.0)


def test_a_stack_is_a_kind_of_its_own():
    """Its name is the lowest layer's and the number of layers; what runs whole for sure is none."""
    assert STACK.key.endswith(" training full L=3")
    assert "L=" not in replace(STACK, layers=1).key
    facts = Stack("lstm", 33, 3, 4, 20, 0, 1, 3, "bfloat16", False, True, False)
    assert stacks.of_layers(facts) == STACK
    for fact in ({"T": 15}, {"proj": 8}, {"directions": 2}, {"num_layers": 1}, {"packed": True}):
        assert stacks.of_layers(facts._replace(**fact)) is None
    assert stacks.of_layers(facts, dropped=True) is None


def test_wavefronts_are_made_of_proven_layers(store):
    """The fastest tier that every layer has verified and of which two fit; without one there is nothing to
    try, and pieces have eight steps at least."""
    runner = Scripted(store)
    record = tuned(runner, STACK)
    assert not runner.asked
    assert record["forward"] == "layers"
    of_layers(store)
    assert [w.name for w in stacks.candidates(STACK, all_of(store), A100)] == WAVES
    of_layers(store, {"one_cta backward": "quarantined"})
    assert [w.name for w in stacks.candidates(STACK, all_of(store), A100)] == [
        f"wavefront_{n} one_cta/grid" for n in (2, 4)
    ]
    assert stacks.whole(STACK, all_of(store), A100) == Wave(1, "one_cta", "grid")
    assert not list(stacks.candidates(STACK, all_of(store), replace(A100, sms=1)))
    of_layers(store, dict.fromkeys(("one_cta backward", "grid backward"), "running"))
    assert not list(stacks.candidates(STACK, all_of(store), A100))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_in_quarantine(store, fault):
    """As for the tiers: with the word for it, "running" before the launch, and the others are tuned."""
    of_layers(store)
    runner = fast(store)
    runner.verdicts = {WAVES[1]: FAULTS[fault]}
    record = tuned(runner, STACK)
    assert record["candidates"][WAVES[1]]["state"] == "quarantined"
    assert record["candidates"][WAVES[1]]["why"].startswith(fault)
    assert set(runner.seen) == {"running"}
    assert record["forward"] == record["backward"] == "wavefront_2"
    assert tuned(fast(store), STACK)["forward"] == "wavefront_2"  # not tried again
    assert tuned(fast(store), STACK, again=True)["forward"] == "wavefront_4"


def test_slow_and_late_faults(store):
    """What whole layers outrun; and what hangs only when it is timed takes no other's time with it."""
    of_layers(store)
    record = tuned(fast(store, **{WAVES[1]: 80.5, WAVES[0]: 79.0}), STACK)
    assert record["candidates"][WAVES[1]]["why"] == "slow: 80.5 µs, whole layers take 80.0"
    assert record["forward"] == "layers"  # which are ahead of torch's, and nearly as fast
    of_layers(store)
    record = tuned(fast(store, **{WAVES[1]: FAULTS["hang"]}), STACK, again=True)
    assert record["candidates"][WAVES[1]]["why"].startswith("hang")
    assert record["forward"] == "wavefront_2"


@pytest.mark.parametrize(
    ("us", "whole", "torch_us", "want"),
    [
        ((60, 40), 80, 100, "wavefront_4"),
        ((40, 60), 80, 100, "wavefront_2"),
        ((40, 40), 80, 100, "wavefront_2"),  # of equals the one with fewer launches
        ((79, 77), 80, 100, "layers"),  # wins by less than 5%
        ((60, 40), 80, 42, "torch"),
        ((60, 39), 80, 42, "wavefront_4"),
        ((), 80, 100, "layers"),
        ((), 98, 100, "torch"),
        ((60, 40), 80, None, "wavefront_4"),
    ],
)
def test_who_computes_a_stack(us, whole, torch_us, want):
    """A wavefront that beats whole layers and torch's own by 5% or more."""
    waves = dict(zip((Wave(2, "grid", "grid"), Wave(4, "grid", "grid")), us, strict=False))
    won, why = stacks.decided(waves, whole, torch_us)
    assert (won.tier if isinstance(won, Wave) else won) == want
    assert f"{whole:.1f}" in why


def test_what_was_found_is_trusted(gpu, monkeypatch):
    """Read from the cache: the stack's pieces run, with the tiers that its own record names, whatever is said
    of single layers; and not a moment longer than all of it is verified."""
    of_layers(gpu)
    here = trust.device(0)
    assert trust.doubt(here, LAYERS, STACK) == decide_as_fast()
    tuned(fast(gpu), STACK)
    trust.learnt(0)
    here = trust.device(0)
    assert here.stacks == {STACK.key: Wave(4, "one_cta", "one_cta")}
    assert trust.doubt(here, LAYERS, STACK) is None
    assert trust.doubt(here, LAYERS) == decide_as_fast()  # whole
    assert here.proven()[STACK.key] == ("wavefront_4", "wavefront_4")
    for T in (33, 64):  # that share the key: pieces of 8 and 9, and of 16 steps
        for n in {T // 4, -(-T // 4)}:
            for kind in stacks.layers_of(STACK, n):
                assert f"{kind.key}\tone_cta\tone_cta\n" in here.lines()
    # What single layers have proven stays the planner's word for them.
    piece = stacks.layers_of(STACK, 9)[0].key
    here.entries[piece] = ("grid", "stepwise")
    assert f"{piece}\tgrid\tstepwise\n" in here.lines()
    assert here.lines().count(piece) == 1
    here.entries[piece] = ("torch", "torch")
    assert f"{piece}\tone_cta\tone_cta\n" in here.lines()
    monkeypatch.setattr(cuda, "quarantined", lambda _: {"one_cta": "it gave up"})
    assert trust.wavefront(here, STACK) is None
    monkeypatch.setattr(cuda, "quarantined", lambda _: {})
    assert trust.wavefront(here, STACK) is not None
    for states in ({WAVES[1]: "running"}, {WAVES[1]: "quarantined"}):
        gpu.update(lambda d, s=states: _states(d, STACK.key, s))
        trust.learnt(0)
        assert trust.wavefront(trust.device(0), STACK) is None
    gpu.update(lambda d: _states(d, STACK.key, {WAVES[1]: "verified"}))
    trust.learnt(0)
    assert trust.wavefront(trust.device(0), STACK) is not None
    of_layers(gpu, {"one_cta forward": "quarantined"})  # found later, in a layer
    trust.learnt(0)
    assert trust.wavefront(trust.device(0), STACK) is None


def decide_as_fast() -> str:
    return "measured on this device: torch's own layer is as fast"


def _states(document: dict, key: str, states: dict[str, str]) -> None:
    record = document["devices"][identity.text(GPU)]["kinds"][key]
    record["candidates"].update({name: {"state": state} for name, state in states.items()})


@pytest.mark.parametrize(
    "wave", [None, [], [4], ["4", "grid", ""], [1, "grid", ""], [4, "", ""], [4, "new", ""], {"4": 1}]
)
def test_a_record_of_nothing(gpu, wave):
    """Another version's, or edited: no wavefront, no error."""
    of_layers(gpu)
    tuned(fast(gpu), STACK)
    gpu.update(lambda d: d["devices"][identity.text(GPU)]["kinds"][STACK.key].update(wave=wave))
    trust.learnt(0)
    assert trust.device(0).stacks == {}
    assert "one_cta\tone_cta" not in trust.device(0).lines()


class OnGpu:
    is_cuda, is_cpu, requires_grad, dtype = True, False, False, torch.bfloat16
    device, shape = torch.device("cuda", 0), (33, 3, 4)

    def size(self, i):
        return self.shape[i]


def way(trained=True, **changes) -> Route:
    weight = OnGpu()
    weight.requires_grad = trained
    return rnn._way(stack(**{"num_layers": 3} | changes), OnGpu(), [weight], None, 3, None)


def test_a_call_is_cut_as_proven(gpu, monkeypatch):
    """And one that says otherwise, or that cannot be cut, is not."""
    monkeypatch.setattr(devices, "runs", lambda _: True)
    of_layers(gpu)
    tuned(fast(gpu), STACK)
    found = way()
    assert (found.runner, found.pieces) == ("fused", 4)
    with wavefront.wavefront(2):
        assert wavefront.pieces(OnGpu(), way().pieces) == 2
    with wavefront.wavefront(1):
        assert way().runner == "native"
    with wavefront.wavefront(None):
        assert way().pieces == 4
    for changes in ({"dropout": 0.5}, {"bidirectional": True}, {"num_layers": 2}, {"trained": False}):
        found = way(**changes)
        assert (found.runner, found.pieces) == ("native", 1)
    assert wavefront.pieces(torch.empty(3, 1, 1), 4) == 3


def test_pieces_of_a_way_are_run(monkeypatch):
    """Protects the link from what is proven to what runs, with equal numbers."""
    cut = []
    run = wavefront.run
    monkeypatch.setattr(wavefront, "run", lambda *a, **k: cut.append(a[-1]) or run(*a, **k))
    layer, x = fastrnn.GRU(4, 6, 3), torch.randn(11, 2, 4)
    want = layer(x)[0]
    monkeypatch.setattr(rnn, "_way", lambda *_: Route("fused", pieces=3))
    torch.testing.assert_close(layer(x)[0], want)
    assert cut == [3]


def test_autocast_is_the_kernels_precision(gpu):
    """What is known of float32 says nothing of a call that autocast computes in bfloat16, and the other way
    round."""
    kinds = of_stack(Stack("lstm", 33, 3, 4, 20, 0, 1, 1, "bfloat16", False, False, False))
    trust.device(0).entries.update({kind.key: ("grid", "stepwise") for kind in kinds})
    x = OnGpu()
    x.dtype = torch.float32
    assert calls.answer(stack(), x, 3, None, False)[0] == trust.UNVERIFIED
    before = torch.get_autocast_dtype("cuda")
    try:
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        assert calls.answer(stack(), x, 3, None, False, autocast=True)[0] is None
        torch.set_autocast_dtype("cuda", torch.float16)
        assert calls.answer(stack(), x, 3, None, False, autocast=True)[0] == trust.UNVERIFIED
    finally:
        torch.set_autocast_dtype("cuda", before)


def test_the_first_call(on):
    """FASTRNN_TUNE=on: layers, and then their stack, once."""
    found = calls.answer(stack(3), OnGpu(), 3, None, True)
    assert found == (None, 1)  # every candidate takes 20 µs, whole layers too: nothing is worth a cut
    count = len(on.asked)
    assert calls.answer(stack(3), OnGpu(), 3, None, True) == found
    assert len(on.asked) == count


def test_tune_and_explain(scripted, capsys):
    """A model's stack is tuned with its layers, a shape's with num_layers; explain and cuda_status tell."""
    scripted.us = {"layers one_cta/one_cta": 80.0, WAVES[1]: 10.0}
    model = fastrnn.LSTM(4, 20, num_layers=3, dtype=torch.bfloat16)
    found = fastrnn.tune(model, (33, 3), training=True, progress=False)
    assert list(found.kinds) == [*dict.fromkeys(kind.key for kind in LAYERS), STACK.key]
    assert found.kinds[STACK.key]["forward"] == "wavefront_4"
    assert "wavefront_4" in str(found)
    said = fastrnn.explain(model, (33, 3), device="cuda", training=True)
    assert said.kernels == ["one_cta"] * 3
    assert "as a wavefront of 4 pieces, which was verified and measured on this device" in str(said)
    assert "4 pieces" not in str(fastrnn.explain(model, (33, 3), device="cuda", training=False))
    assert fastrnn.cuda_status()["devices"][0]["proven"][STACK.key] == ("wavefront_4",) * 2
    dropped = fastrnn.LSTM(4, 20, num_layers=3, dropout=0.1)
    keys = tune.kinds_of(dropped, (33, 3))
    assert [k.training for k in keys if k.layers > 1] == [False]
    assert cli.main(["tune", "--shape", "33,3,4,20", "--layers", "3", "--dtype", "bfloat16"]) == 0
    assert "wavefront_4" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["tune", "--shape", "33,3,4,20", "--layers", "0"])


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("", ""),
        ("wrong:grid", "wrong numbers: "),
        ("nan:grid", "NaN: "),
        ("bits:grid", "different bits: "),
        ("hang:grid", "hang: no answer within"),
        ("crash:grid", "crash: the process ended with signal SIGSEGV"),
        ("error:grid", "error: RuntimeError: CUDA error: an illegal memory access"),
    ],
)
def test_planted_faults(store, fault, word):
    """Real kernels on the emulator, cut into pieces in a real child process: right ones are verified, with
    every gradient, and timed; a fault of theirs ends in quarantine with the right words."""
    emulator()  # compiled before a time limit runs
    quarantined = dict.fromkeys(("one_cta forward", "one_cta backward"), "quarantined")
    of_layers(store, quarantined)
    kind = replace(STACK, T=17, training=not fault)
    record = all_of(store)[LAYERS[0].key]
    store.update(lambda d: _more(d, {layer.key: record for layer in stacks.layers_of(kind)}))
    limit = 6.0 if fault.startswith("hang") else 120.0
    with child.Child([sys.executable, str(CHILD), fault], limit_s=limit, start_limit_s=240.0) as runner:
        found = session.Session(store, dict(GPU), A100, runner).run([kind])[0].record
    (name,) = found["candidates"]
    assert name == "wavefront_2 grid" + "/grid" * kind.training
    entry = found["candidates"][name]
    if fault:
        assert entry["state"] == "quarantined"
        assert entry["why"].startswith(word)
        # Whole layers have the same fault, and what hangs or crashes has no time either.
        assert found.get("forward", "torch") in ("torch", "layers")
    else:
        assert entry["state"] == "verified" or entry["why"].startswith("slow")
        assert entry["us"] > 0


def _more(document: dict, records: dict) -> None:
    document["devices"][identity.text(GPU)]["kinds"].update(records)


@pytest.mark.parametrize("lost", ["state", "order", "gradient"])
def test_a_wavefront_with_a_fault_of_its_own(monkeypatch, lost):
    """What no tier has to answer for: a state that is not carried on, pieces in the wrong order, a gradient
    that goes astray between pieces."""
    import runpy

    executor = runpy.run_path(str(CHILD), run_name="tuning_child")["executor"]()
    kind = replace(STACK, T=16, layers=2)
    assert executor.verify(kind, Wave(2, "one_cta", "one_cta")).ok
    run_pieces = wavefront._run_pieces

    def faulty(layer, values, states, weights, *more):
        first = [tuple(state) for state in states]

        def astray(x, h, c, own):
            number = next(k for k, w in enumerate(weights) if w is own)
            if lost == "state":
                y, *_ = layer(x, h, c, own)
                return y, *first[number]
            return layer(x, h if h is first[number][0] else h.detach(), c, own)

        if lost == "order":
            values.reverse()
        run_pieces(layer if lost == "order" else astray, values, states, weights, *more)

    monkeypatch.setattr(wavefront, "_run_pieces", faulty)
    found = executor.verify(kind, Wave(2, "one_cta", "one_cta"))
    assert (found.ok, found.what) == (False, "wrong numbers")
    assert ("grad" in found.why) == (lost == "gradient")
