"""Every CUDA kernel once at small odd sizes, for compute-sanitizer: each tier, cell, type and way of saving.

    PYTHONPATH=.:tests PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer \
        --kernel-name kernel_substring=fastrnn python tests/gpu/small_cases.py [--only TIER] [--list]

TIER may be "scan", the SRU's kernels; --but TIER leaves one out. --limit S begins no case after S seconds;
the
first cases are as different as can be. The results are compared with the reference too. Prints what failed
and "N passed, M failed".

memcheck of cluster and grid is part of check.py's call 2. `--tool racecheck` and `--tool synccheck` take the
time of a call of their own: --but cluster, then --only cluster, whose order is kept by the bytes that peers
push, of which racecheck may know nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import layer_cases
import lines
import sru_cases
import torch
from layer_cases import CELLS, LENGTHS, PACKED, Case

from fastrnn import _C, _checks
from fastrnn._plan import gpus

TYPES = ((torch.float64, False), (torch.float32, False), (torch.float32, True), (torch.bfloat16, False))
TYPES += ((torch.float16, False),)


def takes(case: Case, gpu: gpus.Gpu) -> bool:
    """Whether the case's tier can run both of its passes on this GPU."""
    T, B = (len(case.sizes), case.sizes[0]) if case.sizes else (case.T, case.B)
    plan = _C.plan(
        device="cuda",
        cell=case.cell,
        **{"T": T, "B": B, "I": case.IN, "H": case.H, "P": case.P, "directions": case.D},
        dtype=str(case.dtype).removeprefix("torch."),
        training=True,
        gpu=gpu.properties(),
        tf32=case.tf32,
        tier=case.tier,
    )
    return plan["possible"] and plan["backward"]["possible"]


def cases(gpu: gpus.Gpu) -> list[Case]:
    """Both directions, packed and masked rows in turn; projections; what the GPU's tiers can take of it."""
    found = []
    for tier in ("stepwise", "stepwise_graph", "one_cta", "cluster", "grid"):
        for i, cell in enumerate(CELLS):
            for k, (dtype, tf32) in enumerate(TYPES):
                plain = Case(cell, T=4, B=9, IN=5, H=21, dtype=dtype, tf32=tf32, tier=tier)
                found.append(replace(plain, D=2, save="recompute" if (i + k) % 2 else "gates"))
                found.append(
                    replace(plain, D=1 + (i + k) % 2, sizes=PACKED, bias=cell == "rnn_relu" or k != 2)
                )
                masks = {"lengths": LENGTHS, "reset": "some"}
                found.append(
                    replace(plain, D=2 - k % 2, save="gates" if (i + k) % 2 else "recompute", **masks)
                )
            found.append(Case(cell, T=3, B=20, IN=5, H=100, dtype=torch.bfloat16, tier=tier))
    found += [Case("lstm", P=3, D=D, sizes=PACKED, dtype=dtype) for D in (1, 2) for dtype, _ in TYPES[1:4]]
    return [case for case in found if takes(case, gpu)]


def scans() -> list[sru_cases.Case]:
    """Those of the tests, with tensors of whole words.

    The scan copies the aligned 4 bytes that hold a value, so up to 3 bytes beyond a tensor of odd size. They
    belong to its allocation, as CUDA's end at a multiple of 256; memcheck knows the size that was asked for.
    """
    return [
        replace(case, L=case.L // 4 * 4)
        if case.sizes is None and case.L > 4
        else replace(case, O=case.O + case.O % 2)
        for case in sru_cases.grid()
    ]


def spread(chosen: Sequence) -> list:
    """The same, so that any beginning of it has something of everything: cases beside each other are
    alike."""
    step = max(1, round(len(chosen) * 0.618))
    while math.gcd(step, max(1, len(chosen))) != 1:
        step += 1
    return [chosen[n * step % len(chosen)] for n in range(len(chosen))]


def run(ops, chosen: Sequence, move, deadline: float = math.inf) -> tuple[int, int, int]:
    """How many passed, failed and were not run. chosen: (module of the case, case)."""
    failures = done = 0
    for kind, case in chosen:
        if time.monotonic() > deadline:
            break
        lines.write("outcome", name=str(case), outcome="running")
        p = kind.problem(case)
        got = kind.fused(ops, case, p.map(move))
        ratio, what = kind.worst(case, got, kind.expected(case, p))
        good = ratio <= 1
        lines.write("outcome", name=str(case), outcome="ok" if good else f"wrong: {what}")
        if not good:
            print(f"FAILED {case}: {what}", flush=True)
        failures += not good
        done += 1
    return done - failures, failures, len(chosen) - done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("--only", "--but"):
        parser.add_argument(name, metavar="TIER", choices=(*_checks.TIERS, "scan"))
    parser.add_argument("--list", action="store_true", help="print the cases, run nothing")
    parser.add_argument("--limit", type=float, default=math.inf, metavar="S")
    options = parser.parse_args()
    deadline = time.monotonic() + options.limit
    chosen = [(layer_cases, case, case.tier) for case in cases(gpus.find())]
    chosen += [(sru_cases, case, "scan") for case in scans()]
    chosen = spread(
        [(kind, c) for kind, c, tier in chosen if tier != options.but and tier == (options.only or tier)]
    )
    if options.list:
        print("\n".join(str(case) for _, case in chosen))
        return 0
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        passed, failed, left = run(torch.ops.fastrnn, chosen, lambda t: t.cuda(), deadline)
    torch.cuda.synchronize()
    if left:
        print(f"{left} were not run: out of time")
    print(f"{passed} passed, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
