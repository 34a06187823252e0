"""The kernels' threads under ThreadSanitizer, in a program of their own (tests/harness): `make tsan`."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess

import layer_cases
import pytest
import sru_cases
import stage_cases
import torch
from harness import build
from harness.kernels import Kernels
from selection import thorough
from toolchain import cxx

pytestmark = thorough

OPTIONS = "halt_on_error=0 exitcode=66"
#: Threads, batch groups, unit groups, chunk: as the library divides work, and as it would not.
PLANS = [(4,), (3, 1, 3, 2), (4, 2, 2, 1), (2, 2, 1, 3)]


def command(program) -> list[str]:
    """Without random addresses where the system lets a program ask for that: on some kernels they lie where
    older sanitizers keep their own memory."""
    plain = ["setarch", "-R"]
    works = shutil.which("setarch") and subprocess.run([*plain, "true"], capture_output=True).returncode == 0
    return [*(plain if works else []), str(program)]


@pytest.fixture(scope="module")
def sanitizer(tmp_path_factory):
    """Whether the compiler has ThreadSanitizer and its programs start here."""
    folder = tmp_path_factory.mktemp("tsan")
    (folder / "empty.cpp").write_text("int main() { return 0; }\n")
    compiler = [*cxx(), "-fsanitize=thread"]
    to = [folder / "empty.cpp", "-o", folder / "empty"]
    made = subprocess.run([*compiler, *to], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no ThreadSanitizer in the compiler: {made.stderr.strip().splitlines()[-1]}")
    ran = subprocess.run(command(folder / "empty"), capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"ThreadSanitizer does not start here: {ran.stderr.strip()[:200]}")


def start(program) -> Kernels:
    return Kernels(command(program), os.environ | {"TSAN_OPTIONS": OPTIONS})


def layers() -> list[layer_cases.Case]:
    """Work for several threads: every cell, pass and kind of rows; the double's blocks are small."""
    cases = [c for c in layer_cases.grid() + layer_cases.masked_grid() if c.T > 1 and c.H > 2]
    cases = [c for c in cases if c.dtype in (torch.float64, torch.bfloat16)]
    wide = [
        layer_cases.Case(cell, T=5, B=13, IN=20, H=65, D=D, P=P, dtype=torch.float32, save=save)
        for cell, D, save in itertools.product(layer_cases.CELLS, (1, 2), ("gates", "recompute"))
        for P in ((0, 17) if cell == "lstm" else (0,))
    ]
    return [*cases[::3], *wide]


def variants() -> list[stage_cases.Case]:
    """Every option, whose sums and second products have meetings of their own, and options together."""
    cases = [stage_cases.Case(cell, options, B=7, H=65) for cell, options in stage_cases.OPTIONS]
    return [*cases, *(c for c in list(stage_cases.cases())[::3] if c.T > 1)]


def test_no_race(sanitizer):
    """Every access of one thread to what another wrote comes after a meeting, in every cell, pass and way of
    dividing the work; and the results are right on the way."""
    kernels = start(build.thread_sanitizer())
    for isa in dict.fromkeys((kernels.isas[0], kernels.isas[-1])):
        kernels.isa = isa
        for i, case in enumerate(layers()):
            layer_cases.check(kernels.plan(*PLANS[i % 4]), case)
        for i, case in enumerate(variants()):
            stage_cases.check(kernels.plan(*PLANS[i % 4]), case)
        for i, case in enumerate(sru_cases.grid()[::4]):
            kernels.stream = bool(i & 1)
            sru_cases.check(kernels.plan(*PLANS[i % 4][:3]), case)
    found = kernels.stop()
    assert (kernels.status, found[:5000]) == (0, "")


@pytest.mark.parametrize("name", ["spares", "own_cpus"])
def test_many_threads_at_once(sanitizer, name):
    """Scratch memory goes from thread to thread with all that was written there; calls come and go, and count
    each other."""
    program = command(build.program(name, build.TSAN))
    done = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr[:5000]


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        # A meeting that counts, and hands over nothing of what was written before it.
        (
            "cpu/team.h",
            "__atomic_add_fetch(&arrivals_, 1, __ATOMIC_SEQ_CST)",
            "__atomic_add_fetch(&arrivals_, 1, __ATOMIC_RELAXED)",
        ),
        # Several threads write the same.
        ("cpu/rnn/backward_recompute.inl", "if (grid_.unit_group(rank) == 0) directions_", "directions_"),
    ],
    ids=["barrier", "two writers"],
)
def test_a_planted_race_is_found(sanitizer, file, right, wrong):
    """The sanitizer sees the kernels: without a meeting, or with two who write, it speaks."""
    kernels = start(build.thread_sanitizer_with(build.Fault(file, right, wrong)))
    case = layer_cases.Case("lstm", T=5, B=4, H=33, save="recompute")
    for _ in range(3):
        layer_cases.fused(kernels.plan(3, 1, 3, 2), case, layer_cases.problem(case))
    found = kernels.stop()
    assert "data race" in found
    assert kernels.status == 66


def test_a_planted_race_between_calls_is_found(sanitizer):
    """Threads that read which CPUs are taken and write it back with theirs."""
    right = "taken_[cpu / kBits].fetch_or(bit, std::memory_order_relaxed)"
    word = "auto& word = reinterpret_cast<uint64_t&>(taken_[cpu / kBits])"
    wrong = f"[&] {{ {word}; const uint64_t before = word; word |= bit; return before; }}()"
    fault = build.Fault("cpu/ops/own_cpus.h", right, wrong)
    program = command(build.program("own_cpus", build.TSAN, [fault]))
    environment = os.environ | {"TSAN_OPTIONS": OPTIONS}
    done = subprocess.run(program, capture_output=True, text=True, timeout=600, env=environment)
    assert "data race" in done.stderr
    assert done.returncode == 66
