"""Builds what a machine with a Hopper GPU needs to run check.py at once: `make gpu-pack`, without a GPU.

    python tests/gpu/pack.py [--python 3.12] [--headers FOLDER] [--out gpu-pack]

The folder gpu-pack gets
    fastrnn/       libfastrnn_cpu.so and libfastrnn_cuda.so, which know no Python, for sm_90a alone, and _C
                   for the other machine's Python
    latency        latency.cu as a program
    pack.json      the commit, of which sources and for what it was built

Take it along with the checkout; check.py puts the binaries beside the package, and refuses them where the
sources are not those that they were built from. The Python's headers are those of this interpreter where it
has that version, else of a python3.12 on the PATH or of pyenv's, or of --headers. Only what changed is
compiled again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = ROOT / "gpu-pack"
ARCH = "9.0a"
#: What runs or is compiled: of every other file it does not matter whether it has changed.
SOURCES = {
    "csrc": ("*",),
    "fastrnn": ("*.py", "*.json"),
    "tests": ("*.py", "*.cu"),
    "benchmarks": ("*.py",),
}
CXX_FLAGS = ["-O2", "-std=c++20", "-fPIC", "-shared", "-fvisibility=hidden", "-g0", "-ffp-contract=fast"]


def sources_digest(root: Path = ROOT) -> str:
    """Of every source, without its place on this machine."""
    digest = hashlib.sha256((root / "setup.py").read_bytes())
    for folder, patterns in SOURCES.items():
        files = {p for pattern in patterns for p in (root / folder).rglob(pattern)}
        for path in sorted(p for p in files if p.is_file() and "__pycache__" not in p.parts):
            digest.update(f"\0{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def find_tool(name: str) -> str | None:
    """nvcc or compute-sanitizer: on the PATH, in CUDA_HOME, in torch's pip wheels, in the system's CUDA."""
    wheels = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*"))
    folders = [os.environ.get("CUDA_HOME"), *wheels, "/usr/local/cuda"]
    found = [shutil.which(name), *(shutil.which(str(Path(f, "bin", name))) for f in folders if f)]
    return next(filter(None, found), None)


def latency_command(nvcc: str, arch: str, program: Path) -> list[str]:
    """The compilation of latency.cu for "9.0a"."""
    target = arch.replace(".", "")
    flags = [f"-gencode=arch=compute_{target},code=sm_{target}", "-O3", "-std=c++20", f"-I{ROOT / 'csrc'}"]
    return [nvcc, *flags, str(ROOT / "tests" / "gpu" / "latency.cu"), "-o", str(program)]


def interpreters(version: str) -> Iterator[str]:
    """Those of this machine that may have that version, this one first."""
    yield sys.executable
    if found := shutil.which(f"python{version}"):
        yield found
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(home.glob(f"versions/{version}.*/bin/python{version}")))


def find_headers(version: str) -> Path | None:
    """The folder with Python.h of that version; None where there is none."""
    ask = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2], sysconfig.get_path('include'))"
    for interpreter in interpreters(version):
        done = subprocess.run([interpreter, "-c", ask], capture_output=True, text=True)
        found, _, folder = done.stdout.strip().partition(" ")
        if done.returncode == 0 and found == version and Path(folder, "Python.h").exists():
            return Path(folder)
    return None


def module_name(version: str) -> str:
    return f"_C.cpython-{version.replace('.', '')}-x86_64-linux-gnu.so"


def build_module(version: str, headers: Path, facts: dict[str, str], target: Path) -> None:
    """fastrnn._C for that Python. facts: its build_info(), which another build of the same sources has."""
    import pybind11
    from torch.utils.cpp_extension import include_paths

    macros = {
        "FASTRNN_VERSION": facts["version"],
        "FASTRNN_CUDA_ARCHS": facts["cuda_archs"],
        "FASTRNN_CUDA_COMPILER": facts["cuda_compiler"],
        "FASTRNN_TORCH_BUILD": facts["torch"],
    }
    sources = [*sorted((ROOT / "csrc").glob("python*.cpp")), *sorted((ROOT / "csrc" / "plan").glob("*.cpp"))]
    include = [headers, pybind11.get_include(), ROOT / "csrc", *include_paths()]
    subprocess.run(
        [
            *shlex.split(os.environ.get("CXX") or "g++"),
            *CXX_FLAGS,
            *(f"-I{folder}" for folder in include),
            *(f'-D{name}="{value}"' for name, value in macros.items()),
            *map(str, sources),
            *("-o", str(target)),
        ],
        check=True,
    )


def build_libraries(folder: Path) -> Path:
    """The three binaries by setup.py, in folders of their own; returns where they are."""
    built = folder / "lib"
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build",
        "--build-base",
        str(folder),
        "--build-lib",
        str(built),
    ]
    subprocess.run(
        command, cwd=ROOT, check=True, env=os.environ | {"FASTRNN_CUDA": "1", "FASTRNN_CUDA_ARCHS": ARCH}
    )
    return built / "fastrnn"


def commit() -> str | None:
    """As fastrnn.proof.machine says it; asked of git alone, for this checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") if head else None


def describe(out: Path, version: str, facts: dict[str, str], sources: str) -> dict:
    """pack.json. sources: the digest of what was compiled."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "pack.json")
    return {
        "commit": commit(),
        "sources": sources,
        "python": version,
        "built": facts,
        "files": {p.relative_to(out).as_posix(): p.stat().st_size for p in files},
    }


class Stale(Exception):
    """A pack that is not of this checkout, or not for this Python."""


def load(pack: Path, root: Path = ROOT, version: str | None = None) -> dict:
    """pack.json of a folder.

    Raises:
        Stale: it is not whole, of other sources, or for another Python than `version` (by default this one).
    """
    try:
        found = json.loads((pack / "pack.json").read_text())
        absent = [name for name, size in found["files"].items() if (pack / name).stat().st_size != size]
    except (OSError, ValueError, KeyError) as error:
        raise Stale(f"{pack}: not a whole pack ({error}): run make gpu-pack again") from None
    if absent:
        raise Stale(f"{pack}: {absent[0]} has another size than pack.json says: run make gpu-pack again")
    version = version or "{}.{}".format(*sys.version_info[:2])
    if found["python"] != version:
        raise Stale(f"{pack}: built for Python {found['python']}, and this is {version}")
    if found["sources"] != (here := sources_digest(root)):
        raise Stale(
            f"{pack}: built from the sources {found['sources']}, these are {here}: run make gpu-pack again"
        )
    return found


def install(pack: Path, root: Path = ROOT) -> None:
    """Put the binaries beside the package."""
    for source in sorted((pack / "fastrnn").iterdir()):
        target = root / "fastrnn" / source.name
        # Not into the file that is there: a process may have it loaded.
        shutil.copyfile(source, target.with_suffix(".part"))
        os.replace(target.with_suffix(".part"), target)
    with contextlib.suppress(OSError):  # whoever copied it may have lost that it is a program
        (pack / "latency").chmod(0o755)


def make(out: Path, version: str, headers: Path | None) -> dict:
    headers = headers or find_headers(version)
    if headers is None or not (headers / "Python.h").exists():
        raise SystemExit(f"gpu-pack: no headers of Python {version}: install them, or name --headers FOLDER")
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise SystemExit("gpu-pack: no nvcc: pip install -r requirements/cuda.txt, or set CUDA_HOME")
    work, sources = ROOT / "build" / "gpu", sources_digest()
    built = build_libraries(work)
    # By itself: the package beside it may be of another build.
    own = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    ask = (
        f"import json, sys; sys.path.insert(0, {str(built)!r}); import _C; print(json.dumps(_C.build_info()))"
    )
    facts = json.loads(
        subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    )
    shutil.rmtree(out, ignore_errors=True)
    (out / "fastrnn").mkdir(parents=True)
    for name in ("libfastrnn_cpu.so", "libfastrnn_cuda.so"):
        shutil.copy2(built / name, out / "fastrnn" / name)
    target = out / "fastrnn" / module_name(version)
    if own == module_name(version):
        shutil.copy2(built / own, target)
    else:
        build_module(version, headers, facts, target)
    subprocess.run(latency_command(nvcc, ARCH, out / "latency"), check=True)
    if sources_digest() != sources:
        raise SystemExit(
            "gpu-pack: the sources have changed while they were compiled: run make gpu-pack again"
        )
    found = describe(out, version, facts, sources)
    (out / "pack.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default="3.12", metavar="3.12", help="of the machine with the GPU")
    parser.add_argument("--headers", type=Path, help="the folder with its Python.h")
    parser.add_argument("--out", type=Path, default=PACK)
    options = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", options.python):
        parser.error(f"--python: expected a version such as 3.12, got {options.python!r}")
    found = make(options.out.resolve(), options.python, options.headers)
    size = sum(found["files"].values()) / 2**20
    print(f"{options.out}: {found['commit'] or 'no commit'}, sources {found['sources']}, {size:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
