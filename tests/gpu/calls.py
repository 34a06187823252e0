"""What the two calls of check.py run, in order, and how long each may take."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pack import ARCH, find_tool, latency_command
from stages import Stage, Step

HERE = Path(__file__).resolve().parent
#: Seconds of each, all told: a machine is lent for ten minutes a command, and fifteen in all.
LIMIT_S = {1: 240.0, 2: 300.0}
#: The kernel families by tier, clusters by their size: each has a smoke process of its own.
TIERS = ("stepwise", "stepwise_graph", "one_cta", "cluster_4", "cluster_8", "cluster_16", "grid")
#: Tests are by the tier's name; each waits for these smoke steps.
TESTED = ("stepwise", "stepwise_graph", "one_cta", "cluster", "grid")
SOAKED = ("one_cta", "cluster", "grid")
SOAK_S = 10
#: What `fastrnn tune --verify-only` is asked for, a process each: its own main grid of shapes.
TUNED = [(cell, dtype) for cell in ("lstm", "gru") for dtype in ("float16", "bfloat16", "float32")]
#: And of stacked layers as a wavefront: those of the sweep.
STACKED = ["--layers", "4", "--shape", "32,16,64,64"]
#: The tests of the layers' kernels on a GPU, and what else needs one, beside the scan and the wavefront.
CUDA_TESTS = [f"tests/cuda/test_cuda{name}.py" for name in ("", "_modules", "_host")]
OTHER_TESTS = [*CUDA_TESTS, "tests/ops/test_torch_compile.py::test_reduce_overhead"]


def python(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


def results(out: Path, call: int) -> Path:
    """The file of a call's results."""
    return out / f"call-{call}.jsonl"


def smoke_of(tier: str) -> str:
    """The smoke step that speaks for a tier."""
    return "smoke cluster_8" if tier == "cluster" else f"smoke {tier}"


def facts(out: Path) -> Stage:
    """The first import, of files that no cache holds yet, is the slowest; without it there is no call."""
    return Stage([Step("facts", python(HERE / "facts.py"))], 35, 60, vital=True)


def smoke(out: Path) -> Stage:
    """Every kernel family once, small: what hangs or crashes in one hides nothing of the others."""
    return Stage([Step(f"smoke {t}", python(HERE / "smoke.py", t)) for t in (*TIERS, "scan")], 35, 50)


def tests(out: Path) -> Stage:
    """The CUDA tests of each tier by name, the scan's, the wavefront's, then all others."""
    options = ["-q", "-rs", "--tb=short", "--maxfail=25", "-p", "no:cacheprovider", "-p", "lines"]
    of = {"stepwise": "stepwise and not stepwise_graph"}  # a word within the other
    chosen = [(tier, [*CUDA_TESTS, "-k", f"{of.get(tier, tier)} and not mix"]) for tier in TESTED]
    chosen += [("scan", ["tests/cuda/test_sru_cuda.py"]), ("wavefront", ["tests/run/test_wavefront.py"])]
    chosen.append(("others", [*OTHER_TESTS, "-k", f"mix or not ({' or '.join(TESTED)})"]))
    return Stage(
        [
            Step(f"tests {name}", python("-m", "pytest", *words, *options), after=smoke_of(name))
            for name, words in chosen
        ],
        45,
        75,
    )


def soak(tier: str) -> Stage:
    step = Step(
        f"soak {tier}",
        python(HERE / "soak.py", tier, "--seconds", SOAK_S),
        after=smoke_of(tier),
    )
    return Stage([step], SOAK_S + 7, SOAK_S + 14)


def latency(out: Path, pack: Path | None, arch: str) -> Stage:
    """The program as it was built, or compiled now."""
    built, left, nvcc = (pack / "latency" if pack else None), out / "latency.json", find_tool("nvcc")
    run = f"'{built or out / 'latency'}' > '{left}'; status=$?; cat '{left}'; exit $status"
    if built is None and nvcc:
        words = " ".join(f"'{w}'" for w in latency_command(nvcc, arch, out / "latency"))
        run = f"{words} || exit; {run}"
    command = ["sh", "-c", run] if built or nvcc else None
    return Stage([Step("latency", command, left=left)], 10 if built else 20, 60)


def tune(out: Path) -> Stage:
    """Each with a cache of its own, which it leaves however it ends."""
    steps = []
    for cell, dtype in TUNED:
        left = out / f"tune-{cell}-{dtype}.json"
        command = python("-m", "fastrnn", "tune", "--verify-only", "--work", "training", "--limit", 20)
        command += ["--cell", cell, "--dtype", dtype]
        steps.append(Step(f"tune {cell} {dtype}", command, {"FASTRNN_CACHE": str(left)}, left=left))
    left = out / "tune-wavefront.json"
    command = python("-m", "fastrnn", "tune", "--verify-only", "--work", "training", "--limit", 20)
    command += ["--cell", *("lstm", "gru", "rnn_tanh"), "--dtype", "bfloat16", *STACKED]
    steps.append(Step("tune wavefront", command, {"FASTRNN_CACHE": str(left)}, left=left))
    return Stage(steps, 30, 180)


def sweep(out: Path) -> Stage:
    """The benchmark ends by itself, with what it has, some time before it would be ended."""
    command = python("-m", "benchmarks.lab", "--device", "cuda", "--gpu-check", "--tiers")
    command += ["--limit", "{seconds}", "--json-only", "--lines", str(results(out, 2))]
    # What it leaves there is made of the same lines.
    command += ["--out", tempfile.gettempdir() + "/fastrnn-sweep"]
    return Stage([Step("sweep", command, margin_s=15)], 140, 195)


def memcheck(out: Path) -> Stage:
    """compute-sanitizer's memcheck over small shapes of the kernels whose blocks speak to each other.
    racecheck and synccheck: small_cases.py says how."""
    sanitizer = find_tool("compute-sanitizer")
    # cuBLAS' own kernels are left out. torch's caching allocator would hide accesses beyond a tensor.
    options = ["--tool", "memcheck", "--error-exitcode", "9", "--print-limit", "20"]
    options += ["--kernel-name", "kernel_substring=fastrnn"]
    steps = []
    for tier in ("cluster", "grid"):
        program = python(HERE / "small_cases.py", "--only", tier, "--limit", "{seconds}")
        command = [sanitizer, *options, *program] if sanitizer else None
        steps.append(Step(f"memcheck {tier}", command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, margin_s=25))
    return Stage(steps, 85, 110)


def stages(call: int, out: Path, pack: Path | None = None, arch: str = ARCH) -> Sequence[Stage]:
    """A call's stages. out: where its files go. pack: of prebuilt binaries."""
    if call == 1:
        first = [facts(out), smoke(out), tests(out), *map(soak, SOAKED)]
        return [*first, latency(out, pack, arch), tune(out)]
    return [facts(out), sweep(out), memcheck(out)]
