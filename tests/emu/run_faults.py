"""Runs a module's check_cases() on a library with planted faults, once with each.

    python -m emu.run_faults LIBRARY MODULE FAULT...        (in tests/; by numbers, 0 is the source as it is)

MODULE has check_cases() and worst_of(ops, case): emu.layer_checks, emu.stages_fault_checks,
emu.persistent_checks or emu.sru_checks.

Each run is a process of its own and prints one JSON line: the worst error in units of its tolerance and what
it was, or the exception that ended the run.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

import torch

from .build import NAMESPACE

FOUND = 10  # units of its tolerance beyond which a result shows a fault: no more cases are run
RESIDENT = 64  # blocks of a launch that run at once: the race check sees no further


def run(library: str, fault: int, module) -> dict:
    torch.ops.load_library(library)
    ops = getattr(torch.ops, NAMESPACE)
    found = (0.0, "")
    for seed, case in enumerate(module.check_cases()):
        ops.configure(seed, RESIDENT, fault)
        try:
            ratio, what = module.worst_of(ops, case)
        except (RuntimeError, AssertionError) as raised:
            return {"error": str(raised), "case": str(case)}
        if not ratio <= found[0]:
            found = (ratio, f"{case}: {what}")
            if not ratio <= FOUND:  # nor NaN
                break
    return {"worst": found[0], "what": found[1]}


def main() -> None:
    torch.set_num_threads(1)  # a fork takes no other thread along
    library, module = sys.argv[1], import_module(sys.argv[2])
    for fault in map(int, sys.argv[3:]):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, json.dumps(run(library, fault, module)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            line = pipe.read()
        _, status = os.wait()
        print(line or json.dumps({"error": f"ended with status {status}"}), flush=True)


if __name__ == "__main__":
    main()
