"""What goes along to a machine with a GPU: binaries that are of these sources, and of no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pack
import pytest
from emu.build import OUT, ROOT, digest, find_cuda_tool


@pytest.fixture
def a_pack(tmp_path):
    """A folder as pack.py leaves it, of a checkout with a few files."""
    root = tmp_path / "checkout"
    for name in (
        "setup.py",
        "csrc/a.cu",
        "fastrnn/__init__.py",
        "tests/t.py",
        "benchmarks/b.py",
        "README.md",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    folder = tmp_path / "pack"
    (folder / "fastrnn").mkdir(parents=True)
    (folder / "fastrnn" / "libfastrnn_cuda.so").write_text("kernels")
    (folder / "latency").write_text("program")
    found = {"commit": "abc", "sources": pack.sources_digest(root), "python": "3.12", "built": {}}
    found["files"] = {"fastrnn/libfastrnn_cuda.so": 7, "latency": 7}
    (folder / "pack.json").write_text(json.dumps(found))
    return folder, root


def test_a_pack_is_put_beside_the_package(a_pack):
    """Whole, and also where there is one of an earlier call; other files do not matter."""
    folder, root = a_pack
    (root / "README.md").write_text("other words")
    (root / "fastrnn" / "libfastrnn_cuda.so").write_text("old")
    assert pack.load(folder, root, "3.12")["commit"] == "abc"
    pack.install(folder, root)
    assert (root / "fastrnn" / "libfastrnn_cuda.so").read_text() == "kernels"
    assert os.access(folder / "latency", os.X_OK)
    assert sorted(p.name for p in (root / "fastrnn").iterdir()) == ["__init__.py", "libfastrnn_cuda.so"]


def test_a_stale_pack_is_refused(a_pack):
    """Of other sources, for another Python, not whole: never a result that is credited to what did not
    run."""
    folder, root = a_pack
    with pytest.raises(pack.Stale, match=r"built for Python 3.12, and this is 3.9"):
        pack.load(folder, root, "3.9")
    for name in ("csrc/a.cu", "fastrnn/__init__.py", "tests/t.py", "setup.py"):
        before = (root / name).read_text()
        (root / name).write_text(before + "changed")
        with pytest.raises(pack.Stale, match=r"built from the sources .* run make gpu-pack again"):
            pack.load(folder, root, "3.12")
        (root / name).write_text(before)
    pack.load(folder, root, "3.12")
    (folder / "latency").write_text("half")
    with pytest.raises(pack.Stale, match="latency has another size"):
        pack.load(folder, root, "3.12")
    (folder / "pack.json").unlink()
    with pytest.raises(pack.Stale, match="not a whole pack"):
        pack.load(folder, root, "3.12")


def test_a_module_for_another_python(tmp_path):
    """_C is compiled against the headers of the Python that is asked for, and says what it is of. Here they
    are this one's, so that it can be imported."""
    version = "{}.{}".format(*sys.version_info[:2])
    headers = pack.find_headers(version)
    if headers is None:
        pytest.skip("this Python has no headers")
    target = tmp_path / pack.module_name(version)
    facts = {"version": "7.7", "cuda_archs": pack.ARCH, "cuda_compiler": "nvcc x", "torch": "2.11"}
    pack.build_module(version, headers, facts, target)
    program = "import json, _C; print(json.dumps(_C.build_info())); _C.plan"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert facts.items() <= json.loads(done.stdout).items()
    assert pack.find_headers("3.0") is None


def test_a_pack_is_what_a_call_needs(tmp_path):
    """pack.json names what was packed and of what; the compilation of the latencies is Hopper's alone."""
    (tmp_path / "fastrnn").mkdir()
    (tmp_path / "fastrnn" / "x.so").write_text("1234")
    found = pack.describe(tmp_path, "3.12", {"cuda_archs": "9.0a"}, "1234")
    assert found["files"] == {"fastrnn/x.so": 4}
    assert found["sources"] == "1234"
    command = pack.latency_command("nvcc", pack.ARCH, tmp_path / "latency")
    assert "-gencode=arch=compute_90a,code=sm_90a" in command


@pytest.mark.skipif(find_cuda_tool("nvcc") is None, reason="no nvcc here")
def test_latency_program_compiles():
    """The program that measures latencies and checks the instructions is kept compiling, for Hopper."""
    source = ROOT / "tests" / "gpu" / "latency.cu"
    stamp = OUT.parent / "cubin" / f"latency-{digest(source.read_text())}.ok"
    if not stamp.exists():
        stamp.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-O1", "-std=c++20", f"-I{ROOT / 'csrc'}", "-arch=sm_90a", "-cubin"]
        command = [find_cuda_tool("nvcc"), *flags, source, "-o", stamp.with_suffix(".cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        stamp.write_text("")


def test_sources_that_change_meanwhile(tmp_path, monkeypatch):
    """A build takes minutes: what is edited during it is not what was compiled, and no pack says so."""
    headers, built, out = (tmp_path / name for name in ("headers", "built", "out"))
    for folder in (headers, built):
        folder.mkdir()
    (headers / "Python.h").write_text("")
    for name in ("libfastrnn_cpu.so", "libfastrnn_cuda.so"):
        (built / name).write_text(name)
    digests = iter(("before", "after"))
    monkeypatch.setattr(pack, "sources_digest", lambda: next(digests))
    monkeypatch.setattr(pack, "find_tool", lambda name: name)
    monkeypatch.setattr(pack, "build_libraries", lambda folder: built)
    monkeypatch.setattr(pack, "build_module", lambda *arguments: None)
    monkeypatch.setattr(
        pack.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout="{}")
    )
    with pytest.raises(SystemExit, match="the sources have changed while they were compiled"):
        pack.make(out, "3.99", headers)
    assert not (out / "pack.json").exists()
