"""Batches of streams with clocks of their own, as a voice server has them: a tick computes the streams that
have input, by `step(x, state, active=mask)`, by a loop over them, and by padding (a step of all, of which the
states of the others are kept).

    python benchmarks/streams.py --out FOLDER [--streams 64 1024] [--shares 0.05 0.25 1] [--threads 1]

All of a case run in one process, by turns, after their outputs were compared. FOLDER gets streams.json and
streams.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import fastrnn
from fastrnn.proof import machine

SIZE = 256
#: Against each stream alone, of outputs of at most 1: int8 quantizes each row by itself, and agrees as well.
ALLOWED = 1e-4


def ways(layer, weights: str, streams: int, mask: torch.Tensor) -> dict:
    """Name -> a tick of that way, which returns the outputs of the active streams."""
    stream = layer.streamer(weights)
    x = torch.randn(streams, SIZE)
    first = tuple(torch.randn(1, streams, SIZE).tanh() for _ in range(2))
    index = mask.nonzero().squeeze(1)
    rows = index.tolist()

    def copies():
        return tuple(s.clone() for s in first)

    own, placed, padded = copies(), copies(), copies()
    out = torch.zeros(streams, SIZE)
    inputs = {k: x[k : k + 1] for k in rows}
    alone = {k: tuple(s[:, k : k + 1].clone() for s in first) for k in rows}
    kept = mask.view(1, -1, 1)

    def active():
        return stream.step(x, own, active=mask)[0]

    def in_place():
        return stream.step_(x, placed, out=out, active=mask)

    def loop():
        outputs = []
        for k in rows:
            y, alone[k] = stream.step(inputs[k], alone[k])
            outputs.append(y)
        return outputs

    def padding():
        nonlocal padded
        y, new = stream.step(x, padded)
        padded = tuple(torch.where(kept, a, b) for a, b in zip(new, padded, strict=True))
        return y

    expected = torch.cat(loop())
    for way in (active, in_place, padding):
        error = float((way()[index] - expected).abs().max())
        if not error <= ALLOWED:
            raise SystemExit(f"{way.__name__} differs from streams alone by {error:.2g}")
    return {"active": active, "active, in place": in_place, "loop": loop, "padding": padding}


def measure(found: dict, seconds: float) -> dict[str, float]:
    """Median seconds of a tick of each, by turns."""
    samples = {name: [] for name in found}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples["loop"]) < 5:
        for name, tick in found.items():
            tick()  # the caches of its own
            start = time.perf_counter()
            tick()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


def run(options: argparse.Namespace) -> dict:
    results = []
    with torch.no_grad():
        for threads in options.threads:
            torch.set_num_threads(threads)
            for cell in ("LSTM", "GRU") if options.gru else ("LSTM",):
                torch.manual_seed(1)
                layer = getattr(fastrnn, cell)(SIZE, SIZE).eval()
                for weights in ("float32", "bfloat16", "int8"):
                    for streams in options.streams:
                        for share in options.shares:
                            mask = torch.zeros(streams, dtype=torch.bool)
                            mask[torch.randperm(streams)[: max(1, round(share * streams))]] = True
                            times = measure(ways(layer, weights, streams, mask), options.seconds)
                            case = {"cell": cell, "weights": weights, "threads": threads, "streams": streams}
                            us = {name: s * 1e6 for name, s in times.items()}
                            results.append({**case, "active": int(mask.sum()), "us": us})
                            print(json.dumps(results[-1]), flush=True)
    return {
        "commit": machine.commit(),
        "machine": machine.describe(),
        "isa": fastrnn._ops.library.cpu_isa(),
        "results": results,
    }


def report(found: dict) -> str:
    lines = [
        "# Batches of streams",
        "",
        f"{found['machine']['cpu']}, {found['isa']}; commit {found['commit']}. H = I = {SIZE}. Steps of "
        "streams in a second, and the time of a tick by a loop and by padding over that by `active=`.",
        "",
        "| | streams | with input | tick, µs | streams' steps a second | loop | padding | in place |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in found["results"]:
        us = r["us"]
        name = f"{r['cell']} {r['weights']}" + (f", {r['threads']} threads" if r["threads"] > 1 else "")
        ratios = [us[other] / us["active"] for other in ("loop", "padding")]
        row = [name, r["streams"], r["active"], f"{us['active']:.4g}", f"{r['active'] / us['active']:.3g} M"]
        row += [f"{ratio:.2f}" for ratio in (*ratios, us["active"] / us["active, in place"])]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for streams.json and streams.md")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 1024])
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.05, 0.25, 1.0], help="with input at a tick"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--gru", action="store_true", help="a GRU as well")
    parser.add_argument("--seconds", type=float, default=1.0, help="of every case")
    options = parser.parse_args()
    found = run(options)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "streams.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "streams.md").write_text(report(found))
    print(report(found))


if __name__ == "__main__":
    main()
