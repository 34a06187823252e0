"""The CPythons of this machine: for whom a wheel can be made, and who tries it.

The module in a wheel is for one CPython, the libraries beside it know none. So one environment with torch
makes the wheels for all: of the others it takes the headers, and they need no torch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

#: Those for which wheels are handed out.
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

_ASK = """
import json, sys, sysconfig
print(json.dumps([
    sys.implementation.name, "%d.%d" % sys.version_info[:2], sysconfig.get_path("include"),
    sysconfig.get_config_var("EXT_SUFFIX"), bool(sysconfig.get_config_var("Py_GIL_DISABLED")), sys.executable,
]))
"""


class Python(NamedTuple):
    """A CPython's command, its version ("3.11"), the folder of its Python.h, how its modules' names end, and
    the file that runs: a version manager's command is a script, which needs more than that file does."""

    command: str
    version: str
    include: str
    suffix: str
    executable: str

    @property
    def tag(self) -> str:
        """As the names of wheels have it: cp311."""
        return "cp" + self.version.replace(".", "")

    @property
    def without_headers(self) -> str:
        """Why no wheel can be made for it, "" where one can."""
        there = Path(self.include, "Python.h").exists()
        return "" if there else f"{self.command} has no Python.h in {self.include}"


def ask(command: str) -> Python | str:
    """The CPython that a command starts, or why there is none."""
    found = shutil.which(command)
    if found is None:
        return f"{command} is not installed"
    done = subprocess.run([found, "-c", _ASK], capture_output=True, text=True)
    if done.returncode:  # of a version manager's, for a version that it has not chosen
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return f"{command} does not run: {said[0]}"
    name, version, include, suffix, free_threaded, executable = json.loads(done.stdout)
    if name != "cpython" or free_threaded:
        return f"{command} is {'a free-threaded CPython' if free_threaded else name}, expected CPython"
    return Python(command, version, include, suffix, executable)


def here() -> Python:
    """The one that runs this."""
    found = ask(sys.executable)
    if isinstance(found, str):
        raise SystemExit(found)
    return found


def of(version: str) -> Python | str:
    """The CPython of a version: the one that runs this if it is that, else python3.x; or why not."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    return ask(sys.executable if version == mine else f"python{version}")
