"""The benchmark's parts: cases, contenders, timing, limits, memory; and the pytest-benchmark suite."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_runs import tiny

from benchmarks.lab import cases, limits, memory, presets, worker
from benchmarks.lab.cases import Case
from benchmarks.lab.contenders import fastrnn as fastrnn_contender
from benchmarks.lab.contenders import registry as contenders
from benchmarks.lab.problem import Problem, flops, weight_bytes
from fastrnn.proof import timing

ROOT = Path(__file__).resolve().parents[2]


# Cases


def test_full_preset_has_the_eight_shapes_in_every_group():
    chosen = [c for c in presets.select(presets.PRESETS["full"]) if not c.sweep]
    groups = {}
    for c in chosen:
        groups.setdefault(c.group, []).append((c.T, c.B, c.H))
    for cell in ("LSTM", "GRU", "RNN", "LSTM packed", "LSTM projected"):
        for work in cases.WORK:
            assert tuple(groups[f"{cell} {work}"]) == presets.SHAPES
    for cell in ("LSTMCell", "GRUCell"):
        assert {b for _, b, _ in groups[f"{cell} inference"]} == {1, 32}


def test_random_shapes_are_the_same_everywhere():
    """A verdict on them means something only while nobody can choose them."""
    shapes = presets.RANDOM_SHAPES
    assert len(shapes) == 30
    assert shapes[:3] == ((246, 1, 360, 31), (278, 1, 661, 285), (133, 96, 44, 66))
    assert presets.random_shapes(10) == shapes[:10]
    assert presets.random_shapes(seed=1) != shapes
    for shape in presets.random_shapes(2000):
        for size, (least, most) in zip(shape, presets.RANDOM_LIMITS.values(), strict=True):
            assert least <= size <= most
    for k, (least, most) in enumerate(presets.RANDOM_LIMITS.values()):  # both ends are reached
        drawn = {shape[k] for shape in presets.random_shapes(20000)}
        assert min(drawn) == least
        assert max(drawn) == most
    chosen = presets.select(presets.PRESETS["random"])
    assert {(c.T, c.B, c.I, c.H) for c in chosen} == set(shapes)
    assert {c.group for c in chosen} == {f"{c} {w}" for c in ("LSTM", "GRU", "RNN") for w in cases.WORK}


def test_variants_are_cases():
    """Each option of LSTM, GRU and RNN beside the plain layer, in both kinds of work, at the size that the
    limits are about; heads at a larger one too. The full preset has them, the quick one not."""
    chosen = presets.select(presets.PRESETS["variants"])
    groups = {c.group for c in chosen}
    for cell, own in (("LSTM", ("peephole", "coupled")), ("GRU", ("reset_before",)), ("RNN", ())):
        for variant in ("norm", "zoneout", "recurrent_dropout", "weight_dropout", "heads", *own):
            assert {f"{cell} {variant} inference", f"{cell} {variant} training"} <= groups
    assert not any("SRU" in group or group == "GRU peephole training" for group in groups)
    assert {(c.T, c.B, c.H) for c in chosen if c.variant != "heads"} == {(100, 32, 256)}
    assert {c.H for c in chosen if c.variant == "heads"} == {256, 512}
    assert set(chosen) < set(presets.select(presets.PRESETS["full"]))
    assert not any(c.variant for c in presets.select(presets.PRESETS["quick"]))
    half = replace(chosen[0], variant="heads", H=256)
    assert flops(half) < 0.7 * flops(replace(half, variant=""))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("cell", "variant"), [("lstm", "all"), ("gru", "reset_before"), ("rnn", "norm")])
def test_variants_are_compared_with_the_reference(cell, variant, training):
    """A variant's results are the reference's with the same masks; the plain layer, which is something else,
    stands beside it, and nobody else takes part."""
    case = tiny(cell, training=training, H=8, I=8, variant=variant)
    made, differences, skipped = worker.make_contenders(case, ["fastrnn", "plain", "torch", "jax"], 1)
    assert [c.key for c in made] == ["fastrnn", "plain"]
    assert 0 <= differences["fastrnn"] < 1e-5
    assert differences["plain"] is None
    assert {*skipped.values()} == {"plain cells only"}
    for contender in made:
        contender.call()
    assert worker.make_contenders(tiny(), ["plain"], 1)[2] == {"plain": "beside variants only"}


@pytest.mark.parametrize("training", [False, True])
def test_inference_is_timed_within_one_inference_mode(training, monkeypatch):
    """Entering it at each call would be a part of what a torch module is said to take."""
    modes = []

    def call(module, problem, x):
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        return module(x)

    monkeypatch.setattr(fastrnn_contender, "run", call)
    worker.time_case(tiny(training=training), ["fastrnn"], 1, budget_s=0, min_rounds=1)
    assert {*modes} == {(not training, training)}
    assert not torch.is_inference_mode_enabled()


def test_filters():
    full = presets.PRESETS["full"]
    chosen = presets.select(full, cells=["gru"], shapes=[(7, 2, 5)], modes=["layers", "training"])
    assert chosen == [Case("gru", "layers", True, 7, 2, 5, 5)]
    assert {c.path for c in presets.select(full, modes=["packed"])} == {"packed"}
    assert {c.training for c in presets.select(full, modes=["inference"])} == {False}
    dtypes = presets.select(full, dtypes=["bfloat16", "float64"], shapes=[(7, 2, 5)], cells=["rnn"])
    assert [c.dtype for c in dtypes] == ["bfloat16", "bfloat16", "float64", "float64"]
    assert all(c.sweep is False for c in dtypes)


def test_lengths_run_from_all_steps_to_a_tenth():
    lengths = tiny(path="packed", T=100, B=10).lengths()
    assert lengths[0] == 100
    assert lengths[-1] == 10
    assert lengths == sorted(lengths, reverse=True)
    assert tiny(path="packed", T=5, B=1).lengths() == [5]
    assert tiny().lengths() is None


def test_flops_and_bytes_by_hand():
    case = Case("lstm", "layers", False, T=3, B=2, I=5, H=7)
    assert flops(case) == 2 * 3 * 2 * (4 * 7) * (5 + 7)
    assert weight_bytes(case) == (4 * 4 * 7 * 7, 4 * 4 * 7 * 5)
    assert flops(Case("gru", "layers", True, 3, 2, 5, 7)) == 3 * 2 * 3 * 2 * (3 * 7) * (5 + 7)
    projected = Case("lstm", "proj", False, 3, 2, 5, 7, P=2)
    assert flops(projected) == 2 * 3 * 2 * (28 * (5 + 2) + 7 * 2)
    packed = Case("rnn", "packed", False, 10, 2, 5, 7)
    assert flops(packed) == 2 * sum(packed.lengths()) * 7 * (5 + 7)


# Contenders


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("cell", "path"),
    [
        ("lstm", "layers"),
        ("gru", "layers"),
        ("rnn", "layers"),
        ("lstm", "packed"),
        ("lstm", "proj"),
        ("lstm", "cells"),
        ("gru", "cells"),
    ],
)
def test_contenders_agree_and_name_their_library(cell, path, training):
    case = tiny(cell, path, training)
    made, differences, skipped = worker.make_contenders(case, list(contenders.KEYS), 1)
    assert {"torch", "fastrnn", "reference"} <= differences.keys()
    assert max(differences.values()) < 1e-5
    label = next(c.label for c in made if c.key == "torch")
    assert label.startswith("torch.nn (")
    for reason in skipped.values():
        assert reason.endswith(("only", "is not installed")), reason


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", cases.SRU_CELLS)
def test_sru_contenders(cell, training):
    """SRU's contenders agree with its reference; nn.LSTM, another function, stands beside them."""
    case = tiny(cell, training=training)
    made, differences, skipped = worker.make_contenders(case, list(contenders.KEYS), 1)
    assert {"torch", "fastrnn", "reference"} <= differences.keys()
    assert differences.pop("torch") is None
    assert max(differences.values()) < 1e-5
    assert next(c.label for c in made if c.key == "torch").startswith("nn.LSTM (")
    for reason in skipped.values():
        assert reason.endswith(("only", "is not installed")), reason


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", cases.ELEMENTWISE_CELLS)
def test_contenders_of_the_other_recurrences(cell, training):
    """Those that torch.nn has not agree with their definitions, the log-space scan and xlstm's cell too."""
    case = tiny(cell, training=training)
    keys = [k for k in contenders.KEYS if k != "xlstm_compile"]  # half a minute
    made, differences, skipped = worker.make_contenders(case, keys, 1)
    assert {"torch", "fastrnn", "reference"} <= differences.keys()
    assert ("log_scan" in differences) == (cell == "mingru")
    assert differences.pop("torch") is None
    assert max(differences.values()) < 1e-5
    beside = next(c.label for c in made if c.key == "torch")
    assert beside.startswith(f"nn.{cases.BESIDE[cell]} (")
    for reason in skipped.values():
        assert reason.endswith(("only", "is not installed")), reason
    assert flops(case) > 0
    assert sum(weight_bytes(case)) > 0


def test_sru_costs():
    """Operations of SRU and SRU++ as counted by hand; weights that are read once, but for a few."""
    assert flops(Case("sru", "layers", True, 3, 2, 5, 5)) == 3 * 2 * 3 * 2 * (3 * 5) * 5
    plus = Case("srupp", "layers", False, 3, 2, 8, 8, P=2)
    assert flops(plus) == 2 * 6 * (8 * 2 + 2 * 4 + 2 * 24) + 2 * 2 * 2 * 3 * 3 * 2
    assert weight_bytes(plus) == (4 * 4 * 8, 4 * (8 * 2 + 2 * 4 + 2 * 24))
    assert plus.group == "SRU++ inference"


def test_whoever_disagrees_is_not_timed(monkeypatch):
    genuine = contenders.build

    def build(key, problem, threads):
        contender = genuine(key, problem, threads)
        if key == "fastrnn":
            contender.result = lambda: {"y": torch.zeros_like(problem.grad)}
        return contender

    monkeypatch.setattr(worker, "build", build)
    made, _, skipped = worker.make_contenders(tiny(), ["fastrnn", "torch"], 1)
    assert [c.key for c in made] == ["torch"]
    assert "differs from torch.nn" in skipped["fastrnn"]


def test_disagreement_sees_nan_and_shapes():
    y = torch.ones(3)
    assert timing.disagreement({"y": torch.tensor([1.0, float("nan"), 1.0])}, {"y": y}) == math.inf
    with pytest.raises(ValueError, match="shape"):
        timing.disagreement({"y": torch.ones(2)}, {"y": y})


def test_training_counts_the_weights_as_changed():
    """What a kernel keeps from the weights must not survive from one training step to the next."""
    contender = contenders.build("torch", Problem(tiny(training=True)), 1)
    before = contender.result()
    after = contender.result()
    assert all(torch.equal(before[name], after[name]) for name in before)  # gradients do not pile up


def test_dtypes_and_packed_rows_reach_the_contenders():
    problem = Problem(Case("lstm", "packed", True, 10, 3, 4, 4, dtype="bfloat16"))
    result = contenders.build("fastrnn", problem, 1).result()
    assert result["y"].dtype == torch.bfloat16
    assert result["y"].shape == (sum(problem.case.lengths()), 4)


# Timing


def test_interleaving_takes_turns_and_prepares_before_every_call():
    log = []

    def contender(key, **options):
        return timing.Contender(
            key, key, lambda: log.append(key), prepare=lambda: log.append(f"prepare {key}"), **options
        )

    timings = timing.interleave([contender("a"), contender("b")], budget_s=0.0, min_rounds=5, max_rounds=9)
    assert {len(t.samples) for t in timings.values()} == {5}
    for key in "ab":
        calls = [n for n, entry in enumerate(log) if entry == key]
        assert all(log[n - 1] == f"prepare {key}" for n in calls)


def test_a_hurried_run_stops_early_and_the_slow_reference_sits_out(monkeypatch):
    monkeypatch.setattr(timing, "LONG_S", -1.0)
    made = [timing.Contender("a", "a", lambda: None), timing.Contender("b", "b", lambda: None, few=True)]
    assert {len(t.samples) for t in timing.interleave(made, budget_s=0, hurry=True).values()} == {3}
    timings = timing.interleave(made, budget_s=0, min_rounds=7)
    assert len(timings["a"].samples) == 7
    assert len(timings["b"].samples) == timing.FEW_ROUNDS


def test_statistics():
    t = timing.Timing([4.0, 1.0, 3.0, 2.0, 5.0])
    assert t.median == 3
    assert (t.quantile(0.25), t.quantile(0.75)) == (2, 4)
    assert t.spread == pytest.approx(1 / 3)
    assert t.to_dict()["rounds"] == 5


# Limits


def test_floor_is_the_longer_of_arithmetic_and_reading():
    known = limits.Limits("float32", {"a": 1e9, "b": 2e9}, [(1000, 4e9), (3000, 2e9)])
    assert known.read_rate(10) == 4e9
    assert known.read_rate(2000) == 3e9
    assert known.read_rate(9999) == 2e9
    case = Case("rnn", "layers", False, T=10, B=1, I=20, H=20)
    floor = known.floor(case)
    recurrent, projection = weight_bytes(case)
    assert floor["compute_s"] == flops(case) / 2e9
    once = known.read_rate(recurrent + projection)
    assert floor["memory_s"] == pytest.approx(10 * recurrent / known.read_rate(recurrent) + projection / once)
    assert floor["floor_s"] == max(floor["compute_s"], floor["memory_s"])


def test_limits_are_measured():
    found = limits.measure("float32", "cpu", torch.get_num_threads(), budget_s=0.05)
    assert found.peak > 1e8
    assert [size for size, _ in found.bandwidth] == list(limits.READ_SIZES)
    assert all(rate > 1e7 for _, rate in found.bandwidth)


# Memory and the suite


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_grows_with_the_steps():
    """Saved gates are 4*H floats a row and step and cells one more; recomputing keeps only the cells."""
    case = Case("lstm", "layers", True, T=200, B=32, I=64, H=128)
    running = {c: memory.spawn(case, c, 1) for c in ("fastrnn", "fastrnn recompute")}
    found = {c: memory.finish(p) for c, p in running.items()}
    gates = 200 * 32 * 4 * 128 * 4
    assert found["fastrnn"] > gates
    assert found["fastrnn recompute"] < found["fastrnn"]


def test_memory_of_a_failing_contender_is_a_reason():
    with pytest.raises(RuntimeError, match="unknown"):
        memory.finish(memory.spawn(tiny(training=True), "unknown", 1))


def test_pytest_benchmark_suite():
    """Fused, torch and reference stand side by side in a group of each case."""
    chosen = "test_cells and gru-inference-T1B1H256"
    options = ["--benchmark-only", "--preset", "quick", "--bench-threads", "1", "-k", chosen, "-q"]
    # Told apart from the tests around it, which may be a worker's.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", *options, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "benchmark 'GRUCell inference T=1 B=1 H=256': 3 tests" in done.stdout
