"""The benchmark on a GPU, as far as it can be seen without one: cases, regimes, targets, reports."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fastrnn import _gpus
from fastrnn.bench import (
    contenders,
    cuda_cases,
    cuda_report,
    cuda_targets,
    cudnn,
    heatmap,
    machine,
    merge,
    report,
    step_floor,
    supervisor,
    worker,
)
from fastrnn.bench import run as bench_run
from fastrnn.bench.cases import Case
from fastrnn.bench.problem import Problem, flops, weight_bytes
from fastrnn.cli import bench as bench_command
from fastrnn.cli import main, parser

H100 = _gpus.find("H100").properties()
QUICK, FULL, PEERS = (cuda_cases.CUDA_PRESETS[name] for name in ("quick", "full", "peers"))


def on_gpu(cell="lstm", training=False, T=128, B=16, H=512, **options) -> Case:
    options = {"dtype": "float16", "device": "cuda", "path": "layers", **options}
    return Case(cell, training=training, T=T, B=B, I=H, H=H, **options)


# Cases


def test_quick_preset_is_a_part_of_the_plane():
    """The named case before everything; cells, dtypes and both kinds of work; other forms; nothing twice."""
    chosen = cuda_cases.select(QUICK)
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
        first = cuda_cases.select(preset)[:2]
        assert [(c.dtype, c.T, c.B, c.H, c.training) for c in first] == [
            ("float16", 1024, 16, 768, False),
            ("float16", 1024, 16, 768, True),
        ]


def test_full_preset_is_the_whole_grid():
    """Every cell, dtype, batch and hidden size, forward and training; its other forms with every cell."""
    chosen = cuda_cases.select(FULL)
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
    parts = [cuda_cases.select(FULL, part=(k, 6)) for k in range(1, 7)]
    assert sorted(repr(c) for part in parts for c in part) == sorted(map(repr, cuda_cases.select(FULL)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    for part in parts:
        assert all(a == replace(b, training=False) for a, b in zip(part[::2], part[1::2], strict=True))
    assert cuda_cases.limit_s(FULL, 6) <= 570
    assert cuda_cases.limit_s(FULL, 1) > FULL.budget_s
    assert cuda_cases.parse_part("2/6") == (2, 6)
    for wrong in ("", "3", "0/2", "3/2", "a/b", "1/2/3"):
        with pytest.raises(ValueError, match="a part is k/n"):
            cuda_cases.parse_part(wrong)


def test_filters():
    """By cell, dtype, kind of work and path; shapes of one's own."""
    chosen = cuda_cases.select(QUICK, cells=["gru"], modes=["training"])
    assert {(c.cell, c.training) for c in chosen} == {("gru", True)}
    assert {c.path for c in cuda_cases.select(QUICK, modes=["packed"])} == {"packed"}
    own = cuda_cases.select(QUICK, shapes=[(7, 2, 5)], dtypes=["tf32"], cells=["rnn"], device="cuda:1")
    assert [(c.T, c.B, c.H, c.dtype, c.training, c.device) for c in own] == [
        (7, 2, 5, "tf32", False, "cuda:1"),
        (7, 2, 5, "tf32", True, "cuda:1"),
    ]


def test_what_compiles_runs_in_its_own_few_cases():
    """Each of the others has a case; FlashRNN's fused kernels, the slowest to compile, come last, alone."""
    chosen = cuda_cases.select(PEERS)
    excluded = cuda_cases.excluded(PEERS, chosen)
    run = {k: [c for c in chosen if k not in excluded[c]] for k in contenders.CUDA_PEERS}
    assert all(run.values())
    assert run["flashrnn"] == chosen[-2:]
    assert all(reason.endswith("only") for case in chosen for reason in excluded[case].values())
    assert cuda_cases.excluded(QUICK, cuda_cases.select(QUICK)) == {}
    assert cuda_cases.excluded(PEERS, [on_gpu(T=7)]) == {}  # shapes of one's own are for everybody
    elsewhere = cuda_cases.select(PEERS, device="cuda:1")
    assert cuda_cases.excluded(PEERS, elsewhere).keys() == set(elsewhere)


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
    return bench_command.make_plan(parser().parse_args(["bench", "--device", "cuda", *arguments]))


def test_plans(a_gpu):
    """Everything on a GPU has an end; who compiles runs where it is asked for."""
    quick = plan("--quick", "--tiers")
    assert quick.limit_s == QUICK.limit_s <= 360
    assert quick.budget_s < quick.limit_s
    assert quick.contenders == ["fastrnn", "torch", "haste", *contenders.TIERS]
    part = plan("--full", "--part", "2/6")
    assert part.preset == "full 2/6"
    assert part.limit_s < 570
    assert part.cases == cuda_cases.select(FULL, part=(2, 6))
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
        bench_command.make_plan(parser().parse_args(["bench", *option]))


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
    for name, nothing in (("devices", list), ("versions", dict)):  # they ask the GPU
        monkeypatch.setattr(bench_run.machine, name, nothing)
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, "-c", WORKER))
    monkeypatch.setenv("RESULT", json.dumps(made_up_result(on_gpu(), 1.0, 2.0)))
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        arguments = (
            "bench --device cuda --shape 128,16,512 128,16,640 --cell lstm --dtype float16 --json-only"
        )
        assert main([*arguments.split(), "--part", "1/2"]) == 0
        assert main(arguments.split()) == 1
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


def made_up_result(case: Case, ours: float, theirs: float, **others: float) -> dict:
    """What a worker would have sent for a case, with times of our choice."""

    def times(seconds, label):
        spread = {"q25_s": 0.99 * seconds, "q75_s": 1.01 * seconds, "min_s": seconds, "max_s": seconds}
        return {"label": label, "difference": 0.0, "median_s": seconds, **spread, "rounds": 7, "calls": 3}

    contenders_ = {"fastrnn": times(ours, "fastrnn"), "torch": times(theirs, "torch.nn (cuDNN)")}
    contenders_ |= {key: times(seconds, contenders.NAMES[key]) for key, seconds in others.items()}
    floor = {
        "floor_s": ours / 2,
        "flops": flops(case),
        "weight_bytes": 1.0,
        "compute_s": 0.0,
        "memory_s": 0.0,
    }
    return {"case": case.to_dict(), "threads": 1, "contenders": contenders_, "skipped": {}, "floor": floor}


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
    lines = {line["name"]: line for line in cuda_targets.evaluate(results, 1)}
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
    training = cuda_targets.evaluate([made_up_result(on_gpu(T=1024, H=768, training=True), 1.0, 1.8)], 1)
    assert (training[0]["target_geomean"], training[0]["met"]) == (1.8, True)
    assert cuda_targets.evaluate([made_up_result(replace(on_gpu(), device="cpu"), 1.0, 1.0)], 1) == []


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


# The report


def a_run(results, **changes) -> dict:
    gpu = {
        "name": "NVIDIA H100",
        "capability": "9.0",
        "memory_bytes": 1,
        "multiprocessors": 132,
        "driver": "1.2",
        "properties": H100,
    }
    run = {
        "preset": "quick",
        "date": "2026-01-31",
        "commit": "0123456789ab",
        "load": 0.1,
        "seconds": 100.0,
        "min_rounds": 7,
        "threads": [1],
        "machine": machine.describe() | {"devices": [gpu]},
        "versions": machine.versions(),
        "results": results,
        "limits": [
            {"threads": 1, "dtype": "float16", "flops": {"torch.mm": 7e14}, "bandwidth": [[65536, 1e12]]}
        ],
        **{key: [] for key in ("scaling", "memory", "overhead", "scan", "dropped")},
    }
    return bench_run.with_targets(run | changes)


@pytest.fixture
def gpu_run() -> dict:
    """fastrnn 4 times faster, but for one shape where it is half as fast, and one where it is nearly even."""
    slow = {(256, 64): 0.5e-3, (64, 64): 0.9e-3}
    results = []
    for c in cuda_cases.select(QUICK):
        theirs = slow.get((c.B, c.H), 4e-3) if c.group == "LSTM inference float16" else 4e-3
        others = {"compile": 9e-3, "haste": 7e-3} if (c.B, c.H) == (16, 512) else {}
        results.append(made_up_result(c, 1e-3, theirs, **others))
    return a_run(results)


def test_heat_maps_of_a_gpu_run(gpu_run):
    """A table for each kind of work, B down and H across; where torch.nn is faster it is marked. A case of
    another number of steps is no part of it."""
    planes = heatmap.planes(gpu_run["results"])
    assert planes[0].title == "LSTM inference float16, T=1024"
    assert not heatmap.is_map(planes[0])
    first = next(p for p in planes if heatmap.is_map(p))
    assert first.title == "LSTM inference float16, T=128"
    assert (first.batches, first.hidden) == ([1, 16, 64, 256], [64, 128, 256, 512, 1024, 2048])
    table = heatmap.table(first)
    assert table.rows[0] == ["B=1"] + ["4.00x"] * 6
    assert table.rows[3][:3] == ["B=256", "**0.50x**", "4.00x"]
    line = next(row for row in heatmap.summary(planes).rows if row[0] == first.title)
    assert line[3] == "0.50x (B=256, H=64)"
    assert line[-1] == "**2**"
    assert any("bidirectional" in p.title for p in planes)
    at = next(n for n, r in enumerate(gpu_run["results"]) if Case(**r["case"]).T == 128)
    del gpu_run["results"][at]["contenders"]["fastrnn"]
    assert heatmap.table(heatmap.planes(gpu_run["results"])[2]).rows[0][1] == "–"
    assert heatmap.planes([made_up_result(replace(on_gpu(), device="cpu"), 1.0, 1.0)]) == []


def test_where_cudnn_wins(gpu_run):
    """Every kind of work with a case below even, the worst first, with its range; or that there is none."""
    results = gpu_run["results"]
    results.append(made_up_result(on_gpu("gru", dtype="bfloat16", training=True), 1.0, 0.25))
    results.append(made_up_result(on_gpu(dtype="float32"), 1.0, 0.75))
    assert cuda_report.losses(results) == [
        "**GRU training bfloat16, T=128**: down to 0.25x (B=16, H=512), in 1 of 1 case, B 16, H 512",
        "**LSTM inference float16, T=128**: down to 0.50x (B=256, H=64), in 2 of 24 cases, B 64 to 256, H 64",
        "**LSTM inference float32, T=128**: down to 0.75x (B=16, H=512), in 1 of 3 cases, B 16, H 512",
    ]
    text = cuda_report.where_cudnn_wins(results)[0].text
    assert text == f"In 4 of the {len(results)} cases of this run torch.nn was faster:"
    even = [made_up_result(on_gpu(), 1.0, 1.0)]
    assert "Nowhere: in none of the 1 cases" in cuda_report.where_cudnn_wins(even)[0].text


def test_regimes_in_the_report(gpu_run):
    """Geometric mean and worst by cuDNN's algorithm."""
    rows = {row[0]: row for row in cuda_report.regime_table(gpu_run["results"], H100).rows}
    assert {name.split(",")[0] for name in rows} == {cudnn.SMALL, cudnn.PERSISTENT, cudnn.STANDARD}
    small = rows[f"{cudnn.SMALL}, inference"]
    assert small[3] == "0.50x (B=256, H=64)"
    assert small[-1] == "**2**"
    assert rows[f"{cudnn.STANDARD}, training"][2] == "4.00x"


def test_report_of_a_gpu_run(gpu_run, tmp_path):
    """Device, driver and commit in its head, verdicts, every regime, the others, the floor and where it is
    from; pictures where matplotlib is; dropped cases."""
    case = on_gpu(H=640)
    gpu_run["results"] = [r for r in gpu_run["results"] if r["case"]["dtype"] == "float16"]
    gpu_run["results"] = [r for r in gpu_run["results"] if r["case"]["cell"] == "lstm"]
    gpu_run["results"][5]["skipped"] = {"grid": "no end after 20 s", "cluster": "layers that fit only"}
    gpu_run["dropped"] = [{"case": case.to_dict(), "threads": 1, "why": "out of time"}]
    page = report.write(gpu_run, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["machine"]["devices"][0]["driver"] == "1.2"
    assert not list(tmp_path.glob("*.part"))
    text = (tmp_path / "report.md").read_text()
    for part in (
        *("NVIDIA H100", "driver 1.2", "0123456789ab", "## Where cuDNN wins", "**0.50x**"),
        *("fp16 LSTM, H=768, B=16, T=1024, forward and backward", "| PERSIST_STATIC, inference |"),
        *(
            "tf32 is float32 with TensorFloat-32",
            "haste",
            "torch.compile",
            "published latencies, which",
        ),
        "1 case (out of time): LSTM inference float16 T=128 B=16 H=640",
        "- fastrnn (grid): no end after 20 s",
    ):
        assert part in text, part
    assert "layers that fit" not in text
    pictures = sorted(p.name for p in tmp_path.glob("*.png"))
    if pictures:
        assert pictures == ["heat-map-lstm.png", "steps-lstm-float16.png"]
        assert page.read_text().count("<img") == len(pictures) == text.count("![")


def test_floor_in_the_report(gpu_run):
    """Measured latencies are named as such; without the GPU's properties there is no floor to tell."""
    found = [s for s in cuda_report.steps(gpu_run) if (s.case.B, s.case.H, s.case.T) == (16, 512, 128)]
    row = cuda_report.step_table(found).rows[0]
    assert row[1] == f"{1e3 / 128:.2f}"
    assert row[4] == "exchange, cluster, published"
    clusters = {str(n): {"push8_us": 0.4} for n in (4, 8, 16)}
    measured = gpu_run | {"latency": {"clusters": clusters}}
    assert "measured on this GPU by tests/gpu/latency.cu" in cuda_report.floor_source(measured)
    found = [s for s in cuda_report.steps(measured) if (s.case.B, s.case.H, s.case.T) == (16, 512, 128)]
    assert cuda_report.step_table(found).rows[0][4] == "exchange, cluster, measured"
    gpu_run["machine"]["devices"][0].pop("properties")
    assert cuda_report.steps(gpu_run) == []
    assert cuda_report.blocks(gpu_run)


# Several runs


def test_merging(tmp_path, capsys):
    """The parts of a sweep are one run; of a case in two runs the later counts, whole; latencies come along;
    what a later run timed is no longer missing."""
    a, b, c = on_gpu(H=64), on_gpu(H=128), on_gpu(H=256)
    dropped = [{"case": x.to_dict(), "threads": 1, "why": "out of time"} for x in (b, c)]
    first = a_run([made_up_result(a, 1.0, 2.0, haste=3.0)], preset="full 1/2", dropped=dropped)
    second = a_run([made_up_result(a, 1.0, 5.0), made_up_result(b, 1.0, 4.0)], preset="full 2/2", commit="ba")
    (tmp_path / "sweep.json").write_text(json.dumps({"steps": {"bench": {"result": first}}}))
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "results.json").write_text(json.dumps(second))
    latency = {"graph_launch_us": 1.1}
    (tmp_path / "measure.json").write_text(json.dumps({"steps": {"latency": {"result": latency}}}))
    paths = [tmp_path / name for name in ("sweep.json", "second", "measure.json")]
    merged = merge.merge([merge.load(p) for p in paths])
    assert merged["preset"] == "full"
    assert merged["commit"] == "0123456789ab and ba"
    assert merged["seconds"] == 200
    assert merged["latency"] == latency
    assert [r["contenders"]["torch"]["median_s"] for r in merged["results"]] == [5.0, 4.0]
    assert "haste" not in merged["results"][0]["contenders"]
    assert [d["case"]["H"] for d in merged["dropped"]] == [256]
    assert any(line["name"] == "H = 128, forward" for line in merged["targets"])
    assert main(["bench", "--merge", *map(str, paths), "--out", str(tmp_path / "one")]) == 0
    assert "report:" in capsys.readouterr().out
    assert json.loads((tmp_path / "one" / "results.json").read_text())["preset"] == "full"


def test_what_cannot_be_merged(tmp_path):
    """Runs of different GPUs, files without a run, and no place to write to: one error each."""
    run = a_run([made_up_result(on_gpu(), 1.0, 2.0)])
    other = json.loads(json.dumps(run))
    other["machine"]["devices"][0]["name"] = "NVIDIA H200"
    with pytest.raises(ValueError, match=r"one machine, got .*H100.* and .*H200"):
        merge.merge([run, other])
    with pytest.raises(ValueError, match="at least one run with results"):
        merge.merge([{"latency": {}}])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"x.json: expected a benchmark's results.json"):
        main(["bench", "--merge", str(tmp_path / "x.json"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="needs --out DIR"):
        main(["bench", "--merge", str(tmp_path / "x.json")])
    assert merge._presets(["full 1/2", "quick"]) == "full 1/2 + quick"


def test_precision_of_a_gpu_case():
    """tf32 cases let cuDNN and cuBLAS round, float32 cases do not."""
    # In a process of its own, as the worker is: torch's module database, which other tests import, forbids
    # setting these flags.
    code = """
import torch
from fastrnn.bench import worker
for dtype in ("tf32", "float32", "float16"):
    worker.set_precision(dtype)
    print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["True True", "False False", "False False"]


def test_every_contender_has_a_name_and_a_look():
    """Tables and pictures find each key."""
    plots = pytest.importorskip("fastrnn.bench.plots")
    assert set(contenders.KEYS) == contenders.NAMES.keys() == plots.COLORS.keys() == plots.MARKERS.keys()
