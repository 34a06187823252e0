"""Where the header, the library and its CMake package lie."""

from __future__ import annotations

from pathlib import Path

from .. import _checks

_PACKAGE = Path(__file__).resolve().parents[1]
_FILES = {"shared": "libfastrnn_stream.so", "static": "libfastrnn_stream.a"}


def get_include() -> str:
    """The folder of ``fastrnn.h``, for a compiler's ``-I``."""
    return str(_PACKAGE / "include")


def get_library(kind: str = "shared") -> str:
    """The path of ``libfastrnn_stream``.

    Args:
        kind: "shared" or "static". A program that links the static one links the C++ runtime, too.

    Raises:
        ValueError: another kind. FileNotFoundError: this installation was built without the library.
    """
    _checks.one_of("get_library", "kind", kind, tuple(_FILES))
    path = _PACKAGE / "lib" / _FILES[kind]
    if not path.exists():
        raise FileNotFoundError(
            f"get_library: expected {path}, which a build of the package makes (in a clone: make stream)"
        )
    return str(path)


def get_cmake_dir() -> str:
    """The folder of ``fastrnn-config.cmake``, for ``cmake -Dfastrnn_DIR=...``."""
    return str(_PACKAGE / "lib" / "cmake" / "fastrnn")
