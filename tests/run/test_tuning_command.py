"""fastrnn.tune and its command line, with a runner that does as it is told."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from tuning_fakes import A100, FAULTS, KIND, first_call, written

import fastrnn
from fastrnn import cli
from fastrnn._plan import gpus
from fastrnn._plan.tuning import cache, trust
from fastrnn._run.tuning import calls, tune


def test_tune_of_shapes(scripted):
    state = torch.get_rng_state()
    found = fastrnn.tune([(6, 3, 4, 20), (6, 3, 4, 24)], dtype=torch.bfloat16, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found.kinds) == 4
    assert {record["forward"] for record in found.kinds.values()} == {"one_cta"}
    assert not found.quarantined
    assert "Test GPU" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["kinds"]
    # From now on the planner hears of it, and explain says so.
    said = fastrnn.explain((6, 3, 4, 20), dtype=torch.bfloat16, device="cuda", training=True)
    assert said.kernels == ["one_cta"]
    assert "not verified" not in str(said)
    assert fastrnn.explain((6, 3, 4, 28), dtype=torch.bfloat16, device="cuda").kernels == ["cudnn"]


def test_tune_of_models(scripted):
    """Every recurrent layer inside, its upper layers' width too."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), fastrnn.GRU(4, 80, num_layers=2, dtype=torch.float16))
    found = fastrnn.tune(model, (6, 3), training=False, progress=False)
    assert sorted(found.kinds) == [
        f"gru float16 H=80 D=1 B<=4 T<=8 {width} inference full" for width in ("narrow", "wide")
    ]
    lstm = fastrnn.LSTM(4, 20, bidirectional=True)
    (key,) = fastrnn.tune(lstm, torch.zeros(6, 3, 4), training=True, progress=False).kinds
    assert "D=2" in key
    with pytest.raises(TypeError, match="has no recurrent layer to tune"):
        fastrnn.tune(torch.nn.Linear(2, 2))


def test_deterministic_algorithms_never_time(scripted, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    found = fastrnn.tune((6, 3, 4, 20), dtype=torch.bfloat16, progress=False)
    assert "time" not in scripted.asked
    assert all("forward" not in record for record in found.kinds.values())


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"cell": "lstn"}, ValueError, "cell: expected one of lstm, gru"),
        ({"dtype": torch.int32}, ValueError, "dtype: expected one of float32, bfloat16, float16, float64"),
        ({"rows": "some"}, ValueError, "rows should be"),
        ({"device": "cpu"}, ValueError, "device: expected a GPU"),
        ({"device": 1.5}, ValueError, "device: expected a GPU"),
        ({"device": "cuda:7"}, ValueError, "device: expected one of 1 GPUs, got 'cuda:7'"),
        ({"cell": 5}, TypeError, "cell: expected a str or several, got 5"),
        ({"dtype": "bfloat16"}, TypeError, "dtype: expected a dtype or several, got 'bfloat16'"),
        ({"dtype": []}, TypeError, "dtype: expected a dtype or several"),
        ({"num_layers": 0}, ValueError, "num_layers: expected at least 1"),
        ({"limit_s": 0}, ValueError, "limit_s: expected a positive number of seconds, got 0"),
        ({"limit_s": "1"}, TypeError, "limit_s: expected seconds"),
    ],
)
def test_wrong_arguments(scripted, wrong, error, text):
    with pytest.raises(error, match=text):
        fastrnn.tune((6, 3, 4, 20), **wrong)


@pytest.mark.parametrize(
    "wrong", [5, "abc", [], (6, 3, 4), [(6, 3, 4, 20), 5], torch.zeros(6, 3, 4)], ids=str
)
def test_wrong_shapes(scripted, wrong):
    """One error that says what a shape is."""
    with pytest.raises(TypeError, match=r"model_or_shape|\(T, B, I, H\)"):
        fastrnn.tune(wrong)
    assert not scripted.asked


def test_a_gpu_without_kernels(scripted, monkeypatch):
    """Nothing is tried there."""
    old = replace(A100, name="Old", compute_capability=75)
    monkeypatch.setattr(gpus, "find", lambda *_, **__: old)
    with pytest.raises(RuntimeError, match=r"not built for Old, compute capability 7\.5"):
        fastrnn.tune((6, 3, 4, 20), dtype=torch.bfloat16)
    assert not scripted.asked


def test_a_models_variants_and_precision(scripted):
    """Of a variant nothing can be proven; a dtype other than the model's is autocast's; a packed input is
    another kind of rows."""
    with pytest.raises(TypeError, match="has no recurrent layer to tune"):
        fastrnn.tune(fastrnn.GRU(4, 20, norm="layer"), (6, 3))
    model = fastrnn.GRU(4, 20)
    (kind,) = tune.kinds_of(model, (6, 3), dtype=torch.bfloat16, training=False)
    assert kind.dtype == "bfloat16"
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(6, 4), torch.zeros(2, 4)])
    (kind,) = tune.kinds_of(model, packed, training=False)
    assert (kind.rows, kind.dtype) == ("packed", "float32")


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"fastrnn\.tune: torch sees no GPU"):
        fastrnn.tune((6, 3, 4, 20))
    assert fastrnn.cuda_status()["devices"] == {}


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_decides(scripted, monkeypatch, rank):
    """Where there are several processes one tunes, and the others take its word, without a cache of
    theirs."""
    there = []

    def broadcast(holder, src):
        assert src == 0
        if rank == 0:
            there.append(holder[0])
        else:
            kind = replace(KIND, T=6, B=3)
            holder[0] = {kind.key: {"forward": "stepwise", "backward": "stepwise", "candidates": {}}}

    monkeypatch.setattr(tune, "distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    found = fastrnn.tune((6, 3, 4, 20), dtype=torch.bfloat16, training=True, progress=False)
    assert bool(scripted.asked) == (rank == 0)
    assert trust.entry(0, KIND) == (("one_cta",) * 2 if rank == 0 else ("stepwise",) * 2)
    assert there == ([found.kinds] if rank == 0 else [])


def test_the_first_call_of_many_ranks(on, monkeypatch):
    """With FASTRNN_TUNE=on rank 0 tunes and tells; the others ask now and then, and wait for nobody."""
    told: dict[str, bytes] = {}

    class Store:
        set = staticmethod(lambda key, value: told.update({key: value.encode()}))
        check = staticmethod(lambda keys: all(key in told for key in keys))
        get = staticmethod(lambda key: told[key])

    monkeypatch.setattr(tune, "distributed", lambda: True)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: Store)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(calls, "_asked_at", 0.0)
    assert first_call() == trust.UNVERIFIED
    assert not on.asked
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert first_call() is None
    assert len(told) == 1
    # Another process, which has no cache: it has rank 0's word.
    trust.store().update(lambda d: d["devices"].clear())
    trust.forget()
    on.asked.clear()
    monkeypatch.setattr(calls, "_tried", set())
    monkeypatch.setattr(calls, "_asked_at", 0.0)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert first_call() is None
    assert not on.asked


def test_show_clear_export(gpu, capsys, tmp_path):
    assert cli.main(["tune", "--show"]) == 0
    assert "nothing is known yet" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nothing is known yet"):
        cli.main(["tune", "--export", str(tmp_path / "table.json")])
    written(gpu, quarantined={"cluster": "it gave up"})
    assert cli.main(["tune", "--show", "--json", str(tmp_path / "shown.json")]) == 0
    shown = capsys.readouterr().out
    for part in ("gpu=Test GPU", KIND.key, "grid / one_cta", "verified", "tier cluster", "it gave up"):
        assert part in shown
    assert cli.main(["tune", "--export", str(tmp_path / "table.json")]) == 0
    assert (
        cache.parsed(tmp_path / "table.json")
        == gpu.read()
        == json.loads((tmp_path / "shown.json").read_text())
    )
    assert cli.main(["tune", "--clear"]) == 0
    assert gpu.read() == cache.empty()


def test_the_command(scripted, capsys, tmp_path):
    """A table, a JSON file, a bar; exit status 1 where a candidate failed."""
    arguments = ["tune", "--shape", "6,3,4,20", "--dtype", "bfloat16", "--json", str(tmp_path / "found.json")]
    assert cli.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ok"] is True
    assert len(found["kinds"]) == 2
    assert "one_cta" in capsys.readouterr().out
    scripted.verdicts = {"grid forward": FAULTS["wrong numbers"]}
    assert cli.main([*arguments, "--again", "--verify-only"]) == 1
    shown = capsys.readouterr().out
    assert "QUARANTINED" in shown
    assert "wrong numbers: y is off by 1" in shown


def test_the_command_of_a_model(scripted, capsys, tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import fastrnn, torch\ndef make(): return fastrnn.GRU(4, 20, dtype=torch.bfloat16)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["tune", "--model", "my_models:make", "--input", "6,3"]) == 0
    assert "gru bfloat16 H=20 D=1 B<=4 T<=8" in capsys.readouterr().out
    for wrong in (
        ["--model", "my_models"],
        ["--model", "my_models:none"],
        ["--device", "cpu"],
        ["--input", "6,3"],
    ):
        with pytest.raises(SystemExit):
            cli.main(["tune", *wrong])
    for wrong in ("6,3,4", "6,3,4,x", "6,3,4,0"):
        with pytest.raises(SystemExit):
            cli.main(["tune", "--shape", wrong])


def test_a_model_of_the_project_that_one_stands_in(scripted, capsys, tmp_path, monkeypatch):
    """As gpu.md shows it, with the command that is installed, whose path has its own folder in the place of
    the current one; a file with a model likewise, and one without is one clear error."""
    (tmp_path / "here_models.py").write_text(
        "import fastrnn, torch\ndef make(): return fastrnn.GRU(4, 20, dtype=torch.bfloat16)\n"
    )
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd(), str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", "--model", "here_models:make", "--input", "6,3"]) == 0
    assert "gru bfloat16 H=20" in capsys.readouterr().out
    (tmp_path / "broken.pt").write_text("x")
    (tmp_path / "empty.pt").write_text("")
    for file in ("broken.pt", "empty.pt"):
        with pytest.raises(SystemExit, match=f"--model {file}: "):
            cli.main(["tune", "--model", file])


def test_the_command_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        cli.main(["tune"])
