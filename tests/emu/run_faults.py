"""Runs a few cases on a library with planted faults: once as it is, then once with each of them.

    python -m emu.run_faults LIBRARY FAULTS [layer_cases | sru_cases]        (in tests/)

Each run is a process of its own and prints one JSON line: the worst error in units of its tolerance and what
it was, or the exception that ended the run.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from types import ModuleType

import layer_cases
import sru_cases
import torch
from layer_cases import PACKED, Case

from .build import NAMESPACE

RESIDENT = 64  # blocks of a launch that run at once: the race check sees no further


def check_cases() -> list[Case]:
    """Few, but between them every kernel and every branch."""
    cases = []
    for cell in ("lstm", "gru", "rnn_relu"):
        cases += [
            Case(cell, D=2, sizes=PACKED, save="recompute"),
            Case(cell, D=2),
            Case(cell, D=2, T=2, B=2, H=130, dtype=torch.float32, save="recompute"),
        ]
    return [*cases, Case("lstm", P=3, D=2, sizes=PACKED), replace(cases[0], dtype=torch.bfloat16)]


def sru_check_cases() -> list[sru_cases.Case]:
    """The same for the SRU's scan: more steps than are on their way at once, pairs and single values."""
    plain = sru_cases.Case(L=27, B=3, O=6, D=2, pad=True, drop=True, v=True)
    pairs = replace(plain, B=2, O=28, dtype=torch.bfloat16)
    packed = replace(plain, pad=False, sizes=(5, *[4] * 24, 2, 1))
    return [
        plain,
        replace(plain, dtype=torch.float32, skip="u", tanh=True),
        pairs,
        replace(pairs, skip="u", drop=False, v=False),
        replace(plain, D=1, O=7, B=2, dtype=torch.float16, skip="none"),
        packed,
        replace(packed, dtype=torch.bfloat16, O=10, skip="u"),
        sru_cases.Case(L=2, B=9, O=40, dtype=torch.float32),
    ]


CASES = {"layer_cases": (layer_cases, check_cases), "sru_cases": (sru_cases, sru_check_cases)}


def run(library: str, fault: int, module: ModuleType, cases: list) -> dict:
    torch.ops.load_library(library)
    ops = getattr(torch.ops, NAMESPACE)
    found = (0.0, "")
    for seed, case in enumerate(cases):
        ops.configure(seed, RESIDENT, fault)
        p = module.problem(case)
        try:
            got = module.fused(ops, case, p.map(ops.guarded))
            ratio, what = module.worst(case, got, module.expected(case, p))
        except (RuntimeError, AssertionError) as raised:
            return {"error": str(raised), "case": str(case)}
        if not ratio <= found[0]:
            found = (ratio, f"{case}: {what}")
    return {"worst": found[0], "what": found[1]}


def main() -> None:
    torch.set_num_threads(1)  # a fork takes no other thread along
    library, faults = sys.argv[1], int(sys.argv[2])
    module, cases = CASES[sys.argv[3] if len(sys.argv) > 3 else "layer_cases"]
    for fault in range(faults + 1):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, json.dumps(run(library, fault, module, cases())).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            line = pipe.read()
        _, status = os.wait()
        print(line or json.dumps({"error": f"ended with status {status}"}), flush=True)


if __name__ == "__main__":
    main()
