// What the operators' arguments `mode` and `needs` say, see ops/schema.cpp: what to save or which gradients are
// needed, a tier of the CUDA kernels, whether float32 may use TensorFloat-32. Python has the same in one list.
#pragma once
#include <cstdint>

namespace fastrnn {

enum class Save : int { kNothing = 0, kGates = 1, kRecompute = 2 };
// Gradients that backward is asked for, as bits.
struct Needs {
  static constexpr int64_t kX = 1, kH0 = 2, kC0 = 4, kWeights = 8, kAll = 15;
};
struct ScanNeeds {
  static constexpr int64_t kU = 1, kX = 2, kWeights = 4, kC0 = 8, kV = 16, kAll = 31;
};

constexpr int64_t kModeTier = 16, kModeTf32 = 128, kModeEnd = 256;

// The tiers of the CUDA kernels by their number in `mode`.
enum class Tier : int { kAuto = 0, kOneCta = 1, kGrid = 2, kStepwise = 3, kCluster = 4 };
inline constexpr const char* kTierNames[] = {"auto", "one_cta", "grid", "stepwise", "cluster"};
constexpr const char* tier_name(Tier tier) { return kTierNames[static_cast<int>(tier)]; }
constexpr Tier tier_of(int64_t mode) { return static_cast<Tier>(mode % kModeTf32 / kModeTier); }

}  // namespace fastrnn
