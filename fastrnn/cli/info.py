"""Show versions, the instruction set chosen, CUDA architectures compiled, devices and threads.

Exit status 0; the output of --json is one object for scripts and bug reports.
"""

from __future__ import annotations

import argparse
import json

import torch

from . import console


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
        "cuda": {
            "kernels_loaded": bool(library.cuda_loaded),
            "torch_sees_gpu": torch.cuda.is_available(),
        },
        "threads": {
            "torch": torch.get_num_threads(),
            "kernels": library.cpu_threads(),
            "interop": torch.get_num_interop_threads(),
            "usable_cores": machine.usable_cores(),
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


def _rows(found: dict) -> list[tuple[str, str]]:
    machine, cuda, threads = found["machine"], found["cuda"], found["threads"]
    versions = dict(found["versions"])
    rows = [(name, versions.pop(name)) for name in ("fastrnn", "torch", "python")]
    rows += [("other libraries", _text(versions)), ("commit", _text(found["commit"]))]
    rows += [
        ("CPU", f"{machine['cpu']}, {machine['architecture']}, {machine['system']}"),
        ("caches", _text(machine["caches"])),
        (
            "threads",
            f"{threads['torch']} (torch.get_num_threads), of which the kernels use {threads['kernels']}; "
            f"{threads['usable_cores']} cores usable",
        ),
        ("instruction set", f"{machine['isa']} (can run here: {_text(machine['available_isas'])})"),
        ("torch's instruction set", machine["torch_cpu_capability"]),
    ]
    build = dict(found["build"])
    rows += [
        ("CUDA architectures compiled", _text(build.pop("cuda_archs"))),
        ("CUDA kernels loaded", _text(cuda["kernels_loaded"])),
        ("built with", _text({name.replace("_", " "): value for name, value in build.items()})),
    ]
    devices = [
        f"{d['name']}, capability {d['capability']}, {d['memory_bytes'] / 2**30:.0f} GiB, "
        f"{d['multiprocessors']} multiprocessors"
        for d in machine["devices"]
    ]
    return (
        rows
        + [(f"GPU {n}", text) for n, text in enumerate(devices)]
        + ([] if devices else [("GPU", "none seen")])
    )


def run(options: argparse.Namespace) -> int:
    found = collect()
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        console.pairs(_rows(found), "fastrnn")
    return 0
