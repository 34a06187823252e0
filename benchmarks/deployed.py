"""Layers as they are deployed, on the CPU: steps and sequences with weights of float32, bfloat16 and int8,
against ONNX Runtime and torch's quantize_dynamic.

    python benchmarks/deployed.py --out FOLDER [--threads 1 2] [--sizes 128 ...] [--steps 1 100]

All contenders of a case run in one process, a sample of each by turns, after their outputs were compared with
float32's; what is reported are medians in microseconds, and ratios of them. FOLDER gets results.json and
report.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn

import fastrnn
from fastrnn.proof import machine

SIZES = (32, 64, 128, 256, 512, 1024)
#: The largest difference to float32, over the largest output, with which a contender still takes part.
ALLOWED = {"float32": 1e-4, "bfloat16": 2e-2, "int8": 0.12}
_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def onnx_session(layer: nn.RNNBase, T: int, threads: int, int8: bool):
    """The layer as one node of ONNX Runtime's; int8 as its own DynamicQuantizeLSTM."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    kind = "LSTM" if layer.mode == "LSTM" else "GRU"

    def reorder(w):
        gates = w.detach().chunk(len(_ORDER[kind]))
        return torch.cat([gates[g] for g in _ORDER[kind]])

    w_ih, w_hh, b_ih, b_hh = (reorder(w) for w in layer.parameters())
    constants = {"W": w_ih[None], "R": w_hh[None], "B": torch.cat([b_ih, b_hh])[None]}
    attributes = {"hidden_size": layer.hidden_size}
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    states = ["h0", "c0"] if kind == "LSTM" else ["h0"]
    inputs, domain = ["x", "W", "R", "B", "", *states], ""
    node_kind = kind
    if int8:
        node_kind, domain = "DynamicQuantizeLSTM", "com.microsoft"
        for name in "WR":
            w = constants[name].transpose(1, 2).contiguous()  # (1, I, 4H)
            scale = w.abs().amax(1) / 127
            constants[name] = (w / scale[:, None]).round().to(torch.int8)
            constants[f"{name}_scale"], constants[f"{name}_zero"] = (
                scale,
                torch.zeros_like(scale, dtype=torch.int8),
            )
        inputs += ["", "W_scale", "W_zero", "R_scale", "R_zero"]
    outputs = ["y", "hn", "cn"][: 1 + len(states)]
    node = helper.make_node(node_kind, inputs, outputs, domain=domain, **attributes)
    H = layer.hidden_size
    graph = helper.make_graph(
        [node],
        "layer",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [T, 1, layer.input_size]),
            *(helper.make_tensor_value_info(s, TensorProto.FLOAT, [1, 1, H]) for s in states),
        ],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [T, 1, 1, H] if n == "y" else [1, 1, H])
            for n in outputs
        ],
        [numpy_helper.from_array(t.numpy(), name) for name, t in constants.items()],
    )
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that spin between runs would take the cores of the next contender; within a run they spin.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, {s: np.zeros((1, 1, H), np.float32) for s in states}


def contenders(layer: nn.RNNBase, T: int, threads: int) -> dict:
    """Name -> (call, its output). A step where T is 1."""
    x = torch.randn(T, 1, layer.input_size)
    lstm = layer.mode == "LSTM"
    zeros = torch.zeros(1, 1, layer.hidden_size)
    state = (zeros, zeros.clone()) if lstm else zeros
    found = {}
    for weights in ("float32", "bfloat16", "int8"):
        stream = layer.streamer(weights)
        if T == 1:
            found[f"fastrnn {weights}"] = lambda s=stream.step: s(x[0], state)[0]
            out = torch.empty(1, layer.hidden_size)
            own = tuple(t.clone() for t in state) if lstm else state.clone()
            found[f"fastrnn {weights} in place"] = lambda s=stream.step_, h=own, y=out: s(x[0], h, out=y)
        else:
            found[f"fastrnn {weights}"] = lambda s=stream: s(x, state)[0]
    for weights in ("bfloat16", "int8"):
        made = fastrnn.quantize(layer, weights)
        found[f"fastrnn.quantize {weights}"] = lambda m=made: m(x, state)[0]
    theirs = (nn.LSTM if lstm else nn.GRU)(layer.input_size, layer.hidden_size)
    theirs.load_state_dict(layer.state_dict())
    made = torch.ao.quantization.quantize_dynamic(
        nn.ModuleDict({"rnn": theirs}), {type(theirs)}, dtype=torch.qint8
    )["rnn"]
    found["torch quantize_dynamic int8"] = lambda: made(x, state)[0]
    array = x.numpy()
    for name, int8 in (("ONNX Runtime float32", False), ("ONNX Runtime int8", True)):
        if int8 and not lstm:  # it has no GRU
            continue
        session, feeds = onnx_session(layer, T, threads, int8)
        feeds = {"x": array, **feeds}
        found[name] = lambda s=session, f=feeds: s.run(None, f)[0]
    return found


def compare(found: dict, expected: torch.Tensor) -> dict[str, float]:
    """Each one's error; one that is not the layer at all ends the run."""
    errors = {}
    for name, call in found.items():
        y = call()
        y = torch.from_numpy(np.array(y)) if isinstance(y, np.ndarray) else y
        y = y.reshape(expected.shape)
        if "in place" not in name or "float32" in name:
            errors[name] = float((y - expected).abs().max() / expected.abs().max())
            kind = next(k for k in ALLOWED if k in name)
            if "in place" not in name and not errors[name] <= ALLOWED[kind]:
                raise SystemExit(f"{name} differs from float32 by {errors[name]:.2g}")
    return errors


def measure(found: dict, seconds: float) -> dict[str, float]:
    """Median seconds of a call of each, by turns."""
    counts, samples = {}, {name: [] for name in found}
    for name, call in found.items():
        for _ in range(3):
            call()
        start = time.perf_counter()
        call()
        counts[name] = max(1, min(200, int(2e-3 / max(1e-7, time.perf_counter() - start))))
    gc.collect()
    gc.disable()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 5:
        for name, call in found.items():
            n = counts[name]
            call()  # the caches and threads of its own
            start = time.perf_counter()
            for _ in range(n):
                call()
            samples[name].append((time.perf_counter() - start) / n)
    gc.enable()
    return {name: statistics.median(times) for name, times in samples.items()}


def run(options: argparse.Namespace) -> dict:
    results = []
    with torch.no_grad():
        for threads in options.threads:
            torch.set_num_threads(threads)
            for cell in ("LSTM", "GRU"):
                for H in options.sizes:
                    for T in options.steps:
                        torch.manual_seed(H)
                        layer = getattr(fastrnn, cell)(H, H).eval()
                        found = contenders(layer, T, threads)
                        torch.manual_seed(H + 1)
                        expected = torch.as_tensor(np.array(found["ONNX Runtime float32"]())).reshape(T, 1, H)
                        errors = compare(found, expected)
                        times = measure(found, options.seconds)
                        case = {"cell": cell, "T": T, "B": 1, "I": H, "H": H, "threads": threads}
                        results.append(
                            {**case, "us": {k: v * 1e6 for k, v in times.items()}, "errors": errors}
                        )
                        print(json.dumps(results[-1]), flush=True)
    return {
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "isa": fastrnn._ops.library.cpu_isa(),
        "results": results,
    }


def geometric(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


#: What is compared with what, at which sizes: (title, ours, theirs, sizes, wanted mean, wanted least).
TARGETS = [
    ("int8 against torch's quantize_dynamic", "fastrnn int8", "torch quantize_dynamic int8", 128, 2.0, 1.2),
    ("int8 against ONNX Runtime's DynamicQuantizeLSTM", "fastrnn int8", "ONNX Runtime int8", 128, 2.0, 1.2),
    ("int8 step in place, against the same", "fastrnn int8 in place", "ONNX Runtime int8", 128, 2.0, 1.2),
    ("int8 against our float32 streamer", "fastrnn int8", "fastrnn float32", 256, None, 2.5),
    ("bfloat16 against our float32 streamer", "fastrnn bfloat16", "fastrnn float32", 256, None, 1.5),
    (
        "float32 step against ONNX Runtime's session.run",
        "fastrnn float32",
        "ONNX Runtime float32",
        32,
        None,
        1.0,
    ),
]


def report(run: dict) -> str:
    cpu = run["machine"]["cpu"]
    lines = ["# Deployed layers", "", f"{cpu}, {run['isa']}; commit {run['commit']}.", ""]
    lines += [
        "Ratios are their time over ours, B = 1, I = H; T = 1 by `streamer.step`, T = 100 by one call.",
        "",
    ]
    lines += [
        "| | T | threads | geometric mean | least | wanted | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for title, ours, theirs, least_size, mean, least in TARGETS:
        for T in sorted({r["T"] for r in run["results"]}):
            if "step" in title and T > 1:
                continue
            for threads in sorted({r["threads"] for r in run["results"]}):
                ratios = [
                    r["us"][theirs] / r["us"][ours]
                    for r in run["results"]
                    if r["T"] == T and r["threads"] == threads and r["H"] >= least_size
                    if ours in r["us"] and theirs in r["us"]
                ]
                if not ratios:
                    continue
                met = min(ratios) >= least and (mean is None or geometric(ratios) >= mean)
                wanted = (f"{mean:g} / " if mean else "") + f"{least:g}"
                row = [title, T, threads, f"{geometric(ratios):.2f}", f"{min(ratios):.2f}", wanted]
                lines.append("| " + " | ".join(map(str, [*row, "met" if met else "**missed**"])) + " |")
    for threads in sorted({r["threads"] for r in run["results"]}):
        names = list(run["results"][0]["us"])
        lines += ["", f"## Microseconds, {threads} thread{'s' * (threads > 1)}", ""]
        lines += ["| | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
        for r in run["results"]:
            if r["threads"] == threads:
                times = [f"{r['us'][n]:.3g}" if n in r["us"] else "" for n in names]
                lines.append(f"| {r['cell']} T={r['T']} H={r['H']} | " + " | ".join(times) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for results.json and report.md")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 100], help="T")
    parser.add_argument("--seconds", type=float, default=0.5, help="of every case")
    parser.add_argument(
        "--merge", type=Path, nargs="+", default=[], help="runs to make one report of, in place of one"
    )
    options = parser.parse_args()
    if options.merge:
        runs = [json.loads(path.read_text()) for path in options.merge]
        found = runs[0] | {"results": [r for one in runs for r in one["results"]]}
    else:
        found = run(options)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "report.md").write_text(report(found))
    print(report(found))


if __name__ == "__main__":
    main()
