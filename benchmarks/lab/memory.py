"""Peak memory of one training step. Allocators keep what they once had, so each figure is a process's own.

python -m benchmarks.lab.memory '{"case": {…}, "contender": "fastrnn", "threads": 1}'   -> {"bytes": …}
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from .cases import Case
from .process import environment

#: torch.nn, fastrnn saving the gates, and fastrnn computing them again in backward.
CONTENDERS = ("torch", "fastrnn", "fastrnn recompute")


def spawn(case: Case, contender: str, threads: int) -> subprocess.Popen:
    """Start measuring; read the result with finish()."""
    request = {"case": case.to_dict(), "contender": contender, "threads": threads}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.lab.memory", json.dumps(request)],
        env=environment(threads),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> int:
    """Bytes that the step's peak lay above what the process held before it. RuntimeError with the reason."""
    out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(err.strip().splitlines()[-1] if err.strip() else f"exit {process.returncode}")
    return json.loads(out.splitlines()[-1])["bytes"]


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _step(case: Case, contender: str):
    """A function that does one training step: forward, backward, gradients released."""
    import torch

    from .contenders.registry import build
    from .problem import Problem

    problem = Problem(case)
    if contender != "fastrnn recompute":
        made = build(contender, problem, threads=1)

        def step():
            made.prepare()
            made.call()

        return step

    from fastrnn import functional

    params = [w.clone().requires_grad_() for w in problem.weights()]
    x = problem.x.clone().requires_grad_()

    def step():
        for t in (x, *params):
            t.grad = None
        layer = getattr(functional, case.cell)
        y = layer(x, None, params, training=True, save="recompute")[0]
        torch.autograd.backward(y, problem.grad)

    return step


def measure(case: Case, contender: str) -> int:
    """Bytes by which three training steps raised the resident size (on a GPU: what is allocated) at most."""
    # Code pages, thread stacks and library workspaces are not the step's: a small layer brings them in.
    small = _step(replace(case, T=2, B=2, I=16, H=16), contender)
    small()
    step = _step(case, contender)
    if case.device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            step()
        return torch.cuda.max_memory_allocated() - before
    # What is free in the process's heap goes back first: small blocks would fill it and count for nothing,
    # where large ones count whole (torch.nn's GRU keeps hundreds of small ones, and seemed to need half of
    # what it does).
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    # "5" resets the high-water mark: see proc_pid_clear_refs(5).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in range(3):
        step()
    return _status("VmHWM") - before


def main() -> None:
    request = json.loads(sys.argv[1])
    import torch

    torch.set_num_threads(request["threads"])
    print(json.dumps({"bytes": measure(Case(**request["case"]), request["contender"])}))


if __name__ == "__main__":
    main()
