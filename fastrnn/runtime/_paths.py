"""Where the header, the library and its CMake package lie."""

from __future__ import annotations

from pathlib import Path

from .. import _checks

_PACKAGE = Path(__file__).resolve().parents[1]
_FILES = {"shared": "libfastrnn_stream.so", "static": "libfastrnn_stream.a"}


def get_include() -> str:
    """The folder of ``fastrnn.h``, for a compiler's ``-I``.

    Raises:
        FileNotFoundError: this installation is in an archive, or not whole.
    """
    return _there("get_include", _PACKAGE / "include", "every installation has")


def get_library(kind: str = "shared") -> str:
    """The path of ``libfastrnn_stream``.

    Args:
        kind: "shared" or "static". A program that links the static one links the C++ runtime, too.

    Raises:
        ValueError: another kind. FileNotFoundError: this installation was built without the library.
    """
    _checks.one_of("get_library", "kind", kind, tuple(_FILES))
    made = "a build of the package makes (in a clone: make stream)"
    return _there("get_library", _PACKAGE / "lib" / _FILES[kind], made)


def get_cmake_dir() -> str:
    """The folder of ``fastrnn-config.cmake``, for ``cmake -Dfastrnn_DIR=...``.

    Raises:
        FileNotFoundError: this installation is in an archive, or not whole.
    """
    return _there("get_cmake_dir", _PACKAGE / "lib" / "cmake" / "fastrnn", "every installation has")


def _there(asked: str, path: Path, who: str) -> str:
    if path.exists():
        return str(path)
    if not _PACKAGE.is_dir():
        who = "no archive can give to a compiler: `pip install` unpacks it"
    raise FileNotFoundError(f"{asked}: expected {path}, which {who}")
