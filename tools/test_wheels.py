"""Installs each wheel as a stranger would, and uses it: `make test-wheels`.

    python tools/test_wheels.py [WHEEL ...] [--torch 2.11.0 2.14.1] [--python python3.10 ...] [--save]

By default the wheels of this machine's kind under dist/, each with the CPython that it is for, and with the
oldest torch that is promised and the newest. For each wheel, torch and Python: a fresh environment, torch,
the wheel without its sources and with no compiler on the PATH, and there, in an empty folder:

    python -m fastrnn info            the kernels are loaded
    python -m fastrnn verify --quick  every cell and path against float64
    python -m fastrnn bench --quick   three seconds of timing
    a training step                   outputs and every gradient against torch.nn's, and a loss that falls

torch comes as a CPU build where TORCH_CPU_INDEX or pip's own settings name an index of those, else as pip
finds it; the result says which it was. --save writes it to benchmarks/results/wheels.json, for the
repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "wheels.json"
INDEX = os.environ.get("TORCH_CPU_INDEX", "").strip()
OLDEST = "2.11.0"
NEWEST = re.search(r"^torch==(\S+)$", (ROOT / "requirements" / "build.txt").read_text(), re.MULTILINE)[1]

TRAINING = """
import torch, fastrnn
x, target = torch.randn(20, 4, 8), torch.randn(20, 4, 16)
for name in ("LSTM", "GRU", "RNN"):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(8, 16, num_layers=2)
    torch.manual_seed(0)
    ours = getattr(fastrnn, name)(8, 16, num_layers=2)
    losses = []
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-2)
    for step in range(20):
        optimizer.zero_grad()
        loss = (ours(x)[0] - target).square().mean()
        loss.backward()
        if not step:
            (theirs(x)[0] - target).square().mean().backward()
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])
            for a, b in zip(ours.parameters(), theirs.parameters()):
                torch.testing.assert_close(a.grad, b.grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
print("a training step: as torch.nn's")
"""


def without_compilers(folder: Path) -> str:
    """A PATH of the few commands that Python itself calls: whoever needs a compiler finds none."""
    folder.mkdir()
    for name in ("sh", "uname", "env"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


def python_for(wheel: Path) -> str:
    """The command of the CPython in a wheel's name: the one that runs this if it is that, or python3.12."""
    major, minor = re.search(r"-cp(\d)(\d+)-", wheel.name).groups()
    same = sys.version_info[:2] == (int(major), int(minor))
    return sys.executable if same else f"python{major}.{minor}"


def try_one(wheel: Path, torch: str, python: str) -> dict:
    """What became of one wheel with one torch and one Python."""
    start, done = time.monotonic(), {"wheel": wheel.name, "kind": wheel.parent.name, "asked_torch": torch}
    with tempfile.TemporaryDirectory(prefix="fastrnn-wheel-") as name:
        folder = Path(name)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FASTRNN", "VIRTUAL_ENV"))},
            "PATH": without_compilers(folder / "bin"),
        }

        def step(what: str, *command) -> str:
            print(f"   {what}", flush=True)
            ran = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if ran.returncode:
                done[what] = f"exit status {ran.returncode}: " + "\n".join(ran.stdout.splitlines()[-15:])
                raise RuntimeError(what)
            return ran.stdout

        try:
            if (found := shutil.which(python)) is None:
                done["environment"] = f"{python} is not installed"
                raise RuntimeError("environment")
            step("environment", found, "-m", "venv", folder / "venv")
            inside = folder / "venv" / "bin" / "python"
            more = ["--extra-index-url", INDEX] if INDEX else []
            step("torch", inside, "-m", "pip", "install", "-q", *more, f"torch=={torch}", "numpy")
            install = ["-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:"]
            step("install", inside, *install, wheel)
            info = json.loads(step("info", inside, "-m", "fastrnn", "info", "--json"))
            done |= {"python": info["versions"]["python"], "torch": info["versions"]["torch"]}
            done["isa"] = info["machine"]["isa"]
            if not info["cpu"]["kernels_loaded"]:
                done["info"] = info["cpu"]["why_not"]
                raise RuntimeError("info")
            command = (inside, "-m", "fastrnn")
            done["verify --quick"] = step("verify --quick", *command, "verify", "--quick").splitlines()[-1]
            times = folder / "bench.json"
            step("bench --quick", *command, "bench", "--quick", "--json", times)
            done["bench --quick"] = {
                f"{o['case']['cell']} {'training' if o['case']['training'] else 'inference'}": round(
                    o["ratio"], 2
                )
                for o in json.loads(times.read_text())["outcomes"]
            }
            done["training"] = step("training", inside, "-c", TRAINING).strip().splitlines()[-1]
            done["ok"] = True
        except RuntimeError as error:
            done |= {"ok": False, "failed": str(error)}
    done["seconds"] = round(time.monotonic() - start)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL")
    parser.add_argument("--torch", nargs="+", default=[OLDEST, NEWEST], metavar="VERSION")
    parser.add_argument("--python", nargs="+", metavar="COMMAND", help="(default: each wheel's own)")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    options = parser.parse_args()
    wheels = options.wheels or sorted((ROOT / "dist").glob(f"*/fastrnn-*_{platform.machine()}.whl"))
    if not wheels:
        raise SystemExit("no wheel: `make wheels` makes them")
    outcomes = []
    for wheel in wheels:
        for python in options.python or [python_for(wheel)]:
            for torch in options.torch:
                print(f"{wheel.parent.name}/{wheel.name}, torch {torch}, {python}", flush=True)
                outcomes.append(try_one(wheel.resolve(), torch, python))
    for found in outcomes:
        where = f"{found['kind']:8} torch {found.get('torch', found['asked_torch'])}, "
        where += f"Python {found.get('python', 'of the environment')}"
        said = f"ok, {found['verify --quick']}" if found["ok"] else f"FAILED at {found['failed']}"
        print(f"{where}: {said}")
        if not found["ok"]:
            print(found.get(found["failed"], ""))
    if options.save:
        document = {
            "date": date.today().isoformat(),
            "command": shlex.join(["python", "tools/test_wheels.py", *sys.argv[1:]]),
            "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()),
            "wheels": {
                f"{w.parent.name}/{w.name}": {
                    "sha256": hashlib.sha256(w.read_bytes()).hexdigest(),
                    "bytes": w.stat().st_size,
                }
                for w in wheels
            },
            "outcomes": outcomes,
        }
        RESULT.write_text(json.dumps(document, indent=1) + "\n")
        print(f"written: {RESULT.relative_to(ROOT)}")
    print(f"{sum(o['ok'] for o in outcomes)} passed, {sum(not o['ok'] for o in outcomes)} failed")
    return 0 if all(o["ok"] for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
