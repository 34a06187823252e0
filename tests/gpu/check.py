"""Everything that needs a GPU, in one command: `make gpu-check`, or

    python tests/gpu/check.py [part ...]

Parts, each of which can run alone; all by default, together under ten minutes on an H100 with 16 cores:
    check    build for this GPU; each tier's kernels once (smoke.py), in a process of its own, so that what
             hangs or crashes in one hides nothing of the others; the CUDA tests, by tier; compute-sanitizer's
             memcheck, racecheck and synccheck over small shapes of every kernel
    measure  latencies and instructions (latency.cu), `python -m fastrnn verify` over every tier
    sweep    the benchmark against cuDNN, `python -m benchmarks.lab --device cuda --quick --tiers`; also what
             benchmarks/plan_table.py makes the plan's table of
and, only where they are asked for,
    smoke    for the first contact with a kind of GPU: the build and smoke.py, a minute
    peers    the benchmark against torch.compile, haste, TorchRL and FlashRNN, which compile for minutes

Options: --out FOLDER (default gpu-check-out, or $OUT), --record (enter what was verified into
benchmarks/results/gpu_verification.json). A part writes <part>.log and <part>.json: machine, versions,
commit, and of every step its status ("ok", "failed", "absent", "skipped"), seconds and results. Where the
kernels of a tier hang its other steps are skipped. Exit status 1 where a step failed or was skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # the laboratory, and the package once it is built
from benchmarks.lab.process import Silent, Watched  # noqa: E402

PARTS = ("check", "measure", "sweep")
ON_DEMAND = ("smoke", "peers")
TIERS = ("stepwise", "one_cta", "cluster", "grid")
#: A step that takes longer hangs. The benchmark ends by itself, with what it has, some time before.
LIMIT_S, SMOKE_LIMIT_S = 420, 60
SWEEP_S, PEERS_S, ENDING_S = 330, 510, 60
#: Seconds that a step gets to end by itself once its time is over.
ENDING_GRACE_S = 10.0


@dataclass
class Step:
    """A command of a part.

    Attributes:
        command: None where what it needs is not here.
        result: a JSON file that it leaves, or pytest's XML, taken into the part's.
        limit_s: after so many seconds it is ended.
        after: the name of a step; where that one hung, this one would too.
    """

    name: str
    command: Sequence[str] | None
    environment: dict[str, str] = field(default_factory=dict)
    result: Path | None = None
    limit_s: int = LIMIT_S
    after: str = ""


def find_tool(name: str) -> str | None:
    """nvcc or compute-sanitizer: on the PATH, in CUDA_HOME, in torch's pip wheels, in the system's CUDA."""
    wheels = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*"))
    folders = [os.environ.get("CUDA_HOME"), *wheels, "/usr/local/cuda"]
    found = [shutil.which(name), *(shutil.which(str(Path(f, "bin", name))) for f in folders if f)]
    return next(filter(None, found), None)


#: What of the tests a GPU is needed for, beside those of the tiers, the scan and the wavefront.
OTHER_TESTS = ["tests/cuda/test_cuda.py", "tests/ops/test_torch_compile.py::test_reduce_overhead"]


def smoke_steps(out: Path) -> list[Step]:
    """A step for each tier and the scan."""
    found = []
    for tier in (*TIERS, "scan"):
        result = out / f"smoke-{tier}.json"
        command = [sys.executable, str(HERE / "smoke.py"), tier, "--json", str(result)]
        found.append(Step(f"smoke {tier}", command, result=result, limit_s=SMOKE_LIMIT_S))
    return found


def suite_steps(out: Path) -> list[Step]:
    """The CUDA tests of each tier by name, the scan's, the wavefront's, then all others."""
    options = ["-q", "-rs", "--tb=short", "--maxfail=25", "--durations=5", "-o", "faulthandler_timeout=45"]
    chosen = [(tier, ["tests/cuda/test_cuda.py", "-k", f"{tier} and not mix"]) for tier in TIERS]
    chosen += [("scan", ["tests/cuda/test_sru_cuda.py"]), ("wavefront", ["tests/run/test_wavefront.py"])]
    chosen.append(("others", [*OTHER_TESTS, "-k", f"mix or not ({' or '.join(TIERS)})"]))
    found = []
    for name, arguments in chosen:
        result = out / f"tests-{name}.xml"
        command = [sys.executable, "-m", "pytest", *arguments, *options, f"--junit-xml={result}"]
        found.append(Step(f"tests {name}", command, result=result, limit_s=240, after=f"smoke {name}"))
    return found


def sanitizer_steps() -> list[Step]:
    """Each tool over every kernel but the clusters', then those, whose order is kept by the bytes that peers
    push: racecheck may know nothing of them."""
    sanitizer = find_tool("compute-sanitizer")
    # cuBLAS' own kernels are left out. torch's caching allocator would hide accesses beyond a tensor.
    options = ["--error-exitcode", "9", "--print-limit", "20", "--kernel-name", "kernel_substring=fastrnn"]
    program, uncached = str(HERE / "small_cases.py"), {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    found = []
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = [sanitizer, "--tool", tool, *options, sys.executable, program]
        for name, which in ((tool, "--but"), (f"{tool} cluster", "--only")):
            step = Step(name, [*command, which, "cluster"] if sanitizer else None, uncached, limit_s=240)
            step.after = "smoke cluster" * (which == "--only")
            found.append(step)
    return found


def architecture(capability: tuple[int, int]) -> str:
    """As FASTRNN_CUDA_ARCHS writes it; Hopper's own instructions have an architecture of their own."""
    number = f"{capability[0]}.{capability[1]}"
    return number + "a" if capability[0] == 9 else number


def steps(part: str, out: Path, capability: tuple[int, int]) -> list[Step]:
    """What a part runs, in order."""
    python, arch = sys.executable, architecture(capability)
    if part in ("smoke", "check"):
        build = {"FASTRNN_CUDA": "1", "FASTRNN_CUDA_ARCHS": os.environ.get("FASTRNN_CUDA_ARCHS", arch)}
        compile_ = Step("build", [python, "setup.py", "-q", "build_ext", "--inplace"], build)
        start = [compile_, *smoke_steps(out)]
        return start if part == "smoke" else [*start, *suite_steps(out), *sanitizer_steps()]
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
    bench = [python, "-m", "benchmarks.lab", "--device", "cuda", *what, "--tiers"]
    # The report is written from this part's JSON, on any machine: `python -m benchmarks.lab --merge`.
    bench += ["--json-only", "--out", str(folder)]
    limit_s = ENDING_S + (SWEEP_S if part == "sweep" else PEERS_S)
    return [Step("bench", bench, result=folder / "results.json", limit_s=limit_s)]


def taken(result: Path) -> object:
    """What a step left: JSON, or of pytest's XML how many tests there were and which of them failed."""
    try:
        if result.suffix != ".xml":
            return json.loads(result.read_text())
        tests = list(ElementTree.parse(result).getroot().iter("testcase"))
    except (ValueError, ElementTree.ParseError) as error:  # it was ended while it wrote
        return f"{result.name} is broken: {error}"
    failed = [t.get("name") for t in tests if t.find("failure") is not None or t.find("error") is not None]
    skipped = sum(t.find("skipped") is not None for t in tests)
    return {"tests": len(tests), "skipped": skipped, "failed": failed}


def run_step(step: Step, log: Callable[[str], None]) -> dict:
    """Run a step, passing on what it prints.

    Returns {"status", "seconds"}, "exit" where that is not 0, "hung" where the step ran into its limit, and
    what it left as "result".
    """
    log(f"== {step.name}\n")
    if step.command is None:
        log("what it needs is not here\n")
        return {"status": "absent", "seconds": 0.0}
    start = time.monotonic()
    environment = (
        os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | step.environment
    )
    deadline, hung = start + step.limit_s, False
    with Watched(step.command, environment, folder=ROOT) as process:
        try:
            while (line := process.line(deadline - time.monotonic())) is not None:
                log(line)
                if time.monotonic() > deadline:  # it may go on talking
                    raise Silent
            hung = process.wait(deadline - time.monotonic()) is None
        except Silent:
            hung = True
        if hung:  # the benchmark ends with what it has, when it is asked to
            process.end(ENDING_GRACE_S)
            while (line := process.line(0.5)) is not None:
                log(line)
        code = process.code
    status = "failed" if code or hung else "ok"
    outcome: dict = {"status": status, "seconds": round(time.monotonic() - start, 1)}
    if code:
        outcome["exit"] = code
    if hung:
        outcome["hung"] = True
        log(f"== {step.name} was ended after {step.limit_s} s\n")
    if step.result is not None and step.result.exists():
        outcome["result"] = taken(step.result)
        step.result.unlink()
        with contextlib.suppress(OSError):  # a folder with nothing else in it
            step.result.parent.rmdir()
    return outcome


def facts() -> dict:
    """Machine, versions and commit, as the benchmark states them."""
    from fastrnn.proof import machine

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
            if document["steps"].get(step.after, {}).get("hung"):
                log(f"== {step.name}\nleft out, as {step.after} hung\n")
                document["steps"][step.name] = {"status": "skipped", "seconds": 0.0}
                continue
            outcome = document["steps"][step.name] = run_step(step, log)
            (out / f"{part}.json").write_text(json.dumps(document, indent=1) + "\n")  # whatever comes next
            if step.name == "build" and outcome["status"] == "failed":
                break
    document["ok"] = all(s["status"] in ("ok", "absent") for s in document["steps"].values())
    try:
        document |= facts()
    except ImportError as error:  # nothing was built
        document["facts"] = str(error)
    (out / f"{part}.json").write_text(json.dumps(document, indent=1) + "\n")
    return document


def summary(step: dict) -> str:
    """A step's status in a word or a few."""
    text, result = step["status"] + ", hung" * step.get("hung", False), step.get("result")
    if isinstance(result, dict) and "tests" in result:
        text += f": {len(result['failed'])} of {result['tests']} tests failed" * bool(result["failed"])
    elif isinstance(result, dict) and text != "ok":
        wrong = [name for name, outcome in result.items() if isinstance(outcome, str) and outcome != "ok"]
        text += f": {len(wrong)} of {len(result)}, {wrong[0]}" * bool(wrong)
    return text


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
    documents = [run_part(p, out, torch.cuda.get_device_capability()) for p in options.parts or PARTS]
    for document in documents:
        for name, step in document["steps"].items():
            print(f"{document['part']:8s} {name:18s} {summary(step):44s} {step['seconds']:6.1f} s")
    if options.record:
        import record

        for document in documents:
            record.enter(document)
    return 0 if all(document["ok"] for document in documents) else 1


if __name__ == "__main__":
    sys.exit(main())
