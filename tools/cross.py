"""Compiles fastrnn for macOS and Windows on this machine, and looks at what came out: `make cross`.

    python tools/cross.py [macos] [windows] [--out dist]

macos     arm64, from macOS 11 on
windows   x86-64

The compiler is the ziglang package's (requirements/cross.txt): clang with those systems' headers and C
libraries, and a C++ library that goes into what it links. torch's wheel for the system is taken from wherever
pip finds it, to be linked with. What lies in dist/macos and dist/windows is a wheel for the CPython that runs
this, with the CPU's kernels. **Nothing of it has been run**: what is looked at are the tables of the files:
the processor, whom they need and for what, and what they have for others.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import objects
import pythons
from packing import BUILD, Made, arguments, build, chosen, report, run, torch_for

VERSION = f"{sys.version_info.major}{sys.version_info.minor}"


class System(NamedTuple):
    """A system: its name to CPython's build, to zig and to pip; its processor to objects.py; how its modules
    and libraries end; torch's file to link with; and the libraries that every installation has."""

    platform: str
    target: str
    tag: str
    machine: str
    module: str
    library: str
    torch: str
    everywhere: tuple[str, ...]


SYSTEMS = {
    "macos": System(
        *("macosx-11.0-arm64", "aarch64-macos.11.0", "macosx_11_0_arm64", "arm64"),
        *(f".cpython-{VERSION}-darwin.so", ".so", "libtorch_cpu.dylib"),
        ("/usr/lib/libSystem.B.dylib",),
    ),
    "windows": System(
        *("win-amd64", "x86_64-windows-gnu", "win_amd64", "x86_64"),
        *(f".cp{VERSION}-win_amd64.pyd", ".dll", "torch_cpu.lib"),
        ("kernel32.dll", "ntdll.dll", "advapi32.dll", "api-ms-win-"),
    ),
}

#: What Python.h asks of Windows, in place of the header that this machine's CPython was configured with.
WINDOWS_CONFIG = """
#define Py_PYCONFIG_H
#define MS_WINDOWS
#define MS_WIN32
#define MS_WIN64
#define NT_THREADS 1
#define WITH_THREAD 1
#define WITH_DOC_STRINGS 1
#define Py_ENABLE_SHARED 1
#define HAVE_DECLSPEC_DLL
#define HAVE_STDDEF_H 1
#define HAVE_STDINT_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_WCHAR_H 1
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_FLOAT 4
#define SIZEOF_DOUBLE 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_WCHAR_T 2
#define SIZEOF_FPOS_T 8
#define SIZEOF_HKEY 8
#define SIZEOF_PID_T 4
#define ALIGNOF_SIZE_T 8
#define ALIGNOF_LONG 4
#define HAVE_PY_SSIZE_T 1
typedef long long Py_ssize_t;
#define PY_SSIZE_T_MAX 9223372036854775807LL
"""

#: As g++ to setup.py. What is meant for this machine's linker or CPU alone is left out. zig answers a
#: question (--version, -dumpversion) and leaves an empty a.o where it was asked.
COMPILER = """#!{python}
import subprocess, sys, tempfile
mine = {more!r}
asked = [a for a in sys.argv[1:] if a not in ("-pthread", "-fPIC", "-Wl,-O1", "-rdynamic")]
command = [sys.executable, "-m", "ziglang", "c++", "-target", {target!r}, *mine, *asked]
question = all(a.startswith("-") and a != "-" for a in asked)
with tempfile.TemporaryDirectory() as aside:
    status = subprocess.run(command, cwd=aside if question else None).returncode
sys.exit(status)
"""


def python_symbols() -> dict[str, bool]:
    """{name: whether it is a function} of what this CPython has for its modules."""
    places = [Path(sysconfig.get_config_var(name) or "") for name in ("LIBDIR", "LIBPL")]
    shared = [place / (sysconfig.get_config_var("INSTSONAME") or "") for place in places]
    for file in [path for path in shared if path.is_file()] + [Path(sys.executable).resolve()]:
        listed = subprocess.run(["nm", "-D", "--defined-only", file], capture_output=True, text=True).stdout
        rows = [line.split() for line in listed.splitlines()]
        found = {row[2].partition("@")[0]: row[1] == "T" for row in rows if len(row) == 3}
        if "PyObject_Call" in found:
            return {name: function for name, function in found.items() if name.startswith(("Py", "_Py"))}
    raise SystemExit("this CPython shows no symbols for its modules")


def import_library(folder: Path) -> Path:
    """What a linker for Windows is shown of python3x.dll, of which this machine has none."""
    names = [f"{name}{'' if function else ' DATA'}" for name, function in sorted(python_symbols().items())]
    listing, made = folder / f"python{VERSION}.def", folder / f"libpython{VERSION}.a"
    listing.write_text("\n".join([f"LIBRARY python{VERSION}.dll", "EXPORTS", *names]) + "\n")
    run(sys.executable, "-m", "ziglang", "dlltool", "-m", "i386:x86-64", "-d", listing, "-l", made)
    return made


def command(folder: Path, system: System, more: list[str]) -> Path:
    """A compiler for a system, as a command in a folder. ``more``: what it is told each time."""
    compiler = folder / "c++"
    compiler.write_text(COMPILER.format(python=sys.executable, target=system.target, more=more))
    compiler.chmod(0o755)
    return compiler


def why_not(_: str) -> str:
    """Why this machine cannot make a wheel, "" where it can."""
    here = importlib.util.find_spec("ziglang") is not None
    return "" if here else "the ziglang package is not installed: requirements/cross.txt names it"


def make(name: str, out: Path) -> Iterator[Made]:
    """The wheel for a system, judged."""
    system, folder = SYSTEMS[name], BUILD / f"cross-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    more, link = [], []
    if name == "windows":
        config = folder / "pyconfig-windows.h"
        config.write_text(WINDOWS_CONFIG)
        more = ["-include", str(config)]
        import_library(folder)
        link = [f"-L{folder}", f"-lpython{VERSION}"]
    else:
        link = ["-undefined", "dynamic_lookup"]  # Python's symbols are the interpreter's
    compiler = command(folder, system, more)
    environment = {
        "FASTRNN_CUDA": "0",
        "FASTRNN_LINK": shlex.join(link),
        "FASTRNN_TORCH_LIB": str(torch_for(name, system.torch, system.tag)),
        "CXX": str(compiler),
        "CC": str(compiler),
        "LDSHARED": f"{compiler} -shared",
        "LDCXXSHARED": f"{compiler} -shared",
        "CCACHE_DISABLE": "1",
        "_PYTHON_HOST_PLATFORM": system.platform,
    }
    me = pythons.here()._replace(suffix=system.module)
    for wheel in build(folder / "build", out / name, [me], **environment):
        yield Made(wheel, judge(name, wheel), "compiled, not run")


def judge(name: str, wheel: Path) -> list[str]:
    """What is wrong with a wheel for a system, as far as its files say."""
    system = SYSTEMS[name]
    module, library = f"fastrnn/_C{system.module}", f"fastrnn/libfastrnn_cpu{system.library}"
    faults = []
    if not wheel.name.endswith(f"-cp{VERSION}-cp{VERSION}-{system.tag}.whl"):
        faults.append(f"{wheel.name} is not named for cp{VERSION} and {system.tag}")
    with zipfile.ZipFile(wheel) as file:
        names = [n for n in file.namelist() if Path(n).suffix in (".so", ".dll", ".pyd", ".dylib")]
        faults += [f"{n} is not in it" for n in {module, library} - set(names)]
        faults += [f"{n} has no business in it" for n in set(names) - {module, library}]
        read = {}
        for n in {module, library} & set(names):
            path = BUILD / f"cross-{name}" / "seen" / Path(n).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read(n))
            read[n] = objects.read(path)
    for n, binary in read.items():
        print(f"{wheel.parent.name}/{n}: {objects.summary(binary)}")
        faults += [f"{n}: {fault}" for fault in judge_file(system, binary, n == module)]
    return faults


def judge_file(system: System, binary: objects.Binary, module: bool) -> list[str]:
    """Of a file: its processor, whom it needs, and for what. ``module``: Python's; the other is on torch."""
    windows = binary.format == "PE"
    faults = [] if binary.machine == system.machine else [f"for {binary.machine}, expected {system.machine}"]
    if not windows and not binary.signed:
        faults.append("not signed: macOS on arm64 loads no such file")
    if not windows and binary.oldest != "11.0":
        faults.append(f"from macOS {binary.oldest} on, expected 11.0")
    needed = [name for name in binary.imports if not name.lower().startswith(system.everywhere)]
    needed = [name for name in needed if name not in system.everywhere]
    of_torch = [name for name in needed if "torch_cpu" in name]
    of_python = [name for name in needed if name in ("", f"python{VERSION}.dll")]
    expected = of_python if module else of_torch
    faults += [f"needs {name or 'symbols of nobody'}" for name in needed if name not in expected]
    if not expected:
        faults.append(f"takes nothing of {'Python' if module else 'torch'}")
    for name in (
        symbol.removeprefix("" if windows else "_") for of in expected for symbol in binary.imports[of]
    ):
        if module and not hasattr(ctypes.pythonapi, name):
            faults.append(f"needs {name}, which this CPython has not")
        if not module and name.startswith(("?", "_Z", "__Z")):
            faults.append(f"needs {name} of torch, which is C++: not the stable ABI")
    start = "PyInit__C" if windows else "_PyInit__C"
    if module and start not in binary.exports:
        faults.append(f"has no {start}")
    return faults


def main() -> int:
    options = chosen(arguments(__doc__, "SYSTEM", SYSTEMS))
    return report(options, why_not, lambda name: make(name, options.out))


if __name__ == "__main__":
    sys.exit(main())
