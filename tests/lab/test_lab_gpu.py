"""The benchmark on a GPU, as far as it can be seen without one: cases, plans, runs, regimes, targets."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from gpu_runs import H100, made_up_result, on_gpu

from benchmarks.lab import __main__ as lab
from benchmarks.lab import cudnn, presets, step_floor, supervisor, targets, worker
from benchmarks.lab import run as bench_run
from benchmarks.lab.cases import Case
from benchmarks.lab.contenders import registry as contenders
from benchmarks.lab.problem import Problem, flops, weight_bytes

QUICK, FULL, PEERS = (presets.CUDA_PRESETS[name] for name in ("quick", "full", "peers"))


# Cases


def test_quick_preset_is_a_part_of_the_plane():
    """The named case before everything; cells, dtypes and both kinds of work; other forms; nothing twice."""
    chosen = presets.select_cuda(QUICK)
    assert len(set(chosen)) == len(chosen) < 240
    assert {c.device for c in chosen} == {"cuda"}
    assert {c.cell for c in chosen} == {"lstm", "gru", "rnn"}
    assert {c.dtype for c in chosen} == {"float16", "bfloat16", "tf32", "float32"}
    assert {(c.layers, c.directions, c.path) for c in chosen} == {
        (1, 1, "layers"),
        (2, 1, "layers"),
        (1, 2, "layers"),
        (1, 1, "packed"),
    }
    for preset in (QUICK, FULL, PEERS):
        first = presets.select_cuda(preset)[:2]
        assert [(c.dtype, c.T, c.B, c.H, c.training) for c in first] == [
            ("float16", 1024, 16, 768, False),
            ("float16", 1024, 16, 768, True),
        ]


def test_full_preset_is_the_whole_grid():
    """Every cell, dtype, batch and hidden size, forward and training; its other forms with every cell."""
    chosen = presets.select_cuda(FULL)
    plane = {(c.cell, c.dtype, c.B, c.H, c.training) for c in chosen if c.T == 128 and c.path == "layers"}
    for cell in ("lstm", "gru", "rnn"):
        for dtype in ("float16", "bfloat16", "tf32", "float32"):
            for B in (1, 4, 16, 32, 64, 128, 256):
                for H in (64, 128, 192, 256, 384, 512, 768, 1024, 2048):
                    assert {(cell, dtype, B, H, t) for t in (False, True)} <= plane
            forms = {(c.layers, c.directions, c.path) for c in chosen if (c.cell, c.dtype) == (cell, dtype)}
            assert forms >= {(2, 1, "layers"), (1, 2, "layers"), (1, 1, "packed")}


def test_parts_are_the_whole_once():
    """Six parts of about one size hold every case once, forward and training of a shape together; each ends
    within ten minutes."""
    parts = [presets.select_cuda(FULL, part=(k, 6)) for k in range(1, 7)]
    assert sorted(repr(c) for part in parts for c in part) == sorted(map(repr, presets.select_cuda(FULL)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    for part in parts:
        assert all(a == replace(b, training=False) for a, b in zip(part[::2], part[1::2], strict=True))
    assert presets.limit_s(FULL, 6) <= 570
    assert presets.limit_s(FULL, 1) > FULL.budget_s
    assert presets.parse_part("2/6") == (2, 6)
    for wrong in ("", "3", "0/2", "3/2", "a/b", "1/2/3"):
        with pytest.raises(ValueError, match="a part is k/n"):
            presets.parse_part(wrong)


def test_filters():
    """By cell, dtype, kind of work and path; shapes of one's own."""
    chosen = presets.select_cuda(QUICK, cells=["gru"], modes=["training"])
    assert {(c.cell, c.training) for c in chosen} == {("gru", True)}
    assert {c.path for c in presets.select_cuda(QUICK, modes=["packed"])} == {"packed"}
    own = presets.select_cuda(QUICK, shapes=[(7, 2, 5)], dtypes=["tf32"], cells=["rnn"], device="cuda:1")
    assert [(c.T, c.B, c.H, c.dtype, c.training, c.device) for c in own] == [
        (7, 2, 5, "tf32", False, "cuda:1"),
        (7, 2, 5, "tf32", True, "cuda:1"),
    ]


def test_what_compiles_runs_in_its_own_few_cases():
    """Each of the others has a case; FlashRNN's fused kernels, the slowest to compile, come last, alone."""
    chosen = presets.select_cuda(PEERS)
    excluded = presets.excluded(PEERS, chosen)
    run = {k: [c for c in chosen if k not in excluded[c]] for k in contenders.CUDA_PEERS}
    assert all(run.values())
    assert run["flashrnn"] == chosen[-2:]
    assert all(reason.endswith("only") for case in chosen for reason in excluded[case].values())
    assert presets.excluded(QUICK, presets.select_cuda(QUICK)) == {}
    assert presets.excluded(PEERS, [on_gpu(T=7)]) == {}  # shapes of one's own are for everybody
    elsewhere = presets.select_cuda(PEERS, device="cuda:1")
    assert presets.excluded(PEERS, elsewhere).keys() == set(elsewhere)


def test_layers_and_directions_of_a_case():
    """The module, the gradient that reaches it, and its arithmetic."""
    case = Case("gru", "layers", True, T=3, B=2, I=5, H=7, layers=2, directions=2)
    problem = Problem(case)
    assert problem.module.num_layers == 2
    assert problem.module.bidirectional
    assert problem.grad.shape == (3, 2, 14)
    assert flops(case) == 3 * 2 * 3 * 2 * 2 * 21 * ((5 + 7) + (14 + 7))
    assert weight_bytes(case) == (4 * 2 * 2 * 21 * 7, 4 * 2 * 21 * (5 + 14))
    assert case.group == "GRU 2 layers bidirectional training"
    made, differences, skipped = worker.make_contenders(case, ["fastrnn", "torch", "reference"], 1)
    assert [c.key for c in made] == ["fastrnn", "torch"]
    assert max(differences.values()) < 1e-4
    assert "single layers" in skipped["reference"]


# The plan of a run


@pytest.fixture
def a_gpu(monkeypatch):
    """torch says that it sees an H100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H100 80GB HBM3")


def plan(*arguments):
    return lab.make_plan(lab.parser().parse_args(["--device", "cuda", *arguments]))


def test_plans(a_gpu):
    """Everything on a GPU has an end; who compiles runs where it is asked for."""
    quick = plan("--quick", "--tiers")
    assert quick.limit_s == QUICK.limit_s <= 360
    assert quick.budget_s < quick.limit_s
    assert quick.contenders == ["fastrnn", "torch", "haste", *contenders.TIERS]
    part = plan("--full", "--part", "2/6")
    assert part.preset == "full 2/6"
    assert part.limit_s < 570
    assert part.cases == presets.select_cuda(FULL, part=(2, 6))
    peers = plan("--peers")
    assert set(peers.contenders) == {"fastrnn", "torch", *contenders.CUDA_PEERS, "reference"}
    assert peers.excluded
    own = plan("--peers", "--contender", "flashrnn", "--shape", "1024,16,768", "--limit", "50")
    assert own.contenders == ["fastrnn", "torch", "flashrnn"]
    assert (own.limit_s, own.budget_s, own.excluded) == (50, 42.5, {})
    assert own.preset == "peers, filtered"


@pytest.mark.parametrize("option", [["--peers"], ["--part", "1/2"], ["--limit", "9"], ["--tiers"]])
def test_options_of_a_gpu_need_one(option):
    """One clear error, that names the option."""
    with pytest.raises(SystemExit, match=rf"{option[0]} is about a GPU: add --device cuda"):
        lab.make_plan(lab.parser().parse_args([*option]))


#: A worker that has the same times for every case, and dies in one of them.
WORKER = """
import json, os, sys
request = json.loads(sys.stdin.readline())
result = json.loads(os.environ["RESULT"])
def emit(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)
if not request["limits"]:
    emit("limits", threads=1, dtype="float16", flops={"torch.mm": 7e14}, bandwidth=[[1, 2.0]])
for case, excluded in zip(request["cases"], request["excluded"]):
    emit("running", key="fastrnn")
    if case["H"] == 640 and "fastrnn" not in excluded:
        sys.exit("an illegal memory access")
    times = {k: v for k, v in result["contenders"].items() if k not in excluded}
    emit("result", **result | {"case": case, "contenders": times, "skipped": excluded})
"""


def test_a_whole_run(a_gpu, tmp_path, monkeypatch, capsys):
    """From the command line to the folder: named after the GPU, JSON alone as asked for, with every case; a
    contender that killed its worker is named, and the exit status says that fastrnn failed."""
    monkeypatch.setattr(bench_run.machine, "devices", list)  # they ask the GPU
    monkeypatch.setattr(bench_run, "versions", dict)
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, "-c", WORKER))
    monkeypatch.setenv("RESULT", json.dumps(made_up_result(on_gpu(), 1.0, 2.0)))
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        arguments = "--device cuda --shape 128,16,512 128,16,640 --cell lstm --dtype float16 --json-only"
        assert lab.main([*arguments.split(), "--part", "1/2"]) == 0
        assert lab.main(arguments.split()) == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    # A part does not overwrite what another has left.
    folder, part = sorted((tmp_path / "out").iterdir())
    assert folder.name.endswith("-nvidia-h100-80gb-hbm3-quick")
    assert part.name == f"{folder.name}-part-1-of-2"
    assert [p.name for p in folder.iterdir()] == ["results.json"]
    run = json.loads((folder / "results.json").read_text())
    assert [(r["case"]["H"], r["case"]["training"]) for r in run["results"]] == [
        (512, False),
        (512, True),
        (640, False),
        (640, True),
    ]
    assert len(run["limits"]) == 1
    out = capsys.readouterr().out
    assert "FAILED LSTM inference float16 T=128 B=16 H=640: fastrnn an illegal memory access" in out
    assert "torch.nn is nowhere faster" in out


# Regimes and targets


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (on_gpu(H=192), cudnn.SMALL),
        (on_gpu(H=192, training=True), f"{cudnn.SMALL}, backward {cudnn.STANDARD}"),
        (on_gpu(H=128, training=True), cudnn.SMALL),
        (on_gpu("rnn", H=384), cudnn.SMALL),
        (on_gpu("rnn", H=256, training=True), cudnn.SMALL),
        (on_gpu("gru", H=128, dtype="bfloat16"), cudnn.SMALL),
        (on_gpu(H=64, dtype="float64"), cudnn.STANDARD),
        (on_gpu(H=64, path="packed"), cudnn.STANDARD),
        (on_gpu(H=64, path="proj", P=32), cudnn.STANDARD),
        (on_gpu(H=64, layers=2, directions=2), cudnn.SMALL),
        (on_gpu(H=768), cudnn.PERSISTENT),
        (on_gpu(H=1024, B=128, training=True), cudnn.PERSISTENT),
        (on_gpu(H=768, dtype="bfloat16"), cudnn.STANDARD),
        (on_gpu(H=768, dtype="tf32"), cudnn.STANDARD),
        (on_gpu("gru", H=768), cudnn.STANDARD),
        (on_gpu(H=768, B=1), cudnn.STANDARD),
        (on_gpu(H=768, B=136), cudnn.STANDARD),
        (on_gpu(H=700), cudnn.STANDARD),
        (on_gpu(H=1152), cudnn.STANDARD),
        (replace(on_gpu(H=768), I=100), cudnn.STANDARD),
        (on_gpu(H=768, layers=2), cudnn.STANDARD),
        (on_gpu(H=768, directions=2), cudnn.STANDARD),
        (on_gpu("rnn", H=1024, B=88), cudnn.PERSISTENT),
        (on_gpu("rnn", H=1024, B=96), cudnn.STANDARD),
        (on_gpu("rnn", H=768, B=96), cudnn.PERSISTENT),
    ],
)
def test_cudnns_regimes(case, expected):
    """Each condition of torch's choice, on both sides."""
    assert cudnn.regime(case) == expected


def test_regimes_of_other_gpus():
    """sm_86 and small GPUs have no persistent kernels."""
    assert cudnn.regime(on_gpu(H=768), capability=80, sms=108) == cudnn.PERSISTENT
    assert cudnn.regime(on_gpu(H=768), capability=86, sms=108) == cudnn.STANDARD
    assert cudnn.regime(on_gpu(H=768), capability=80, sms=56) == cudnn.STANDARD


def test_targets():
    """Each range of H meets its own target, by the mean; one slower case misses whatever it is in."""
    shapes = [
        (16, 64, 3.0),
        (16, 128, 3.5),
        (16, 192, 11.0),
        (16, 512, 2.1),
        (64, 1024, 3.1),
        (256, 1024, 1.1),
    ]
    results = [made_up_result(on_gpu(B=B, H=H), 1.0, ratio) for B, H, ratio in shapes]
    results.append(made_up_result(on_gpu(T=1024, H=768), 1.0, 1.9))
    results.append(made_up_result(on_gpu(B=1, H=512), 1.0, 0.9))
    results.append(made_up_result(on_gpu(layers=2), 1.0, 5.0))  # of the last line only
    lines = {line["name"]: line for line in targets.evaluate(results, 1)}
    met = {name.removesuffix(", forward"): line["met"] for name, line in lines.items()}
    assert met == {
        "fp16 LSTM, H=768, B=16, T=1024": False,
        "H up to 64": True,
        "H = 128": False,
        "H 129 to 192, B from 16": True,
        "H 193 to 768, cuDNN's STANDARD": False,
        "H 256 to 768, cuDNN's PERSIST_STATIC": False,  # 2.1 and the named case's 1.9
        "H 1024 to 2048, B up to 64": True,
        "H from 1024, B from 256": True,
        "Every case": False,
    }
    assert lines["Every case"]["cases"] == 9
    assert lines["Every case"]["worst"] == 0.9
    assert lines["fp16 LSTM, H=768, B=16, T=1024, forward"]["target_geomean"] == 2.0
    training = targets.evaluate([made_up_result(on_gpu(T=1024, H=768, training=True), 1.0, 1.8)], 1)
    assert (training[0]["target_geomean"], training[0]["met"]) == (1.8, True)
    assert targets.evaluate([made_up_result(replace(on_gpu(), device="cpu"), 1.0, 1.0)], 1) == []


# The floor


def test_floor_of_a_step():
    """By hand: the cheapest tier's exchange, measured where it was; the sequence's bytes; its arithmetic."""
    small = step_floor.floor(on_gpu(H=64, B=8), H100)
    read = 8 * 64 * 2 / step_floor.SHARED_RATE * 1e6
    assert (small.tier, small.measured, small.bound) == ("one_cta", False, "exchange")
    assert small.us == pytest.approx(33 / 1755 + read)
    wide = step_floor.floor(on_gpu(H=64, B=4096), H100)
    assert wide.bound == "memory"
    assert wide.us == pytest.approx(5 * 4096 * 64 * 2 / 3.35e12 * 1e6)
    assert step_floor.floor(on_gpu(H=64, B=4096), H100, peak=1e12).bound == "arithmetic"
    latency = {
        "flag_exchange_us": {"2": 0.5, "16": 0.7, "128": 1.5},
        "clusters": {"8": {"push8_us": 0.3}, "16": {"push8_us": 0.4}},
        "graph_launch_us": 1.1,
    }
    grid = step_floor.floor(on_gpu(H=1024, B=1), H100, latency)
    assert (grid.tier, grid.measured) == ("grid", True)
    assert 0.7 < grid.us < 0.8  # 64 CTAs: not less than 16 take
    training = step_floor.floor(on_gpu(H=1024, B=1, training=True), H100, latency)
    assert training.us == pytest.approx(2 * grid.us, rel=0.1)
    large = step_floor.floor(on_gpu(H=4096, B=1), H100, latency)
    weights = 4 * 4096 * 4096 * 2 / step_floor.L2_RATE * 1e6
    assert large.tier == "stepwise"
    assert large.us == pytest.approx(2 * 1.1 + weights)
    # A failed measurement, -1, is none.
    assert step_floor.exchange_us("grid", 16, {"flag_exchange_us": {"16": -1}}) == (1.04, False)
    assert step_floor.exchange_us("cluster", 16, latency) == (0.4, True)
    assert step_floor.exchange_us("cluster", 4, latency) == (181 / 1755, False)


def test_tiers_are_asked_only_where_they_fit():
    """Forward, and in training backward too; so that a sweep's list of failures is of failures."""
    fits = {
        (tier, H): step_floor.passes_of(on_gpu(H=H, training=True), H100, tier) is not None
        for tier in contenders.TIERS
        for H in (64, 512, 4096)
    }
    assert [fits["one_cta", H] for H in (64, 512, 4096)] == [True, False, False]
    assert [fits["grid", H] for H in (64, 512, 4096)] == [True, True, False]
    assert all(fits["stepwise", H] for H in (64, 512, 4096))
    assert len(step_floor.passes_of(on_gpu(training=True), H100, "stepwise")) == 2
    assert len(step_floor.passes_of(on_gpu(), H100, "stepwise")) == 1


def test_precision_of_a_gpu_case():
    """tf32 cases let cuDNN and cuBLAS round, float32 cases do not."""
    # In a process of its own, as the worker is: torch's module database, which other tests import, forbids
    # setting these flags.
    code = """
import torch
from benchmarks.lab import worker
for dtype in ("tf32", "float32", "float16"):
    worker.set_precision(dtype)
    print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["True True", "False False", "False False"]


def test_every_contender_has_a_name_and_a_look():
    """Tables and pictures find each key."""
    style = pytest.importorskip("benchmarks.lab.report.style")
    assert set(contenders.KEYS) == contenders.NAMES.keys() == style.COLORS.keys() == style.MARKERS.keys()
