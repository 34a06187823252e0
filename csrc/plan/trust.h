// What a device has proven, and what may therefore run on it unasked. A persistent tier waits for its own blocks by
// counts and parities: a mistake there is a wrong number or a hang, and no estimate tells. So no tier runs by default
// that was not verified and measured on this very kind of device: fastrnn/_plan/tuning keeps the outcomes, and hands
// them to the planner here, a layer's kind at a time.
#pragma once
#include <map>
#include <string>

#include "plan/cuda.h"

namespace fastrnn {

// What is alike for layers that share an outcome, in words: cell, precision, units, directions, the powers of two
// that rows and steps do not exceed, whether the input is narrow enough for a kernel to project it, whether something
// is saved for a backward pass, and how the rows of the batch differ.
std::string trust_key(const LayerShape& shape, bool tf32, bool training);

// The tier of each pass, kAuto where torch's own layer is what has won.
struct Trusted {
  Tier forward = Tier::kAuto, backward = Tier::kAuto;
};

class Trust {
 public:
  // A line for each kind of layer: its key, forward's tier, backward's, with tabs between. Takes the place of what
  // was there. False, with nothing changed, where a line is none.
  bool replace(const std::string& lines);
  // A tier that must not run here any more unless it is asked for by name.
  void quarantine(Tier tier, const std::string& why) { quarantined_.try_emplace(family_of(tier), why); }
  void release() { quarantined_.clear(); }

  const Trusted* find(const std::string& key) const;
  bool quarantined(Tier tier) const { return quarantined_.contains(family_of(tier)); }
  const std::map<Tier, std::string>& quarantined() const { return quarantined_; }

 private:
  std::map<std::string, Trusted> entries_;
  std::map<Tier, std::string> quarantined_;
};

// One pass of a layer that asked for no tier: the proven one, else a step at a time, which every layer can.
CudaPlan plan_trusted(const LayerShape& shape, bool tf32, cuda::Pass pass, const cuda::CudaDevice& device,
                      bool training, const Trust& trust, const PlanTable& table = plan_table());

}  // namespace fastrnn
