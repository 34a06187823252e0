"""Cases of the benchmark, small ones on the CPU and a GPU's; and runs on a GPU, with times of our choice."""

from benchmarks.lab import run as bench_run
from benchmarks.lab.cases import Case
from benchmarks.lab.contenders import registry as contenders
from benchmarks.lab.problem import flops
from fastrnn._plan import gpus
from fastrnn.proof import machine

H100 = gpus.find("H100").properties()


def tiny(cell="lstm", path="layers", training=False, **sizes) -> Case:
    sizes = {"T": 3, "B": 2, "I": 6, "H": 6, **sizes}
    if path == "cells":
        sizes["T"] = 1
    P = 4 if cell == "srupp" else 3 if path == "proj" else 0
    return Case(cell, path, training, P=P, **sizes)


def on_gpu(cell="lstm", training=False, T=128, B=16, H=512, **options) -> Case:
    options = {"dtype": "float16", "device": "cuda", "path": "layers", **options}
    return Case(cell, training=training, T=T, B=B, I=H, H=H, **options)


def made_up_result(case: Case, ours: float, theirs: float, **others: float) -> dict:
    """What a worker would have sent for a case, with times of our choice."""

    def times(seconds, label):
        spread = {"q25_s": 0.99 * seconds, "q75_s": 1.01 * seconds, "min_s": seconds, "max_s": seconds}
        return {"label": label, "difference": 0.0, "median_s": seconds, **spread, "rounds": 7, "calls": 3}

    contenders_ = {"fastrnn": times(ours, "fastrnn"), "torch": times(theirs, "torch.nn (cuDNN)")}
    contenders_ |= {key: times(seconds, contenders.NAMES.get(key, key)) for key, seconds in others.items()}
    floor = {
        "floor_s": ours / 2,
        "flops": flops(case),
        "weight_bytes": 1.0,
        "compute_s": 0.0,
        "memory_s": 0.0,
    }
    return {"case": case.to_dict(), "threads": 1, "contenders": contenders_, "skipped": {}, "floor": floor}


def a_run(results, **changes) -> dict:
    gpu = {
        "name": "NVIDIA H100",
        "capability": "9.0",
        "memory_bytes": 1,
        "multiprocessors": 132,
        "driver": "1.2",
        "properties": H100,
    }
    run = {
        "preset": "quick",
        "date": "2026-01-31",
        "commit": "0123456789ab",
        "load": 0.1,
        "seconds": 100.0,
        "min_rounds": 7,
        "threads": [1],
        "machine": machine.describe() | {"devices": [gpu]},
        "versions": machine.versions(),
        "results": results,
        "limits": [
            {"threads": 1, "dtype": "float16", "flops": {"torch.mm": 7e14}, "bandwidth": [[65536, 1e12]]}
        ],
        **{key: [] for key in ("scaling", "memory", "overhead", "scan", "dropped")},
    }
    return bench_run.with_targets(run | changes)
