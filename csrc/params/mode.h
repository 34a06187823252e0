// What the operators' arguments `mode` and `needs` say, see ops/schema.cpp: what to save or which gradients are
// needed, a tier of the CUDA kernels, whether float32 may use TensorFloat-32. Python has the same in one list.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

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
struct TierFacts {
  const char* name;
  Tier base = Tier::kAuto;  // whose kernels those of an overlap are; of every other tier, itself
  int cluster = 0;          // CTAs of the clusters that are asked for; 0: of any size, or none
};
inline constexpr TierFacts kTierFacts[] = {{"auto", Tier::kAuto},
                                           {"one_cta", Tier::kOneCta},
                                           {"grid", Tier::kGrid},
                                           {"stepwise", Tier::kStepwise},
                                           {"cluster", Tier::kCluster},
                                           {"cluster_4", Tier::kCluster4, 4},
                                           {"cluster_8", Tier::kCluster8, 8},
                                           {"cluster_16", Tier::kCluster16, 16},
                                           {"stepwise_graph", Tier::kStepwiseGraph},
                                           {"one_cta_overlap", Tier::kOneCta},
                                           {"cluster_4_overlap", Tier::kCluster4, 4},
                                           {"cluster_8_overlap", Tier::kCluster8, 8},
                                           {"cluster_16_overlap", Tier::kCluster16, 16},
                                           {"grid_overlap", Tier::kGrid}};
inline constexpr int kTiers = sizeof(kTierFacts) / sizeof(kTierFacts[0]);

constexpr const TierFacts& facts_of(Tier tier) { return kTierFacts[static_cast<int>(tier)]; }
constexpr const char* tier_name(Tier tier) { return facts_of(tier).name; }
constexpr std::optional<Tier> tier_named(std::string_view name) {
  for (int i = 0; i < kTiers; ++i) {
    if (name == kTierFacts[i].name) return static_cast<Tier>(i);
  }
  return std::nullopt;
}
constexpr Tier base_of(Tier asked) { return facts_of(asked).base; }
constexpr bool overlaps(Tier asked) { return base_of(asked) != asked; }
constexpr int cluster_of(Tier asked) { return facts_of(asked).cluster; }
// The tier that runs.
constexpr Tier family_of(Tier asked) { return cluster_of(asked) ? Tier::kCluster : base_of(asked); }
// The tier that asks for what ran: of clusters those of so many CTAs, with x's product beside the loop or not.
constexpr Tier asked_for(Tier family, int ctas, bool overlap) {
  for (int i = 0; i < kTiers; ++i) {
    const Tier tier = static_cast<Tier>(i);
    const bool size = family != Tier::kCluster || cluster_of(tier) == ctas;
    if (family_of(tier) == family && size && overlaps(tier) == overlap) return tier;
  }
  return family;
}
// Tiers that keep the recurrent weights on the SMs for the whole sequence.
constexpr bool is_persistent(Tier tier) { return tier != Tier::kStepwise && tier != Tier::kStepwiseGraph; }
constexpr Tier tier_of(int64_t mode) {
  return static_cast<Tier>(mode % kModeTf32 / kModeTier + (mode & kModeTierEights ? 8 : 0));
}
constexpr int64_t mode_of(Tier tier) {
  const int64_t number = static_cast<int64_t>(tier);
  return number % 8 * kModeTier + (number >= 8 ? kModeTierEights : 0);
}

}  // namespace fastrnn
