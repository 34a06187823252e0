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

// A tier's number is in the bits from kModeTier on, and its eights in kModeTierEights.
constexpr int64_t kModeTier = 16, kModeTf32 = 128, kModeTierEights = 256, kModeEnd = 512;

// The tiers of the CUDA kernels by their number in `mode`. kCluster4 to kCluster16 ask for clusters of so many CTAs,
// and are what is asked for only: the tier that runs is kCluster then. The last five ask for a persistent tier whose
// loop begins while x's product still runs, in chunks of the sequence.
enum class Tier : int {
  kAuto = 0,
  kOneCta = 1,
  kGrid = 2,
  kStepwise = 3,
  kCluster = 4,
  kCluster4 = 5,
  kCluster8 = 6,
  kCluster16 = 7,
  kStepwiseGraph = 8,
  kOneCtaOverlap = 9,
  kCluster4Overlap = 10,
  kCluster8Overlap = 11,
  kCluster16Overlap = 12,
  kGridOverlap = 13
};
inline constexpr int kTiers = 14;
inline constexpr const char* kTierNames[] = {"auto", "one_cta", "grid", "stepwise", "cluster"};
inline constexpr const char* kClusterNames[] = {"cluster_4", "cluster_8", "cluster_16"};
inline constexpr const char* kOverlapNames[] = {"one_cta_overlap", "cluster_4_overlap", "cluster_8_overlap",
                                                "cluster_16_overlap", "grid_overlap"};
constexpr bool overlaps(Tier asked) { return asked >= Tier::kOneCtaOverlap; }
// The tier whose loop has x's product beside it.
constexpr Tier base_of(Tier asked) {
  return asked == Tier::kOneCtaOverlap      ? Tier::kOneCta
         : asked == Tier::kCluster4Overlap  ? Tier::kCluster4
         : asked == Tier::kCluster8Overlap  ? Tier::kCluster8
         : asked == Tier::kCluster16Overlap ? Tier::kCluster16
         : asked == Tier::kGridOverlap      ? Tier::kGrid
                                            : asked;
}
// CTAs of the clusters that are asked for; 0: of any size, or none.
constexpr int cluster_of(Tier asked) {
  const Tier base = base_of(asked);
  return base == Tier::kCluster4 ? 4 : base == Tier::kCluster8 ? 8 : base == Tier::kCluster16 ? 16 : 0;
}
constexpr Tier family_of(Tier asked) { return cluster_of(asked) ? Tier::kCluster : base_of(asked); }
constexpr Tier cluster_tier(int ctas) {
  return ctas == 4 ? Tier::kCluster4 : ctas == 8 ? Tier::kCluster8 : ctas == 16 ? Tier::kCluster16 : Tier::kCluster;
}
// Of a tier, of clusters with their size.
constexpr Tier overlap_tier(Tier base, int ctas) {
  return base == Tier::kOneCta ? Tier::kOneCtaOverlap
         : base == Tier::kGrid ? Tier::kGridOverlap
         : ctas == 4           ? Tier::kCluster4Overlap
         : ctas == 8           ? Tier::kCluster8Overlap
                               : Tier::kCluster16Overlap;
}
// Tiers that keep the recurrent weights on the SMs for the whole sequence.
constexpr bool is_persistent(Tier tier) { return tier != Tier::kStepwise && tier != Tier::kStepwiseGraph; }
constexpr const char* tier_name(Tier tier) {
  const int number = static_cast<int>(tier), first = static_cast<int>(Tier::kCluster4);
  if (overlaps(tier)) return kOverlapNames[number - static_cast<int>(Tier::kOneCtaOverlap)];
  if (tier == Tier::kStepwiseGraph) return "stepwise_graph";
  return number < first ? kTierNames[number] : kClusterNames[number - first];
}
constexpr Tier tier_of(int64_t mode) {
  return static_cast<Tier>(mode % kModeTf32 / kModeTier + (mode & kModeTierEights ? 8 : 0));
}
constexpr int64_t mode_of(Tier tier) {
  const int64_t number = static_cast<int64_t>(tier);
  return number % 8 * kModeTier + (number >= 8 ? kModeTierEights : 0);
}

}  // namespace fastrnn
