// What each device of this process has proven, what ran on it, and what went wrong: the state behind the one place
// where a pass is planned (sequence.h), so that compiled graphs and exported programs follow it as calls do.
#pragma once
#include <array>
#include <atomic>
#include <mutex>
#include <string>

#include "cuda/device/status.h"
#include "cuda/torch/tensors.h"
#include "ops/check.h"
#include "plan/trust.h"

namespace fastrnn::cuda {

constexpr const char* pass_name(Pass pass) { return pass == Pass::kForward ? "forward" : "backward"; }

struct DeviceTrust {
  std::mutex mutex;  // of trust
  Trust trust;
  std::array<bool, kTiers> warned = {};
};

// A tensor of the emulator's has no index.
inline DeviceTrust& trust_of(int device) {
  if (device < 0) device = 0;
  constexpr int kMost = 64;
  static std::array<DeviceTrust, kMost> devices;
  check(device >= 0 && device < kMost, "device: expected an index below ", kMost, ", got ", device);
  return devices[device];
}

// Passes that were launched, by tier (clusters also by size, and where x's product ran beside the loop that too) and
// pass.
inline std::array<std::array<std::atomic<int64_t>, 2>, kTiers>& ran() {
  static std::array<std::array<std::atomic<int64_t>, 2>, kTiers> counts;
  return counts;
}
inline void count(Tier tier, Pass pass) {
  ran()[static_cast<int>(tier)][static_cast<int>(pass)].fetch_add(1, std::memory_order_relaxed);
}
inline void count(const CudaPlan& plan, Pass pass) {
  const int ctas = plan.geometry.ctas_per_replica;
  count(plan.tier, pass);
  if (plan.tier == Tier::kCluster) count(asked_for(plan.tier, ctas, /*overlap=*/false), pass);
  if (plan.chunks > 1) count(asked_for(plan.tier, ctas, /*overlap=*/true), pass);
}

// A record of the device's in words, "" where nothing is wrong. The tier is in quarantine then, and the record read.
inline std::string taken_status(int device) {
  if (device < 0) device = 0;
  const Status status = read_status(device);
  if (status.code == kStatusClear) [[likely]]
    return "";
  clear_status(device);
  const Tier tier = asked_for(status.tier, status.ctas_per_replica, /*overlap=*/false);
  std::string text = std::string("a kernel of tier '") + tier_name(tier) + "' gave up waiting (code " +
                     std::to_string(status.code) + ") in the " + pass_name(status.pass) +
                     " pass of a layer: " + facts_of(status.cell).name + ", T=" + std::to_string(status.T) +
                     ", B=" + std::to_string(status.B) + ", H=" + std::to_string(status.H) + ", step " +
                     std::to_string(status.step) + ", device " + std::to_string(device);
  DeviceTrust& here = trust_of(device);
  const std::lock_guard lock(here.mutex);
  here.trust.quarantine(status.tier, text);
  return text;
}
inline constexpr const char* kAfterStatus =
    ": its results are NaN, and the tier is in quarantine; see fastrnn.cuda_status()";

// In auto mode no launch may end a call that another tier can answer: told once, and not tried again.
inline void distrust(int device, Tier tier, const std::string& why) {
  if (device < 0) device = 0;
  DeviceTrust& here = trust_of(device);
  const std::lock_guard lock(here.mutex);
  here.trust.quarantine(tier, why);
  bool& warned = here.warned[static_cast<int>(family_of(tier))];
  if (warned) return;
  warned = true;
  const std::string text = std::string("fastrnn: tier '") + tier_name(tier) + "' could not be launched on device " +
                           std::to_string(device) + " (" + why + "): in quarantine, a step at a time instead";
  aoti_torch_warn(__func__, __FILE__, __LINE__, text.c_str());
}

}  // namespace fastrnn::cuda
