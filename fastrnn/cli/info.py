"""Show what a bug report needs: versions, instruction set, CUDA architectures, devices, threads, settings.

Exit status 0, whatever is missing on the machine. Paste the whole output into the report, or that of --json,
which is one object and is for scripts too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import torch

from . import console

#: Variables that decide what runs, beside fastrnn's own.
_SETTINGS = ("ATEN_CPU_CAPABILITY", "LD_PRELOAD", "LD_LIBRARY_PATH", "NVIDIA_TF32_OVERRIDE")
_PREFIXES = ("FASTRNN_", "OMP_", "MKL_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_", "CUDA_", "CUDNN_", "CUBLAS_")
_PREFIXES += ("TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "TORCHDYNAMO_")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def collect() -> dict:
    """Everything that `info` shows, as plain data."""
    from .._ops import library
    from ..proof import machine

    return {
        "versions": machine.versions(),
        "commit": machine.commit(),
        "build": library.build_info(),
        "machine": machine.describe(),
        "package": str(Path(library.__file__).parents[1]),
        "cpu": {"kernels_loaded": library.cpu_loaded, "why_not": library.cpu_why},
        "cuda": {
            "kernels_loaded": bool(library.cuda_loaded),
            "why_not": library.cuda_why,
            "torch_sees_gpu": torch.cuda.is_available(),
        },
        "threads": {
            "torch": torch.get_num_threads(),
            "kernels": library.cpu_threads(),
            "interop": torch.get_num_interop_threads(),
            "usable_cores": machine.usable_cores(),
        },
        "libc": " ".join(platform.libc_ver()).strip(),
        "settings": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in _SETTINGS or name.startswith(_PREFIXES)
        },
    }


def _text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


def _loaded(kernels: dict) -> str:
    return "yes" if kernels["kernels_loaded"] else f"no: {kernels['why_not']}"


def _rows(found: dict) -> list[tuple[str, str]]:
    machine, cuda, threads = found["machine"], found["cuda"], found["threads"]
    versions = dict(found["versions"])
    rows = [(name, versions.pop(name)) for name in ("fastrnn", "torch", "python")]
    rows += [("other libraries", _text(versions)), ("commit", _text(found["commit"]))]
    rows += [("package", found["package"])]
    rows += [
        (
            "CPU",
            f"{machine['cpu']}, {machine['architecture']}, {machine['system']}, {found['libc']}".rstrip(", "),
        ),
        ("caches", _text(machine["caches"])),
        (
            "threads",
            f"{threads['torch']} (torch.get_num_threads), of which the kernels use {threads['kernels']}; "
            f"{threads['usable_cores']} cores usable",
        ),
        ("CPU kernels loaded", _loaded(found["cpu"])),
        ("instruction set", f"{_text(machine['isa'])} (can run here: {_text(machine['available_isas'])})"),
        ("torch's instruction set", machine["torch_cpu_capability"]),
    ]
    build = dict(found["build"])
    rows += [
        ("CUDA architectures compiled", _text(build.pop("cuda_archs"))),
        ("CUDA kernels loaded", _loaded(cuda)),
        ("built with", _text({name.replace("_", " "): value for name, value in build.items()})),
    ]
    devices = [
        f"cannot be used: {d['error']}"
        if "error" in d
        else f"{d['name']}, capability {d['capability']}, {d['memory_bytes'] / 2**30:.0f} GiB, "
        f"{d['multiprocessors']} multiprocessors, driver {d['driver'] or 'of an unknown version'}, fastrnn's "
        f"kernels {d['kernels'] if d['kernels'] == 'run' else 'do not run: ' + d['kernels']}"
        for d in machine["devices"]
    ]
    return (
        rows
        + [(f"GPU {n}", text) for n, text in enumerate(devices)]
        + ([] if devices else [("GPU", "none seen")])
        + [("settings", _text(found["settings"]) or "none")]
    )


def run(options: argparse.Namespace) -> int:
    found = collect()
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        console.pairs(_rows(found), "fastrnn")
        print(
            "A bug report needs all of the above: paste it, or the output of `python -m fastrnn info --json`."
        )
    return 0
