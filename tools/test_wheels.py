"""Installs each wheel as a stranger would, and uses it: `make test-wheels`.

    python tools/test_wheels.py [WHEEL ...] [--torch 2.11.0] [--torch 2.14.1] [--python python3.10] [--save]
    python tools/test_wheels.py --run-by "qemu-aarch64 -L ROOT ROOT/usr/bin/python3.11" WHEEL [--save]

By default the wheels of this machine's kind and this version under dist/, each with the CPython that it is
for, and with the oldest torch that is promised and the newest. An option takes one value, and is given again
for another. For each wheel, torch and Python: a fresh environment with torch
(installed once, and copied for each wheel), the wheel without its sources and with no compiler on the PATH,
and there, in an empty folder:

    python -m fastrnn info            the kernels are loaded
    python -m fastrnn verify --quick  every cell and path against float64
    python -m fastrnn bench --quick   three seconds of timing
    a training step                   outputs and every gradient against torch.nn's, and a loss that falls

--run-by is for wheels for another machine: how a Python for it is started here, which finds torch by itself
or by PYTHONPATH. The wheel is unpacked and not installed, and nothing is timed, as that would be the
emulator's time; the rest is the same.

torch comes as a CPU build where TORCH_CPU_INDEX or pip's own settings name an index of those, else as pip
finds it; the result says which it was. --save writes it to benchmarks/results/wheels.json, for the
repository, beside what is there of other wheels of the same version. --no-times is for a machine that is at
work for others, too: the timing runs, and the result says that in place of its times.
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
import zipfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pythons
from packing import ROOT, version

RESULT = ROOT / "benchmarks" / "results" / "wheels.json"
INDEX = os.environ.get("TORCH_CPU_INDEX", "").strip()
OLDEST = "2.11.0"
NEWEST = re.search(r"^torch==(\S+)$", (ROOT / "requirements" / "build.txt").read_text(), re.MULTILINE)[1]

#: As a plain build names them, and as auditwheel does.
NAME = re.compile(r"fastrnn-(?P<version>[^-]+)-(?P<tag>cp3\d+)-(?P=tag)-(?P<system>[\w.]+)\.whl")
BUSY = "ran to its end; its times are not shown: the machine was at work for others"

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


def kind_of(wheel: Path) -> str:
    """The folder that it lies in, as `make wheels` names them."""
    return wheel.absolute().parent.name or "/"


def unfit(wheel: Path, run_by: str = "") -> str:
    """Why a wheel cannot be tried here, "" where it can: before a torch is installed for it."""
    name = NAME.fullmatch(wheel.name)
    if name is None:
        hint = "" if wheel.suffix == ".whl" else ": an option takes one value, and is given again for another"
        return f"expected a wheel such as fastrnn-1.2.0-cp312-cp312-linux_x86_64.whl, got {wheel}{hint}"
    if not wheel.is_file():
        return f"there is no {wheel}"
    if not zipfile.is_zipfile(wheel):
        return f"{wheel} is no wheel inside"
    if not run_by and not name["system"].endswith(f"_{platform.machine().lower()}"):
        return f"{wheel} is not for {platform.machine()}: --run-by says how a Python for it is started"
    return ""


def here() -> tuple[list[Path], list[Path]]:
    """The wheels of this machine's kind under dist/: those of this version, and what lies there of others."""
    found = sorted((ROOT / "dist").glob(f"*/fastrnn-*_{platform.machine()}.whl"))
    mine = [wheel for wheel in found if wheel.name.startswith(f"fastrnn-{version()}-")]
    return mine, [wheel for wheel in found if wheel not in mine]


def shared_out(wheels: Sequence[Path], asked: Sequence[str]) -> dict[str, list[Path]]:
    """{command of a CPython: its wheels}: of the CPythons that are asked for, or else of each wheel's own.
    ValueError where one cannot be had, or a wheel is for none of them."""
    if not asked:
        found: dict[str, list[Path]] = {}
        for wheel in wheels:
            found.setdefault(python_for(wheel), []).append(wheel)
        return found
    answers = [pythons.ask(command) for command in asked]
    if reasons := [answer for answer in answers if isinstance(answer, str)]:
        raise ValueError("; ".join(reasons))
    tags = {answer.tag for answer in answers}
    if others := [wheel.name for wheel in wheels if NAME.fullmatch(wheel.name)["tag"] not in tags]:
        raise ValueError(f"--python: {', '.join(asked)} cannot install {', '.join(others)}")
    shared = {answer.command: [w for w in wheels if f"-{answer.tag}-" in w.name] for answer in answers}
    return {command: its for command, its in shared.items() if its}


class Failed(Exception):
    """A step that did not do what it should: its name, and what it said."""


class Place:
    """A folder with an environment, in which nothing else of this machine is found."""

    def __init__(self, folder: Path):
        self.folder, self.venv = folder, folder / "venv"
        self.python = self.venv / "bin" / "python"
        folder.mkdir()
        mine = ("PYTHON", "FASTRNN", "VIRTUAL_ENV")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
        self.environment["PATH"] = without_compilers(folder / "bin")

    def step(self, what: str, *command) -> str:
        print(f"   {what}", flush=True)
        ran = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if ran.returncode:
            tail = "\n".join(ran.stdout.splitlines()[-15:])
            raise Failed(what, f"exit status {ran.returncode}: {tail}")
        return ran.stdout


def with_torch(folder: Path, torch: str, python: str) -> Place:
    """A fresh environment of a CPython with a torch, and nothing of fastrnn."""
    if isinstance(found := pythons.ask(python), str):
        raise Failed("environment", found)
    place = Place(folder)
    place.step("environment", found.executable, "-m", "venv", place.venv)
    more = ["--extra-index-url", INDEX] if INDEX else []
    place.step("torch", place.python, "-m", "pip", "install", "-q", *more, f"torch=={torch}", "numpy")
    return place


def try_wheel(wheel: Path, bare: Place, folder: Path, done: dict, shown: bool = True) -> None:
    """Writes down what a wheel does in a copy of an environment. ``shown``: with the times."""
    place = Place(folder)
    # The copy's files are the environment's own: gigabytes that nothing writes to.
    shutil.copytree(bare.venv, place.venv, symlinks=True, copy_function=os.link)
    install = ["-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:"]
    place.step("install", place.python, *install, wheel)
    use(place, [place.python], done, shown=shown)


def try_by(wheel: Path, command: str, folder: Path, done: dict) -> None:
    """Writes down what a wheel does when it is unpacked for a Python that a command starts."""
    place = Place(folder)
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    paths = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    place.environment |= {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done["run_by"] = Path(shlex.split(command)[0]).name
    use(place, shlex.split(command), done, timed=False)


def use(place: Place, inside: Sequence, done: dict, timed: bool = True, shown: bool = True) -> None:
    """Writes down what fastrnn does in a place, where ``inside`` starts Python."""
    step = place.step
    info = json.loads(step("info", *inside, "-m", "fastrnn", "info", "--json"))
    done |= {"python": info["versions"]["python"], "torch": info["versions"]["torch"]}
    done |= {"isa": info["machine"]["isa"], "threads": info["threads"]["kernels"]}
    done["cuda"] = "loaded" if info["cuda"]["kernels_loaded"] else info["cuda"]["why_not"]
    if not info["cpu"]["kernels_loaded"]:
        raise Failed("info", info["cpu"]["why_not"])
    command = (*inside, "-m", "fastrnn")
    done["verify --quick"] = step("verify --quick", *command, "verify", "--quick").splitlines()[-1]
    if timed:
        times = place.folder / "bench.json"
        step("bench --quick", *command, "bench", "--quick", "--json", times)
        found = {
            f"{case['cell']} {'training' if case['training'] else 'inference'}": round(ratio, 2)
            for case, ratio in ((o["case"], o["ratio"]) for o in json.loads(times.read_text())["outcomes"])
        }
        done["bench --quick"] = found if shown else BUSY
    done["training"] = step("training", *inside, "-c", TRAINING).strip().splitlines()[-1]


def try_all(
    wheels: Sequence[Path], torch: str, python: str, run_by: str = "", shown: bool = True
) -> list[dict]:
    """What became of wheels with a torch and a Python, or run by a command that has both, one by one: what
    fails stops none of the others."""
    outcomes, bare = [], None
    with tempfile.TemporaryDirectory(prefix="fastrnn-wheel-") as name:
        try:
            bare = None if run_by else with_torch(Path(name, "bare"), torch, python)
        except Failed as failed:
            refused = failed
        for number, wheel in enumerate(wheels):
            start = time.monotonic()
            outcome = {"wheel": wheel.name, "kind": kind_of(wheel), "asked_torch": torch}
            folder = Path(name, str(number))
            try:
                if run_by:
                    try_by(wheel.resolve(), run_by, folder, outcome)
                elif bare is None:
                    raise refused
                else:
                    try_wheel(wheel.resolve(), bare, folder, outcome, shown)
                outcome["ok"] = True
            except Failed as failed:
                outcome |= {"ok": False, "failed": failed.args[0], failed.args[0]: failed.args[1]}
            outcomes.append(outcome | {"seconds": round(time.monotonic() - start)})
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def save(wheels: Sequence[Path], outcomes: Sequence[dict]) -> None:
    """Write what became of these wheels, all of one version, down; what is there of others of that version
    stays."""
    ours, *more = {wheel.name.split("-")[1] for wheel in wheels}
    if more:
        raise ValueError(f"expected wheels of one version, got {', '.join(sorted([ours, *more]))}")
    earlier = json.loads(RESULT.read_text())["wheels"] if RESULT.exists() else {}
    found = {key: one for key, one in earlier.items() if Path(key).name.split("-")[1] == ours}
    for wheel in wheels:
        content = wheel.read_bytes()
        found[f"{kind_of(wheel)}/{wheel.name}"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "date": date.today().isoformat(),
            "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
            "outcomes": [o for o in outcomes if (o["kind"], o["wheel"]) == (kind_of(wheel), wheel.name)],
        }
    document = {"command": "make test-wheels ARGS=--save", "wheels": dict(sorted(found.items()))}
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL")
    once = f"once for each (default: {OLDEST} and {NEWEST})"
    parser.add_argument("--torch", action="append", default=[], metavar="VERSION", help=once)
    own = "once for each (default: each wheel's own)"
    parser.add_argument("--python", action="append", default=[], metavar="COMMAND", help=own)
    parser.add_argument("--run-by", default="", metavar="COMMAND", help="for wheels for another machine")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/wheels.json")
    parser.add_argument("--no-times", action="store_true", help="the machine is at work for others")
    options = parser.parse_intermixed_args()  # wheels before an option and after it
    if options.run_by and not options.wheels:
        parser.error("--run-by: expected the wheels that it runs, got none")
    if wrong := [torch for torch in options.torch if not re.fullmatch(r"\d+\.\d+\.\d+\S*", torch)]:
        parser.error(f"--torch: expected a version such as {NEWEST}, got {', '.join(wrong)}")
    wheels, others = (options.wheels, []) if options.wheels else here()
    for wheel in others:
        print(f"left out: {kind_of(wheel)}/{wheel.name}, which is not of version {version()}", flush=True)
    if reasons := [why for wheel in wheels if (why := unfit(wheel, options.run_by))]:
        parser.error("\n".join(reasons))
    if not wheels:
        raise SystemExit(f"no wheel of version {version()} under dist/: `make wheels` makes them")
    if options.save and any(NAME.fullmatch(wheel.name)["version"] != version() for wheel in wheels):
        parser.error(f"--save: {RESULT.name} is about the wheels of version {version()}")
    by_python: dict[str, list[Path]] = {}
    if not options.run_by:
        try:
            by_python = shared_out(wheels, options.python)
        except ValueError as error:
            parser.error(str(error))
    outcomes = try_all(wheels, "its own", "", options.run_by) if options.run_by else []
    for python, its in by_python.items():
        for torch in options.torch or [OLDEST, NEWEST]:
            listed = ", ".join(f"{kind_of(wheel)}/{wheel.name}" for wheel in its)
            print(f"torch {torch}, {python}: {listed}", flush=True)
            outcomes += try_all(its, torch, python, shown=not options.no_times)
    for found in outcomes:
        where = f"{found['kind']:8} torch {found.get('torch', found['asked_torch'])}, "
        where += f"Python {found.get('python', 'of the environment')}"
        said = f"ok, {found['verify --quick']}" if found["ok"] else f"FAILED at {found['failed']}"
        print(f"{where}: {said}")
        if not found["ok"]:
            print(found.get(found["failed"], ""))
    if options.save:
        save(wheels, outcomes)
        print(f"written: {RESULT.relative_to(ROOT)}")
    print(f"{sum(o['ok'] for o in outcomes)} passed, {sum(not o['ok'] for o in outcomes)} failed")
    return 0 if all(o["ok"] for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
