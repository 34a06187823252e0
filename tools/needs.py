"""What a build needs of the machine and pip does not bring: a C++ compiler, Python's headers.

    python tools/needs.py    says what is missing, exit status 1

setup.py asks before it compiles, make before it downloads: torch's own words come later and are about another
compiler.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

OLDEST_GCC = 11


def missing(environment: Mapping[str, str], headers: Sequence[str]) -> list[str]:
    """What is missing of a compiler, as CXX says or c++, and of Python.h in one of the folders, where there
    are any."""
    try:
        found = [compiler(shlex.split(environment.get("CXX", "")) or ["c++"])]
    except ValueError as error:  # a quote that does not close
        found = [f"CXX: {error}"]
    found = list(filter(None, found))
    if headers and not any(Path(folder, "Python.h").exists() for folder in headers):
        found.append(
            f"Python's headers: there is no Python.h in {headers[-1]} (python3-dev on Debian and Ubuntu, "
            "python3-devel on Fedora)"
        )
    return found


def compiler(command: list[str]) -> str:
    """What is wanted and what is wrong with a C++ compiler, "" where nothing."""
    wrong = fault(command)
    packages = "the package g++ on Debian and Ubuntu, gcc-c++ on Fedora"
    return wrong and f"g++ {OLDEST_GCC} or newer, or clang++ ({packages}): {wrong}"


def fault(command: list[str]) -> str:
    """What is wrong with a C++ compiler, "" where nothing."""
    probe = [*command, "-dM", "-E", "-x", "c++", os.devnull]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, errors="replace")
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"
    if done.returncode:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
        return f"{shlex.join(command)} does not compile: {said}"
    macros = dict(re.findall(r"^#define (\w+) (.*)$", done.stdout, re.MULTILINE))
    version = macros.get("__GNUC__", "")
    if "__clang__" not in macros and version.isdecimal() and int(version) < OLDEST_GCC:
        return f"{shlex.join(command)} is g++ {version}"
    return ""


def headers() -> list[str]:
    """Where this CPython's are, if it has any."""
    return [sysconfig.get_path(name) for name in ("platinclude", "include")]


def said(lacking: Sequence[str]) -> str:
    return "fastrnn cannot be built here; it needs\n" + "\n".join(f"  {one}" for one in lacking)


if __name__ == "__main__":
    if lacking := missing(os.environ, headers()):
        sys.exit(said(lacking))
