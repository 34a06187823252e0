"""Every CUDA kernel once at small odd sizes, for compute-sanitizer: each tier, cell, type and way of saving.

    PYTHONPATH=.:tests PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer \
        --kernel-name kernel_substring=fastrnn python tests/gpu/small_cases.py [--only TIER] [--list]

TIER may be "scan", the SRU's kernels; --but TIER leaves one out. The results are compared with the reference
too. Prints what failed and "N passed, M failed".
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import layer_cases
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
    for tier in ("stepwise", "one_cta", "cluster", "grid"):
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("--only", "--but"):
        parser.add_argument(name, metavar="TIER", choices=(*_checks.TIERS, "scan"))
    parser.add_argument("--list", action="store_true", help="print the cases, run nothing")
    options = parser.parse_args()
    chosen = [(layer_cases, case, case.tier) for case in cases(gpus.find())]
    chosen += [(sru_cases, case, "scan") for case in scans()]
    chosen = [
        (kind, case) for kind, case, tier in chosen if tier != options.but and tier == (options.only or tier)
    ]
    if options.list:
        print("\n".join(str(case) for _, case in chosen))
        return 0
    failures = 0
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for kind, case in chosen:
            p = kind.problem(case)
            got = kind.fused(torch.ops.fastrnn, case, p.map(lambda t: t.cuda()))
            ratio, what = kind.worst(case, got, kind.expected(case, p))
            if not ratio <= 1:
                failures += 1
                print(f"FAILED {case}: {what}", flush=True)
    torch.cuda.synchronize()
    print(f"{len(chosen) - failures} passed, {failures} failed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
