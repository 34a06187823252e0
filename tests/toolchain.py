"""The compilers that CXX, CC and AARCH64_CXX name: as for setup.py, commands of one word or more
(`ccache g++-11`)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from functools import cache


def cxx(otherwise: str = "g++") -> list[str]:
    return shlex.split(os.environ.get("CXX") or otherwise)


def cc(otherwise: str = "gcc") -> list[str]:
    return shlex.split(os.environ.get("CC") or otherwise)


def aarch64_cxx() -> list[str]:
    return shlex.split(os.environ.get("AARCH64_CXX") or "aarch64-linux-gnu-g++")


def is_installed(command: list[str]) -> bool:
    return shutil.which(command[0]) is not None


def is_clang(command: list[str]) -> bool:
    """By what it says of itself: of a `c++` the name does not tell."""
    return _is_clang(*command)


@cache
def _is_clang(*command: str) -> bool:
    return "clang" in subprocess.check_output([*command, "--version"], text=True)
