"""``python -m fastrnn bench``: the short proof of speed, on tiny layers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fastrnn import modules
from fastrnn.cli import console, main
from fastrnn.proof import speed, timing

TINY = ["--shape", "3,2,5", "--budget", "0.05"]


@pytest.fixture
def plain(monkeypatch):
    """As where rich is not installed."""
    monkeypatch.setattr(console, "rich", None)


def test_from_the_command_line_to_the_file(tmp_path, capsys, plain, threads):
    """Protects the table and the file: every cell and kind of work, both times, the ratio between them, and
    what it was measured on. The number of threads is put back."""
    threads(1)
    file = tmp_path / "new" / "speed.json"
    assert main(["bench", *TINY, "--threads", "2", "--json", str(file)]) == 0
    assert torch.get_num_threads() == 1
    document = json.loads(file.read_text())
    assert (document["ok"], document["threads"]) == (True, 2)
    assert document["machine"]["isa"]
    assert document["versions"]["torch"] == torch.__version__
    out = capsys.readouterr().out
    assert [(o["case"]["cell"], o["case"]["training"]) for o in document["outcomes"]] == [
        (cell, training) for cell in speed.CELLS for training in (False, True)
    ]
    for outcome in document["outcomes"]:
        ours, theirs = (outcome["times"][key] for key in ("fastrnn", "torch"))
        assert ours["rounds"] >= timing.FEW_ROUNDS
        assert outcome["ratio"] == pytest.approx(theirs["median_s"] / ours["median_s"])
        assert 0 <= outcome["difference"] < 1e-5
        assert f"{outcome['ratio']:.2f}" in out
    assert "GRU training 3,2,5" in out
    assert "GRU training, geometric mean" in out


def test_both_do_the_same_work(monkeypatch):
    """Protects the comparison: the same weights and input; in training the gradients of the input and of
    every weight, which do not pile up, and weights that count as changed before each call."""
    contenders = []

    def watch(pair, **options):
        contenders.extend(pair)
        return timing.interleave(pair, **options)

    monkeypatch.setattr(speed, "interleave", watch)
    for training in (False, True):
        assert speed.measure(speed.Case("lstm", training, 4, 3, 5, "float64"), 0.0).difference < 1e-12
    inference, training = contenders[:2], contenders[2:]
    assert [c.key for c in contenders] == ["fastrnn", "torch"] * 2
    assert {tuple(c.result()) for c in inference} == {("output",)}
    names = {f"grad_{name}" for name, _ in modules.LSTM(5, 5).named_parameters()}
    for contender in training:
        first, second = contender.result(), contender.result()
        assert {*first} == {"output", "grad_x", *names}
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert contender.prepare is not None


def test_wrong_numbers_and_errors_are_failures(monkeypatch, capsys, plain, tmp_path):
    """Protects the exit status: whoever is wrong is not timed, in output or gradient, and the others are."""

    class Wrong(modules.GRU):
        def forward(self, input, hx=None):
            output, h = super().forward(input, hx)
            return output + (0.1 * (input - input.detach()) if self.training else math.nan), h

    def broken(*args, **options):
        raise RuntimeError("no such kernel\nand a hint")

    monkeypatch.setattr(modules, "GRU", Wrong)
    monkeypatch.setattr(modules, "RNN", broken)
    file = tmp_path / "speed.json"
    assert main(["bench", *TINY, "--json", str(file)]) == 1
    document = json.loads(file.read_text())
    assert document["ok"] is False
    assert [bool(o["times"]) for o in document["outcomes"]] == [True, True, False, False, False, False]
    out = capsys.readouterr().out
    assert "FAILED GRU inference 3,2,5: differs from torch.nn by inf" in out
    assert "FAILED GRU training 3,2,5: differs from torch.nn by " in out
    assert "FAILED RNN training 3,2,5: RuntimeError: no such kernel\n" in out


def test_filters():
    """Protects the options: each narrows what is timed; without any, float32 on the usual shapes."""
    every = speed.cases()
    assert len(set(every)) == len(every) == len(speed.CELLS) * 2 * len(speed.SHAPES)
    assert {c.dtype for c in every} == {"float32"}
    (one,) = speed.cases(["rnn"], [(7, 2, 5)], ["bfloat16"], ["training"], "cuda:1")
    assert one == speed.Case("rnn", True, 7, 2, 5, "bfloat16", "cuda:1")
    assert one.title == "RNN training bfloat16 7,2,5"


def test_busy_machines_are_told(monkeypatch, capsys, plain):
    """Protects the reader from figures that somebody else's work has made."""
    from fastrnn.proof import machine

    for load, told in ((10.0, True), (0.0, False), (None, False)):
        monkeypatch.setattr(machine, "load", lambda load=load: load)
        assert main(["bench", *TINY, "--cell", "rnn", "--work", "inference"]) == 0
        assert ("the machine was busy" in capsys.readouterr().out) is told


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_one_clear_error():
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        main(["bench", "--device", "cuda"])
