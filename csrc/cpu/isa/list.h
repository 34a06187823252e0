// The instruction sets that the CPU's kernels are written for, best first: the one list of them, which Python
// compares with its own. A table of kernels takes its name from here. Those behind baseline are chosen by name alone.
#pragma once

namespace fastrnn {

enum class Isa : int { kAvx512Bf16 = 0, kAvx512 = 1, kAvx2 = 2, kNeonBf16 = 3, kNeon = 4, kBaseline = 5, kAmx = 6 };
inline constexpr const char* kIsaNames[] = {"avx512_bf16", "avx512", "avx2", "neon_bf16", "neon", "baseline", "amx"};
constexpr const char* isa_name(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

}  // namespace fastrnn
