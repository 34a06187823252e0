"""Models in programs without Python: what ``libfastrnn_stream`` runs, and where that library lies.

``save`` writes a module to a file; a C or C++ program loads it with ``fastrnn.h``, a step or a block of steps
at a time. docs/runtime.md starts from a trained module and ends in such a program.
"""

from ._file import FORMAT_VERSION, save
from ._paths import get_cmake_dir, get_include, get_library

__all__ = ["FORMAT_VERSION", "get_cmake_dir", "get_include", "get_library", "save"]
