"""What a measurement was taken on: processor, caches, libraries, commit.

Nothing here raises for what is odd about a machine: where something cannot be had, that is what is told.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

from .._plan import gpus
from .._plan.tuning import identity

#: Distributions that compile or export fastrnn's layers, or whose layers it stands in for.
PACKAGES = ("triton", "onnx", "onnxscript", "onnxruntime", "sru")

#: Load average above which somebody else is at work when a run begins.
BUSY = 0.7


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _apples() -> str:
    """What macOS calls the processor; "" elsewhere."""
    if platform.system() != "Darwin":
        return ""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def cpu_model() -> str:
    """The processor's name with its generation, which virtual machines leave out of the name. Linux has no
    name of an Arm processor, but the numbers that stand for one."""
    info = _read(Path("/proc/cpuinfo"))
    fields = dict(re.findall(r"^([\w ]+?)[ \t]*:[ \t]*(.*)$", info.split("\n\n")[0], re.MULTILINE))
    name = fields.get("model name") or _apples() or platform.processor() or platform.machine()
    if "CPU part" in fields:
        name += f" (implementer {fields.get('CPU implementer')}, part {fields['CPU part']})"
    if fields.get("vendor_id") == "AuthenticAMD":
        # Family and model tell the core: AMD's processor programming references.
        family, model = (_number(fields.get(name, "")) for name in ("cpu family", "model"))
        generation = {
            0x17: "Zen 2" if model >= 0x30 else "Zen",
            0x19: "Zen 4" if 0x10 <= model < 0x20 or 0x60 <= model < 0x80 or model >= 0xA0 else "Zen 3",
            0x1A: "Zen 5",
        }.get(family)
        if generation:
            name += f" ({generation})"
    return name


def caches() -> dict[str, str]:
    """Size of each cache level as the first core sees it: {"L1d": "32K", "L2": "1024K", "L3": "32768K"}."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level = _read(index / "type"), _read(index / "level")
        if kind != "Instruction" and level:
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = _read(index / "size")
    return found


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Processes that ran or waited in the last minute, on average; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # of another system; of one that does not know
        return None


def busy() -> float | None:
    """The load where somebody else seems to be at work, before anything is timed."""
    found = load()
    return found if found and found > BUSY else None


def commit() -> str | None:
    """Commit of the checkout that the package is imported from; "+" where files differ from it. A copy
    without git's metadata is told by FASTRNN_COMMIT."""
    if told := os.environ.get("FASTRNN_COMMIT"):
        return told
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside somebody else's repository: ask only about our own files.
    if not git("ls-files", "--error-unmatch", "__init__.py"):
        return None
    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def instruction_sets() -> tuple[str | None, list[str]]:
    """The instruction set that fastrnn's kernels chose, and all that can run here."""
    try:
        from .._ops import library
    except (ImportError, OSError):
        return None, []
    return library.cpu_isa(), list(library.available_cpu_isas())


def driver() -> str | None:
    """Version of NVIDIA's driver; None where there is none."""
    text = _read(Path("/proc/driver/nvidia/version"))
    match = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)", text)
    if match:
        return match.group(1)
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def _kernels_on(index: int) -> str:
    """ "run", or why fastrnn's CUDA kernels do not run on a device."""
    from .._ops import cuda, library
    from .._ops import devices as of_ops

    if not library.cuda_loaded:
        return library.cuda_why
    if of_ops.runs(torch.device("cuda", index)):
        return "run"
    return cuda.unusable.get(index) or f"built for {library.build_info()['cuda_archs']}"


def devices() -> list[dict]:
    """CUDA devices that torch sees; of one that CUDA cannot start, the index and what CUDA says ("error")."""
    found = []
    version = driver() if torch.cuda.is_available() else None
    for index in range(torch.cuda.device_count()):
        try:
            p = torch.cuda.get_device_properties(index)
            properties = gpus.find(device=f"cuda:{index}").properties()
        except (RuntimeError, AssertionError) as error:  # a CUDA call failed; there is no such device
            why = str(error).partition("\n")[0]
            found.append({"name": f"GPU {index}", "driver": version, "error": why})
            continue
        found.append(
            {
                "name": p.name,
                "capability": f"{p.major}.{p.minor}",
                "memory_bytes": p.total_memory,
                "multiprocessors": p.multi_processor_count,
                "driver": version,
                "properties": properties,
                "kernels": _kernels_on(index),
            }
        )
    return found


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for package in packages:
        # KeyError and None: what is left of a distribution that was removed in part.
        with contextlib.suppress(metadata.PackageNotFoundError, KeyError):
            found[package] = metadata.version(package) or "unknown"
    return found


def versions() -> dict[str, str]:
    """Versions of Python, fastrnn, torch with its libraries, and what else there is of PACKAGES."""
    from .._version import __version__

    found = {"python": platform.python_version(), "fastrnn": __version__, "torch": torch.__version__}
    config = torch.__config__.show()
    for name, pattern in (
        ("oneDNN", r"(?:MKL-DNN|oneDNN) v([\d.]+)"),
        ("MKL", r"Math Kernel Library Version (\S+)"),
    ):
        if match := re.search(pattern, config):
            found[name] = match.group(1)
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    if torch.backends.cudnn.is_available():
        found["cuDNN"] = identity.cudnn()
    return found | installed(PACKAGES)


def describe() -> dict:
    """Everything about the machine that a reader of a result needs."""
    isa, available = instruction_sets()
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "caches": caches(),
        "isa": isa,
        "available_isas": available,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "devices": devices(),
    }
