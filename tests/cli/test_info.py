"""``python -m fastrnn info``: what a bug report needs, whole wherever it is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrnn import __version__
from fastrnn._ops import library
from fastrnn.cli import main

ROOT = Path(__file__).resolve().parents[2]


def info(*options: str, **settings) -> subprocess.CompletedProcess:
    """``info`` in a process of its own."""
    command = [sys.executable, *options, "-m", "fastrnn", "info"]
    return subprocess.run(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, check=False, **settings)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_clear_error():
    """Where standard output goes to a disk that is full: a line, no traceback, and no success."""
    with open("/dev/full", "w") as full:
        done = info(stdout=full)
    assert done.returncode == 1
    assert done.stderr == "fastrnn info: [Errno 28] No space left on device\n"


def test_a_reader_who_leaves_is_no_error():
    """``fastrnn info | head -1``: not a word."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = info(stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_without_docstrings():
    """python -OO takes the texts of the help away, and nothing else."""
    done = info("-OO", stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert "CPU kernels loaded" in done.stdout


def test_info_names_what_matters(capsys, plain):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for text in (
        __version__,
        torch.__version__,
        library.cpu_isa(),
        "threads",
        "GPU",
        "CUDA architectures",
        "commit",
        "settings",
        "CPU kernels loaded",
        "A bug report needs all of the above",
    ):
        assert text in out


@pytest.mark.parametrize("columns", ["0", "20", "80"])
def test_info_is_whole(capsys, monkeypatch, columns):
    """On a narrow terminal, in a pipe or a file: a path and what a loader says are never cut off, nor broken
    where a report's reader would search for them."""
    said = (
        "/home/somebody/" + "projects/" * 12 + "libfastrnn_cpu.so asks for undefined symbol: " + "name_" * 30
    )
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(library, "cpu_loaded", False)
    monkeypatch.setattr(library, "cpu_why", said)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"no: {said}\n" in out
    assert f"{ROOT / 'fastrnn'}\n" in out


def test_info_json(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["fastrnn"] == __version__
    assert found["machine"]["isa"] == library.cpu_isa()
    assert found["machine"]["available_isas"] == library.available_cpu_isas()
    assert found["threads"]["torch"] == found["threads"]["kernels"] == torch.get_num_threads()
    assert found["cuda"]["torch_sees_gpu"] == torch.cuda.is_available()
    assert "cuda_archs" in found["build"]
    assert found["cpu"] == {"kernels_loaded": True, "why_not": ""}
    assert Path(found["package"]) == ROOT / "fastrnn"


def test_info_shows_the_settings_that_decide_what_runs(capsys, monkeypatch):
    """And no other variables: an environment holds what is nobody's business."""
    monkeypatch.setenv("FASTRNN_CPUS", "64")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "FASTRNN_CPUS 64" in out
    assert "OMP_WAIT_POLICY passive" in out
    assert "secret" not in out
