"""What the operators' arguments ``mode`` and ``needs`` say, as numbers; C++'s copy is csrc/params/mode.h.

A forward pass's mode is what it saves, plus a tier, plus TF32; a backward pass's the gradients that it is
asked for, plus the same two. Tiers and TensorFloat-32 belong to the CUDA kernels.
"""

from __future__ import annotations

#: What a forward pass leaves for backward.
SAVE_MODES = {None: 0, "gates": 1, "recompute": 2}
#: The gradients that a layer's backward is asked for.
NEEDS = {"x": 1, "h0": 2, "c0": 4, "weights": 8}
#: And a scan's.
SCAN_NEEDS = {"u": 1, "x": 2, "weights": 4, "c0": 8, "v": 16}
#: A tier of the CUDA kernels.
TIERS = {"auto": 0, "one_cta": 16, "grid": 32, "stepwise": 48, "cluster": 64, "stepwise_graph": 256}
#: The cluster tier held to one size of clusters, for who compares them.
CLUSTERS = {"cluster_4": 80, "cluster_8": 96, "cluster_16": 112}
#: A persistent tier whose loop begins while x's product still runs; forward alone.
OVERLAPS = {
    "one_cta_overlap": 272,
    "cluster_4_overlap": 288,
    "cluster_8_overlap": 304,
    "cluster_16_overlap": 320,
    "grid_overlap": 336,
}
#: The bits of a mode that name a tier, and whether float32 products may use TensorFloat-32.
TIER_MASK, TF32 = 112 + 256, 128

#: Tiers that can be asked for by name, from the fewest SMs to the most, and last what always can.
NAMED_TIERS = ("one_cta", "cluster", "grid", "stepwise_graph", "stepwise")
#: The options of the layers: what training keeps, and what runs a layer.
SAVE = tuple(name for name in SAVE_MODES if name)
BACKENDS = ("auto", "fused", *NAMED_TIERS, "cudnn", "reference")
#: The instruction sets of the CPU kernels, best first; C++'s list is csrc/cpu/isa/list.h. Those behind
#: baseline run only for who asks for them by name.
CPU_ISAS = ("avx512_bf16", "avx512", "avx2", "neon_bf16", "neon", "baseline", "amx")
