"""Writes csrc/plan/table.inl, from which the plan chooses among the tiers of the CUDA kernels.

    python benchmarks/plan_table.py benchmarks/results/<date>-<gpu>/results.json    a sweep's timings
    python benchmarks/plan_table.py --estimates                                     the model's, for no device

The sweep is that of `python -m benchmarks.lab --device cuda --tiers`, or several of those merged by
its `--merge`, or of gpu-check's call 2 (call-2.jsonl). A tier's time a step is its
inference over T, the backward pass's what training takes beyond that; both include the products for the input
and the weights, which are the same for every tier. Build again afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

# Run by itself it sees its own folder alone. An installed fastrnn comes first.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.lab import merge
from benchmarks.lab.presets import NAMED
from fastrnn import _C
from fastrnn._plan import gpus

OUT = Path(__file__).resolve().parents[1] / "csrc" / "plan" / "table.inl"
TIERS = ("one_cta", "grid", "stepwise", "cluster")
CELLS = ("lstm", "gru", "rnn")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
PASSES = ("forward", "backward")
#: Where the model is written down: few points, as it is smooth.
HIDDEN, BATCHES, STEPS = (64, 128, 256, 512, 768, 1024, 2048), (1, 16, 64, 256), 128


def _table(points: dict, *, measured: bool, provenance: str, gpu: dict, steps: int) -> dict:
    """What fastrnn._C.plan takes as its table, of {(tier, cell, precision, pass, H, B): microseconds}."""
    order = (TIERS, CELLS, PRECISIONS, PASSES)
    batches = sorted({key[5] for key in points})
    kinds = sorted(
        {key[:5] for key in points},
        key=lambda k: (*(names.index(v) for names, v in zip(order, k, strict=False)), k[4]),
    )
    rows = [(*kind, [points.get((*kind, b), 0.0) for b in batches]) for kind in kinds]
    return {
        "measured": measured,
        "provenance": provenance,
        "gpu": gpu,
        "steps": steps,
        "batches": batches,
        "rows": rows,
    }


def measured(document: dict) -> dict:
    """The table of a sweep, as results.json holds it.

    Raises:
        ValueError: it is no sweep, times no tier, or not on one GPU with one number of steps.
    """
    try:
        return _measured(document)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a sweep's JSON, as the benchmark writes it; reading it gave {error!r}"
        ) from error


def _measured(document: dict) -> dict:
    times: dict = {}
    for result in document.get("results", ()):
        case = result["case"]
        plain = case["path"] == "layers" and case["layers"] == case["directions"] == 1
        if not plain or case["cell"] not in CELLS or case["dtype"] not in PRECISIONS:
            continue
        if (case["T"], case["B"], case["H"]) == (NAMED.T, NAMED.B, NAMED.H):
            continue  # for comparisons, with steps of its own
        for tier in TIERS:
            if tier in result["contenders"]:
                kind = (tier, case["cell"], case["dtype"])
                at = (*kind, case["H"], case["B"], case["T"])
                seconds = result["contenders"][tier]["median_s"]
                if not 0 < seconds < math.inf or not case["T"] > 0:
                    raise ValueError(f"expected positive times, got {seconds!r} s of {tier} for {case}")
                times.setdefault(at, {})["training" if case["training"] else "inference"] = seconds
    steps = {at[5] for at in times}
    devices = document.get("machine", {}).get("devices") or []
    if len(steps) != 1 or not devices:
        raise ValueError(
            f"expected a sweep that times the tiers on a GPU with one number of steps, got steps "
            f"{sorted(steps)} on {[d['name'] for d in devices] or 'no GPU'}; run it with --tiers"
        )
    (T,) = steps
    points = {}
    for (tier, cell, dtype, H, B, _), seconds in times.items():
        forward = seconds.get("inference")
        if forward is None:
            continue
        points[tier, cell, dtype, "forward", H, B] = round(forward / T * 1e6, 3)
        backward = seconds.get("training", 0.0) - forward
        if backward > 0:
            points[tier, cell, dtype, "backward", H, B] = round(backward / T * 1e6, 3)
    device, versions = devices[0], document["versions"]
    facts = [
        device["name"],
        f"driver {device.get('driver', 'unknown')}",
        f"torch {versions.get('torch')}",
        f"commit {document.get('commit')}",
        document["date"][:10],
    ]
    gpu = {name: device["properties"][name] for name in gpus.find("H100").properties()}
    return _table(points, measured=True, provenance=", ".join(facts), gpu=gpu, steps=T)


def estimates() -> dict:
    """The model's table."""
    gpu = gpus.find("H100").properties()
    points = {}
    for tier in TIERS:
        for cell in CELLS:
            for precision in PRECISIONS:
                tf32 = precision == "tf32"
                for H in HIDDEN:
                    for B in BATCHES:
                        plan = _C.plan(
                            device="cuda",
                            cell="rnn_tanh" if cell == "rnn" else cell,
                            **{"T": STEPS, "B": B, "I": H, "H": H},
                            dtype="float32" if tf32 else precision,
                            training=True,
                            gpu=gpu,
                            tf32=tf32,
                            tier=tier,
                        )
                        for name, one in zip(PASSES, (plan, plan["backward"]), strict=True):
                            if one["possible"]:
                                points[tier, cell, precision, name, H, B] = round(one["model_us"], 3)
    return _table(points, measured=False, provenance="estimated, no device", gpu=gpu, steps=STEPS)


def write(table: dict) -> str:
    """The table as C++: a brace initializer of PlanTable."""
    gpu = table["gpu"]
    names = {"one_cta": "kOneCta", "grid": "kGrid", "stepwise": "kStepwise", "cluster": "kCluster"}
    names |= {"lstm": "kLstm", "gru": "kGru", "rnn": "kRnnTanh", "forward": "kForward"}
    names |= {"float32": "kFloat32", "tf32": "kTf32", "bfloat16": "kBFloat16", "float16": "kHalf"}
    names |= {"backward": "kBackward"}
    device = f"{{{gpu['compute_capability']}, {gpu['sms']}, {gpu['shared_bytes_per_block']}, "
    device += f"{gpu['l2_bytes']}, {str(gpu['cooperative_launch']).lower()}, "
    device += f"cuda::max_cluster_of({gpu['compute_capability']})}}"
    lines = [
        f"// {' '.join(table['provenance'].split())}",
        "// Written by benchmarks/plan_table.py; microseconds a step.",
        "// clang-format off",
        f"{{{str(table['measured']).lower()}, {json.dumps(table['provenance'])}, {device}, {table['steps']},",
        f" {{{', '.join(map(str, table['batches']))}}},",
        " {",
    ]
    for *kind, H, us in table["rows"]:
        numbers = ", ".join(f"{v:g}" for v in us)
        lines.append(f"  {{{', '.join(names[k] for k in kind)}, {H}, {{{numbers}}}}},")
    return "\n".join([*lines, " }}", "// clang-format on", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("sweep", nargs="?", type=Path, help="a sweep's JSON")
    source.add_argument("--estimates", action="store_true", help="the model's times, for no device")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    try:
        table = estimates() if options.estimates else measured(merge.load(options.sweep))
        options.out.write_text(write(table))
    except (OSError, ValueError) as error:
        parser.error(f"{options.out if options.estimates else options.sweep}: {error}")
    print(f"{options.out}: {len(table['rows'])} rows, {table['provenance']}")


if __name__ == "__main__":
    main()
