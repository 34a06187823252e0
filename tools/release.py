"""Checks that a version can be released, and makes what is handed out: `make release`.

python tools/release.py check     the version, CHANGELOG.md's section of it, and whether this machine can make
                                  a wheel of every kind for every CPython
python tools/release.py sdist     dist/fastrnn-VERSION.tar.gz, built from itself in an empty folder and tested
python tools/release.py whole     whether dist/ has the archive and all of the wheels

--partial lets check and whole pass where wheels are missing; they name them all the same.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from datetime import date
from pathlib import Path

import pythons
import wheels
from packing import made_for, version

ROOT = Path(__file__).resolve().parents[1]
#: What is built from the archive is tested with these: kernels, layers, operators and the runtime. The
#: archive itself has none; they, and what they read, are laid beside what it unpacks to.
BESIDE = ("tests", "docs", "examples", "benchmarks", ".github")
TESTS = ("cells", "cpu", "modules", "ops", "reference", "stream")
TRIAL = """
import torch, fastrnn
from fastrnn._ops import library
assert library.cpu_loaded, library.cpu_why
torch.manual_seed(0)
ours = fastrnn.LSTM(8, 16, num_layers=2)
theirs = torch.nn.LSTM(8, 16, num_layers=2)
theirs.load_state_dict(ours.state_dict())
x = torch.randn(5, 3, 8)
torch.testing.assert_close(ours(x)[0], theirs(x)[0])
ours(x)[0].sum().backward()
theirs(x)[0].sum().backward()
for a, b in zip(ours.parameters(), theirs.parameters()):
    torch.testing.assert_close(a.grad, b.grad)
print(fastrnn.__file__, fastrnn.__version__)
"""


#: A heading of any depth that says so, with brackets or without, and what stands under it.
UNRELEASED = re.compile(r"^#+[ \t]*\[?unreleased\b.*\n((?:(?!^##? ).*\n?)*)", re.IGNORECASE | re.MULTILINE)


def faults(version: str, changelog: str, today: date | None = None) -> list[str]:
    """What is wrong with a changelog for the release of a version."""
    found = []
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        found.append(f"fastrnn/_version.py: expected a version such as 1.2.0 or 1.2.0rc1, got {version!r}")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    bodies = {section.partition("\n")[0].strip(): section.partition("\n")[2].strip() for section in sections}
    if any(body.strip() for body in UNRELEASED.findall(changelog)):
        found.append("CHANGELOG.md: what stands under Unreleased belongs into a section of the version")
    mine = [title for title in bodies if title.startswith(f"[{version}]")]
    if not mine:
        found.append(f"CHANGELOG.md: no section [{version}] - YYYY-MM-DD")
    elif not re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", mine[0]):
        found.append(f"CHANGELOG.md: expected [{version}] - YYYY-MM-DD, got {mine[0]}")
    elif len(mine) > 1 or sum(section.startswith(f"[{version}]") for section in sections) > 1:
        found.append(f"CHANGELOG.md: more than one section [{version}]")
    elif reason := not_a_day(mine[0][-10:], today or date.today()):
        found.append(f"CHANGELOG.md: {mine[0]}: {reason}")
    elif not bodies[mine[0]]:
        found.append(f"CHANGELOG.md: the section [{version}] is empty")
    return found


def not_a_day(text: str, today: date) -> str:
    """Why nothing was released on such a day, "" where something can have been."""
    try:
        return "that day is still to come" if date.fromisoformat(text) > today else ""
    except ValueError:
        return "there is no such day"


def not_there(version: str, dist: Path) -> list[str]:
    """What a release of a version has and a folder has not."""
    archive = f"fastrnn-{version}.tar.gz"
    found = [] if (dist / archive).is_file() else [archive]
    for kind in wheels.KINDS:
        for python in pythons.VERSIONS:
            tag = "cp" + python.replace(".", "")
            mine = [w for w in made_for(tag, dist / kind) if w.name.startswith(f"fastrnn-{version}-")]
            found += [] if mine else [f"{kind}: the wheel for CPython {python}"]
    return found


def run(*command, cwd: Path = ROOT, **environment: str) -> None:
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run(command, check=True, cwd=cwd, env={**os.environ, **environment})


def sdist() -> Path:
    """The source archive; it is unpacked, built and tested where nothing else of the repository is."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", FASTRNN_CUDA="0")
    archive = ROOT / "dist" / f"fastrnn-{version()}.tar.gz"
    with tempfile.TemporaryDirectory(prefix="fastrnn-sdist-") as there:
        with tarfile.open(archive) as file:
            file.extractall(there, filter="data")
        folder = Path(there) / f"fastrnn-{version()}"
        run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=folder, FASTRNN_CUDA="0")
        run(sys.executable, "-c", TRIAL, cwd=folder, PYTHONPATH=str(folder))
        for name in BESIDE:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        tests = [f"tests/{name}" for name in TESTS]
        run(*(sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"), *tests, cwd=folder)
    return archive


def main() -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("what", choices=("check", "sdist", "whole"))
    parser.add_argument(
        "--partial", action="store_true", help="content with the wheels that can be made here"
    )
    options = parser.parse_args()
    if options.what == "sdist":
        print(f"built from itself: {sdist().relative_to(ROOT)}")
        return 0
    found, lacking = [], []
    if options.what == "check":
        found = faults(version(), (ROOT / "CHANGELOG.md").read_text())
        print("\n".join(found) or f"version {version()}: CHANGELOG.md has it")
        lacking = wheels.missing()
    else:
        lacking = not_there(version(), ROOT / "dist")
    for what in lacking:
        print(f"not in this release: {what}")
    if lacking and not options.partial:
        print('it would not be whole; "--partial" (make release ARGS=--partial) is content with the rest')
    elif options.what == "whole":
        print(f"version {version()}: {'all but what is named' if lacking else 'everything'} is in dist/")
    return 1 if found or (lacking and not options.partial) else 0


if __name__ == "__main__":
    sys.exit(main())
