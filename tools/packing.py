"""What every wheel is made with, for whichever system: a torch to link with, setup.py, and the report at the
end. wheels.py and cross.py have the rest."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pythons

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
MIN_TORCH = "2.11.0"


def version(root: Path = ROOT) -> str:
    """The version, from the one place that has it."""
    return re.search(r'__version__ = "(.+?)"', (root / "fastrnn" / "_version.py").read_text()).group(1)


def run(*command, **environment: str) -> None:
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **environment})


def torch_for(machine: str, library: str, tag: str) -> Path:
    """A folder with torch's library for another machine, which is linked with and not run. Its wheel is taken
    from wherever pip finds it."""
    folder = BUILD / f"torch-{machine}"
    made = folder / library
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        python = pythons.here().tag.removeprefix("cp")  # any: the library knows none
        command += ["--python-version", python, "--implementation", "cp", "--platform", tag]
        # Aside, so that what is interrupted leaves no half of it under its name.
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            run(*command, "-d", aside, f"torch=={MIN_TORCH}")
            (wheel,) = Path(aside).glob("torch-*.whl")
            with zipfile.ZipFile(wheel) as file:
                Path(aside, library).write_bytes(file.read(f"torch/lib/{library}"))
            Path(aside, library).replace(made)
    return folder


def build(base: Path, to: Path, for_whom: Iterable[pythons.Python], **environment: str) -> Iterator[Path]:
    """A wheel in the folder ``to`` for each CPython. ``base`` is for one compiler and its flags: an object
    does not know what made it. The libraries, which know no Python, are compiled for the first CPython and
    packed again for the others.

    The environment is setup.py's; of a module for another system than this one it says how its name ends.
    """
    for stale in base.glob("lib*"):  # setuptools would pack what an earlier build had
        shutil.rmtree(stale)
    me = pythons.here()
    for number, python in enumerate(for_whom):
        for others in base.glob("lib*/fastrnn/_C.*"):
            others.unlink()
        own = {"FASTRNN_ONLY": "_C"} if number else {}
        if python.tag != me.tag:
            own["FASTRNN_PYTHON_INCLUDE"] = python.include
        own["SETUPTOOLS_EXT_SUFFIX"] = python.suffix
        raw = base / "raw"
        shutil.rmtree(raw, ignore_errors=True)
        run(
            *(sys.executable, "setup.py", "-q", "build", "--build-base", base),
            # As deep in the tree as a plain build's, whose objects a compiler cache then has.
            *("--build-temp", f"{base}-objects{f'-{python.tag}' if number else ''}"),
            *("bdist_wheel", "--skip-build", "--dist-dir", raw),  # which would build a second time
            **{**own, **environment},
        )
        (wheel,) = raw.glob("*.whl")
        if python.tag != me.tag:
            tags = ("--python-tag", python.tag, "--abi-tag", python.tag)
            run(sys.executable, "-m", "wheel", "tags", "--remove", *tags, wheel)
            (wheel,) = raw.glob("*.whl")
        to.mkdir(parents=True, exist_ok=True)
        for earlier in made_for(python.tag, to):
            earlier.unlink()
        yield Path(shutil.move(wheel, to))


def made_for(tag: str, folder: Path) -> list[Path]:
    """A folder's wheels for cp311."""
    return sorted(folder.glob(f"fastrnn-*-{tag}-{tag}-*.whl"))


class Made(NamedTuple):
    """What became of one wheel: the file, what is wrong with it, and what is said where nothing is."""

    wheel: Path
    faults: list[str]
    good: str


def arguments(description: str, what: str, known: Iterable[str]) -> argparse.ArgumentParser:
    """The command line of a program that makes wheels of some kinds: parse it with ``chosen``."""
    known = tuple(known)
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    listed = f"{', '.join(known)}; by default all that can be"
    parser.add_argument("kinds", nargs="*", metavar=what, help=listed)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="(default: dist)")
    parser.set_defaults(what=what, known=known)
    return parser


def chosen(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
    options = parser.parse_intermixed_args(words)  # kinds before an option and after it
    if wrong := set(options.kinds) - set(options.known):
        expected = f"expected some of {', '.join(options.known)}"
        parser.error(f"{options.what}: {expected}, got {', '.join(sorted(wrong))}")
    options.out = options.out.resolve()
    return options


def report(
    options: argparse.Namespace, why_not: Callable[[str], str], make: Callable[[str], Iterable[Made]]
) -> int:
    """Make what was asked for, or else all that can be made; then say of each kind what became of it, or why
    it was left out: as far as it came, whatever ends it. A command that fails ends its kind alone. The exit
    status: whether something is wrong, was asked for and left out, or nothing was made."""
    lines, failed, count = [], False, 0
    try:
        for kind in options.kinds or options.known:
            if reason := why_not(kind):
                lines.append(f"{kind:8} left out: {reason}")
                failed |= bool(options.kinds)
                continue
            start = time.monotonic()
            try:
                for wheel, faults, good in make(kind):
                    count, failed = count + 1, failed or bool(faults)
                    took, size = time.monotonic() - start, wheel.stat().st_size / 2**20
                    said = "; ".join(faults) or f"{good}, {size:.1f} MB, {took:.0f} s"
                    lines.append(f"{kind:8} {wheel.parent.name}/{wheel.name}: {said}")
                    start = time.monotonic()
            except subprocess.CalledProcessError as error:
                failed = True
                called = Path(error.cmd[0]).name
                lines.append(f"{kind:8} failed: exit status {error.returncode} of the last {called} above")
    finally:
        print("\n".join(lines), flush=True)
    return 1 if failed or not count else 0
