"""What the machine can do, measured in the run, and how close a time comes to it.

The floor of a case is the longer of two times: its multiplications and additions at the best measured rate,
and its recurrent weights, once a step, at the best measured read bandwidth for that many bytes. The input
weights are read once. Training does the arithmetic three times and reads the weights twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import torch

from fastrnn._ops import library  # noqa: F401 - loads torch.ops.fastrnn

from .cases import Case
from .problem import flops, weight_bytes

_KB = 1024
READ_SIZES = (256 * _KB, 512 * _KB, 1024 * _KB, 2048 * _KB, 4096 * _KB, 16384 * _KB)


@dataclass
class Limits:
    """Rates of one machine on one number of threads.

    Attributes:
        flops: floating-point operations a second by the name of what reached them.
        bandwidth: (bytes of the working set, bytes a second), ascending.
    """

    dtype: str
    flops: dict[str, float] = field(default_factory=dict)
    bandwidth: list[tuple[int, float]] = field(default_factory=list)

    @property
    def peak(self) -> float:
        return max(self.flops.values())

    def read_rate(self, size: int) -> float:
        """Bandwidth for a working set of so many bytes, interpolated between the sizes measured."""
        below = [(s, r) for s, r in self.bandwidth if s <= size]
        above = [(s, r) for s, r in self.bandwidth if s > size]
        if not below or not above:
            return (below[-1] if below else above[0])[1]
        (s0, r0), (s1, r1) = below[-1], above[0]
        return r0 + (r1 - r0) * (size - s0) / (s1 - s0)

    def floor(self, case: Case) -> dict[str, float]:
        """Seconds that no implementation on these limits can beat, and what sets them."""
        recurrent, projection = weight_bytes(case)
        passes = 2 if case.training else 1
        compute = flops(case) / self.peak
        bytes_read = passes * (case.T * recurrent + projection)
        # What is read once finds both matrices' worth of memory between one call and the next.
        once = self.read_rate(recurrent + projection)
        every_step = self.read_rate(recurrent) if case.T > 1 else once
        memory = passes * (case.T * recurrent / every_step + projection / once)
        return {
            "floor_s": max(compute, memory),
            "compute_s": compute,
            "memory_s": memory,
            "flops": flops(case),
            "weight_bytes": bytes_read,
        }

    def to_dict(self) -> dict:
        return asdict(self)


def _best(call: Callable[[], object], budget_s: float, sync: Callable[[], object]) -> float:
    """Shortest time of a call; the limit is what was reached once, not what is reached on average."""
    call()
    sync()
    best, deadline = float("inf"), time.perf_counter() + budget_s
    while True:
        start = time.perf_counter()
        call()
        sync()
        end = time.perf_counter()
        best = min(best, end - start)
        if end > deadline:
            return best


def _gemm_rates(dtype: torch.dtype, device: str, budget_s: float) -> dict[str, float]:
    """torch's matrix product, and oneDNN's own where torch would call something slower (MKL on AMD)."""
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    rates: dict[str, float] = {}
    for n in (768, 1536) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        kernels = {"torch.mm": lambda a=a, b=b: torch.mm(a, b.t())}
        if device == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            kernels["oneDNN linear"] = lambda a=a, b=b: torch.ops.mkldnn._linear_pointwise(
                a, b, None, "none", [], ""
            )
        for name, call in kernels.items():
            try:
                seconds = _best(call, budget_s / 4, sync)
            except RuntimeError:  # oneDNN has no kernel for this dtype here
                continue
            rates[name] = max(rates.get(name, 0.0), 2.0 * n**3 / seconds)
    return rates


def _read_rate(size: int, device: str, budget_s: float) -> float:
    """Bytes a second at which torch's reductions read a working set, less the time of a call as such."""
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    data, tiny = torch.ones(size // 4, device=device), torch.ones(16, device=device)
    best = 0.0
    for reduce in (torch.sum, torch.amax):
        call_s = _best(lambda reduce=reduce: reduce(tiny), budget_s / 8, sync)
        seconds = _best(lambda reduce=reduce: reduce(data), budget_s * 3 / 8, sync)
        best = max(best, size / max(seconds - call_s, seconds / 4))
    return best


def measure(dtype: str, device: str, threads: int, budget_s: float = 2.0) -> Limits:
    """Measure the limits on so many threads; torch must already be set to them.

    fastrnn's own probes are not bound by how torch's kernels are compiled: they use the widest registers.
    """
    limits = Limits(dtype)
    native = device == "cpu"
    if native and dtype == "float32":
        limits.flops["multiply-adds in registers"] = _together(torch.ops.fastrnn.cpu_fma_peak, threads)
    limits.flops.update(
        _gemm_rates(getattr(torch, "float32" if dtype == "tf32" else dtype), device, budget_s / 2)
    )
    for size in READ_SIZES:
        rate = _read_rate(size, device, budget_s / 2 / len(READ_SIZES))
        if native:
            # Each thread reads its own part, as the threads of a layer do.
            rate = max(
                rate,
                _together(lambda size=size: torch.ops.fastrnn.cpu_read_bandwidth(size // threads), threads),
            )
        limits.bandwidth.append((size, rate))
    return limits


def _together(probe: Callable[[], float], threads: int) -> float:
    """The sum of a one-thread probe's rates on so many threads at once (torch's ops release the GIL)."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: probe(), range(threads)))
