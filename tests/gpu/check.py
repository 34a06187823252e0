"""Everything that needs a GPU, in one command: `make gpu-check`, or

    python tests/gpu/check.py [part ...]

Parts, each of which can run alone; all by default, together under ten minutes on an H100 with 16 cores:
    check    build for this GPU, the CUDA tests, compute-sanitizer's memcheck, racecheck and synccheck over
             small shapes of every kernel
    measure  latencies and instructions (latency.cu), `python -m fastrnn verify` over every tier
    sweep    the benchmark against cuDNN, `python -m fastrnn bench --device cuda --quick --tiers`; also what
             benchmarks/plan_table.py makes the plan's table of
and, only where it is asked for,
    peers    the same against torch.compile, haste, TorchRL and FlashRNN, which compile for minutes

Options: --out FOLDER (default gpu-check-out, or $OUT), --record (enter what was verified into
benchmarks/results/gpu_verification.json). A part writes <part>.log and <part>.json: machine, versions,
commit, and of every step its status ("ok", "failed", "absent"), seconds and results. Exit status 1 where a
step failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = ("check", "measure", "sweep")
ON_DEMAND = ("peers",)
#: A step that takes longer hangs. The benchmark ends by itself, with what it has, some time before.
LIMIT_S = 420
SWEEP_S, PEERS_S, ENDING_S = 330, 510, 60


@dataclass
class Step:
    """A command of a part.

    Attributes:
        command: None where what it needs is not here.
        result: a JSON file that it leaves, taken into the part's.
        limit_s: seconds that it may take.
    """

    name: str
    command: Sequence[str] | None
    environment: dict[str, str] = field(default_factory=dict)
    result: Path | None = None
    limit_s: int = LIMIT_S


def find_tool(name: str) -> str | None:
    """nvcc or compute-sanitizer: on the PATH, in CUDA_HOME, in the system's CUDA."""
    folders = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    found = [shutil.which(name), *(shutil.which(str(Path(f, "bin", name))) for f in folders if f)]
    return next(filter(None, found), None)


#: What of the tests a GPU is needed for.
GPU_TESTS = [
    "tests/test_cuda.py",
    "tests/test_sru_cuda.py",
    "tests/test_wavefront.py",
    "tests/test_torch_compile.py::test_reduce_overhead",
]


def architecture(capability: tuple[int, int]) -> str:
    """As FASTRNN_CUDA_ARCHS writes it; Hopper's own instructions have an architecture of their own."""
    number = f"{capability[0]}.{capability[1]}"
    return number + "a" if capability[0] == 9 else number


def steps(part: str, out: Path, capability: tuple[int, int]) -> list[Step]:
    """What a part runs, in order."""
    python, arch = sys.executable, architecture(capability)
    if part == "check":
        build = {"FASTRNN_CUDA": "1", "FASTRNN_CUDA_ARCHS": os.environ.get("FASTRNN_CUDA_ARCHS", arch)}
        quietly = ["-q", "-rs", "--durations=5"]
        found = [
            Step("build", [python, "setup.py", "-q", "build_ext", "--inplace"], build),
            Step("tests", [python, "-m", "pytest", *GPU_TESTS, *quietly]),
        ]
        sanitizer = find_tool("compute-sanitizer")
        for tool in ("memcheck", "racecheck", "synccheck"):
            # cuBLAS' own kernels are left out. torch's caching allocator would hide accesses beyond a tensor.
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-name"]
            command += ["kernel_substring=fastrnn", python, str(HERE / "small_cases.py")]
            uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            found.append(Step(tool, command if sanitizer else None, uncached))
        return found
    if part == "measure":
        nvcc, program, latency = find_tool("nvcc"), out / "latency", out / "latency.json"
        target = arch.replace(".", "")
        flags = [f"-gencode=arch=compute_{target},code=sm_{target}", "-O3", "-std=c++20", "-Icsrc"]
        compile_ = [nvcc, *flags, str(HERE / "latency.cu"), "-o", str(program)] if nvcc else None
        run = [
            "sh",
            "-c",
            f"'{program}' > '{latency}'; status=$?; cat '{latency}'; rm '{program}'; exit $status",
        ]
        verified = out / "verify.json"
        return [
            Step("compile latency", compile_),
            Step("latency", run if nvcc else None, result=latency),
            Step(
                "verify",
                [python, "-m", "fastrnn", "verify", "--device", "cuda", "--json", str(verified)],
                result=verified,
            ),
        ]
    folder = out / part
    what = {"sweep": ["--quick", "--limit", str(SWEEP_S)], "peers": ["--peers", "--limit", str(PEERS_S)]}[
        part
    ]
    bench = [python, "-m", "fastrnn", "bench", "--device", "cuda", *what, "--tiers"]
    # The report is written from this part's JSON, on any machine: `bench --merge`.
    bench += ["--json-only", "--out", str(folder)]
    limit_s = ENDING_S + (SWEEP_S if part == "sweep" else PEERS_S)
    return [Step("bench", bench, result=folder / "results.json", limit_s=limit_s)]


def run_step(step: Step, log: Callable[[str], None]) -> dict:
    """Run a step, passing on what it prints: {"status", "seconds"} and, where it leaves one, "result"."""
    log(f"== {step.name}\n")
    if step.command is None:
        log("what it needs is not here\n")
        return {"status": "absent", "seconds": 0.0}
    start = time.monotonic()
    environment = (
        os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | step.environment
    )
    # Through the shell's timeout, so that a hanging kernel ends the step and not the whole check.
    command = ["timeout", "--kill-after=10", str(step.limit_s), *step.command]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            log(line)
    outcome = {
        "status": "failed" if process.returncode else "ok",
        "seconds": round(time.monotonic() - start, 1),
    }
    if process.returncode:
        outcome["exit"] = process.returncode
    if step.result is not None and step.result.exists():
        outcome["result"] = json.loads(step.result.read_text())
        step.result.unlink()
        with contextlib.suppress(OSError):  # a folder with nothing else in it
            step.result.parent.rmdir()
    return outcome


def facts() -> dict:
    """Machine, versions and commit, as the benchmark states them."""
    from fastrnn.bench import machine

    return {"commit": machine.commit(), "machine": machine.describe(), "versions": machine.versions()}


def run_part(part: str, out: Path, capability: tuple[int, int]) -> dict:
    """Run a part's steps and write its log and its JSON. After a failed build nothing else runs."""
    document: dict = {"part": part, "steps": {}}
    with (out / f"{part}.log").open("w") as file:

        def log(text: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()
            file.write(text)
            file.flush()

        for step in steps(part, out, capability):
            outcome = document["steps"][step.name] = run_step(step, log)
            if step.name == "build" and outcome["status"] == "failed":
                break
    document["ok"] = all(s["status"] != "failed" for s in document["steps"].values())
    try:
        document |= facts()
    except ImportError as error:  # nothing was built
        document["facts"] = str(error)
    (out / f"{part}.json").write_text(json.dumps(document, indent=1) + "\n")
    return document


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join((*PARTS, *ON_DEMAND)))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-check-out")))
    parser.add_argument("--record", action="store_true", help="enter what was verified into the record")
    options = parser.parse_args()
    if unknown := set(options.parts) - {*PARTS, *ON_DEMAND}:
        known = ", ".join((*PARTS, *ON_DEMAND))
        parser.error(f"part: expected {known}, got {', '.join(sorted(unknown))}")
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU", file=sys.stderr)
        return 1
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if out == ROOT / "gpu-check-out":
        (out / ".gitignore").write_text("*\n")  # results that are kept go to benchmarks/results
    sys.path.insert(0, str(ROOT))  # the package, once it is built
    documents = [run_part(p, out, torch.cuda.get_device_capability()) for p in options.parts or PARTS]
    for document in documents:
        for name, step in document["steps"].items():
            print(f"{document['part']:8s} {name:16s} {step['status']:7s} {step['seconds']:6.1f} s")
    if options.record:
        import record

        for document in documents:
            record.enter(document)
    return 0 if all(document["ok"] for document in documents) else 1


if __name__ == "__main__":
    sys.exit(main())
