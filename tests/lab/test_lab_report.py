"""The report of a benchmark on a GPU, and several runs as one, from made-up times."""

import json
from dataclasses import replace

import pytest
from gpu_runs import H100, a_run, made_up_result, on_gpu

from benchmarks.lab import cudnn, merge, presets
from benchmarks.lab.__main__ import main
from benchmarks.lab.cases import Case
from benchmarks.lab.report import against_cudnn as gpu_report
from benchmarks.lab.report import planes as heatmap
from benchmarks.lab.report import write as report

QUICK = presets.CUDA_PRESETS["quick"]


@pytest.fixture
def gpu_run() -> dict:
    """fastrnn 4 times faster, but for one shape where it is half as fast, and one where it is nearly even."""
    slow = {(256, 64): 0.5e-3, (64, 64): 0.9e-3}
    results = []
    for c in presets.select_cuda(QUICK):
        theirs = slow.get((c.B, c.H), 4e-3) if c.group == "LSTM inference float16" else 4e-3
        others = {"compile": 9e-3, "haste": 7e-3} if (c.B, c.H) == (16, 512) else {}
        results.append(made_up_result(c, 1e-3, theirs, **others))
    return a_run(results)


def test_heat_maps_of_a_gpu_run(gpu_run):
    """A table for each kind of work, B down and H across; where torch.nn is faster it is marked. A case of
    another number of steps is no part of it."""
    planes = heatmap.read(gpu_run["results"])
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
    assert heatmap.table(heatmap.read(gpu_run["results"])[2]).rows[0][1] == "–"
    assert heatmap.read([made_up_result(replace(on_gpu(), device="cpu"), 1.0, 1.0)]) == []


def test_where_cudnn_wins(gpu_run):
    """Every kind of work with a case below even, the worst first, with its range; or that there is none."""
    results = gpu_run["results"]
    results.append(made_up_result(on_gpu("gru", dtype="bfloat16", training=True), 1.0, 0.25))
    results.append(made_up_result(on_gpu(dtype="float32"), 1.0, 0.75))
    assert gpu_report.losses(results) == [
        "**GRU training bfloat16, T=128**: down to 0.25x (B=16, H=512), in 1 of 1 case, B 16, H 512",
        "**LSTM inference float16, T=128**: down to 0.50x (B=256, H=64), in 2 of 24 cases, B 64 to 256, H 64",
        "**LSTM inference float32, T=128**: down to 0.75x (B=16, H=512), in 1 of 3 cases, B 16, H 512",
    ]
    text = gpu_report.where_cudnn_wins(results)[0].text
    assert text == f"In 4 of the {len(results)} cases of this run torch.nn was faster:"
    even = [made_up_result(on_gpu(), 1.0, 1.0)]
    assert "Nowhere: in none of the 1 cases" in gpu_report.where_cudnn_wins(even)[0].text


def test_regimes_in_the_report(gpu_run):
    """Geometric mean and worst by cuDNN's algorithm."""
    rows = {row[0]: row for row in gpu_report.regime_table(gpu_run["results"], H100).rows}
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
    report.write(gpu_run, tmp_path)
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
        assert text.count("![") == len(pictures)


def test_floor_in_the_report(gpu_run):
    """Measured latencies are named as such; without the GPU's properties there is no floor to tell."""
    found = [s for s in gpu_report.steps(gpu_run) if (s.case.B, s.case.H, s.case.T) == (16, 512, 128)]
    row = gpu_report.step_table(found).rows[0]
    assert row[1] == f"{1e3 / 128:.2f}"
    assert row[4] == "exchange, cluster, published"
    clusters = {str(n): {"push8_us": 0.4} for n in (4, 8, 16)}
    measured = gpu_run | {"latency": {"clusters": clusters}}
    assert "measured on this GPU by tests/gpu/latency.cu" in gpu_report.floor_source(measured)
    found = [s for s in gpu_report.steps(measured) if (s.case.B, s.case.H, s.case.T) == (16, 512, 128)]
    assert gpu_report.step_table(found).rows[0][4] == "exchange, cluster, measured"
    gpu_run["machine"]["devices"][0].pop("properties")
    assert gpu_report.steps(gpu_run) == []
    assert gpu_report.blocks(gpu_run)


# Several runs


def test_merging(tmp_path, capsys):
    """The parts of a sweep are one run; of a case in two runs the later counts, whole; latencies come along;
    what a later run timed is no longer missing."""
    a, b, c = on_gpu(H=64), on_gpu(H=128), on_gpu(H=256)
    dropped = [{"case": x.to_dict(), "threads": 1, "why": "out of time"} for x in (b, c)]
    first = a_run([made_up_result(a, 1.0, 2.0, haste=3.0)], preset="full 1/2", dropped=dropped)
    second = a_run([made_up_result(a, 1.0, 5.0), made_up_result(b, 1.0, 4.0)], preset="full 2/2", commit="ba")
    header = {**first, "event": "run", **{n: [] for n in ("results", "dropped", "limits")}}
    del header["seconds"]  # known at the end
    events = [header, *({"event": "limits", **x} for x in first["limits"])]
    events += [{"event": "result", **r} for r in first["results"]]
    events += [{"event": "dropped", **d} for d in dropped]
    events.append({"event": "done", "memory": [], "seconds": first["seconds"]})
    (tmp_path / "call-2.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "results.json").write_text(json.dumps(second))
    latency = {"graph_launch_us": 1.1}
    (tmp_path / "call-1.jsonl").write_text(json.dumps({"event": "left", "step": "latency", "left": latency}))
    paths = [tmp_path / name for name in ("call-2.jsonl", "second", "call-1.jsonl")]
    merged = merge.merge([merge.load(p) for p in paths])
    assert merged["preset"] == "full"
    assert merged["commit"] == "0123456789ab and ba"
    assert merged["seconds"] == 200
    assert merged["latency"] == latency
    assert [r["contenders"]["torch"]["median_s"] for r in merged["results"]] == [5.0, 4.0]
    assert "haste" not in merged["results"][0]["contenders"]
    assert [d["case"]["H"] for d in merged["dropped"]] == [256]
    assert any(line["name"] == "H = 128, forward" for line in merged["targets"])
    assert main(["--merge", *map(str, paths), "--out", str(tmp_path / "one")]) == 0
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
        main(["--merge", str(tmp_path / "x.json"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="needs --out DIR"):
        main(["--merge", str(tmp_path / "x.json")])
    assert merge._presets(["full 1/2", "quick"]) == "full 1/2 + quick"
