"""examples/amplifier: the model is trained, the program is built by CMake, and plays what the model says."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import wave

import pytest
import torch
from stream import build
from stream.runtime import Model

import fastrnn

EXAMPLE = build.ROOT / "examples" / "amplifier"


def samples(path) -> torch.Tensor:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 48000)
        raw = file.readframes(file.getnframes())
    return torch.frombuffer(bytearray(raw), dtype=torch.int16).float() / 32768


@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
def test_from_training_to_sound(tmp_path):
    done = build.run(
        [sys.executable, EXAMPLE / "train.py", "--quick", "--out", tmp_path], OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    assert "error to signal" in done.stdout
    configure = ["cmake", "-S", EXAMPLE, "-B", tmp_path / "b", f"-Dfastrnn_DIR={fastrnn.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", tmp_path / "b"]):
        done = build.run(command)
        assert done.returncode == 0, done.stdout + done.stderr
    program = tmp_path / "b" / "stream"
    done = build.run(
        [program, tmp_path / "amplifier.fastrnn", tmp_path / "guitar.wav", tmp_path / "played.wav"]
    )
    assert done.returncode == 0, done.stderr
    factor = float(re.search(r"real-time factor (\S+)", done.stdout).group(1))
    assert 0 < factor < 1
    x = samples(tmp_path / "guitar.wav")
    expected = Model(tmp_path / "amplifier.fastrnn")(x.unsqueeze(1)).flatten().clamp(-1, 1 - 2**-15)
    torch.testing.assert_close(samples(tmp_path / "played.wav"), expected, atol=2**-15, rtol=0)
    done = build.run([program, tmp_path / "guitar.wav", tmp_path / "guitar.wav", tmp_path / "played.wav"])
    assert (done.returncode, "expected" in done.stderr) == (1, True)


def test_the_circuit_has_a_memory_that_a_curve_has_not():
    """What the model learns is no function of a sample alone: loud notes make what follows softer."""
    spec = importlib.util.spec_from_file_location("train_amplifier", EXAMPLE / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    tone = 0.05 * torch.sin(torch.arange(4800) * 0.05)
    loud = torch.cat([torch.sin(torch.arange(4800) * 0.05), tone])
    alone, after = train.amplifier(torch.cat([0 * tone, tone]))[4800:], train.amplifier(loud)[4800:]
    assert after.square().sum() < 0.5 * alone.square().sum()
    assert train.guitar(0.5, torch.Generator().manual_seed(0)).abs().max() == 1
