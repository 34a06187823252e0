// Compiled where cuda.cpp is.
#include "plan/trust.h"

#include <bit>
#include <optional>
#include <sstream>

namespace fastrnn {
namespace {

uint64_t bucket(int64_t size) { return std::bit_ceil(static_cast<uint64_t>(size < 1 ? 1 : size)); }

constexpr const char* kUnverified = "not verified on this device: run `fastrnn tune`";

}  // namespace

std::string trust_key(const LayerShape& s, bool tf32, bool training) {
  static constexpr const char* precisions[] = {"float32", "tf32", "bfloat16", "float16"};
  const cuda::Precision precision = cuda_precision(s.dtype, tf32);
  const bool masked = s.order || s.resets;
  std::string key = facts_of(s.cell).name;
  if (s.variant.any()) key += "+variant";  // what is proven of the plain cell is not said of it
  key += ' ';
  key += s.dtype == Dtype::kDouble ? "float64" : precisions[static_cast<int>(precision)];
  key += " H=" + std::to_string(s.H);
  if (s.P) key += " P=" + std::to_string(s.P);
  key += " D=" + std::to_string(s.D);
  key += " B<=" + std::to_string(bucket(s.B));
  key += " T<=" + std::to_string(bucket(s.T));
  key += s.I <= cuda::kMaxProjected ? " narrow" : " wide";
  key += training ? " training" : " inference";
  key += masked ? " masked" : s.batch_sizes ? " packed" : " full";
  return key;
}

bool Trust::replace(const std::string& lines) {
  std::map<std::string, Trusted> entries;
  std::istringstream from(lines);
  for (std::string line; std::getline(from, line);) {
    std::istringstream parts(line);
    std::string key, forward, backward;
    if (!std::getline(parts, key, '\t') || !std::getline(parts, forward, '\t') || !std::getline(parts, backward)) {
      return false;
    }
    const auto f = tier_named(forward), b = tier_named(backward);
    if (!f || !b) return false;
    entries[key] = {*f, *b};
  }
  entries_ = std::move(entries);
  return true;
}

const Trusted* Trust::find(const std::string& key) const {
  const auto entry = entries_.find(key);
  return entry == entries_.end() ? nullptr : &entry->second;
}

CudaPlan plan_trusted(const LayerShape& s, bool tf32, cuda::Pass pass, const cuda::CudaDevice& device, bool training,
                      const Trust& trust, const PlanTable& table) {
  const auto a_step_at_a_time = [&](const char* reason) {
    CudaPlan plan = plan_cuda(s, tf32, pass, device, Tier::kStepwise, table);
    plan.asked = Tier::kAuto;
    plan.reason = reason;
    return plan;
  };
  const char* never = only_stepwise(s);
  const Trusted* entry = trust.find(trust_key(s, tf32, training));
  if (!entry) return a_step_at_a_time(never ? never : kUnverified);
  const Tier tier = pass == cuda::Pass::kForward ? entry->forward : entry->backward;
  if (never && is_persistent(tier)) return a_step_at_a_time(never);
  if (tier == Tier::kAuto) return a_step_at_a_time("measured on this device: torch's own layer is as fast");
  if (tier == Tier::kStepwise) return a_step_at_a_time("measured on this device: a step at a time is the fastest");
  if (trust.quarantined(tier)) return a_step_at_a_time("its tier is in quarantine: see fastrnn.cuda_status()");
  CudaPlan plan = plan_cuda(s, tf32, pass, device, tier, table);
  // Fewer steps than two chunks have, or a batch that leaves too little idle: the same kernel, behind the product.
  if (!plan.possible && overlaps(tier)) plan = plan_cuda(s, tf32, pass, device, base_of(tier), table);
  plan.asked = Tier::kAuto;
  // Within a kind of layer the batch differs, and the last of its sizes may not fit.
  return plan.possible ? plan : a_step_at_a_time(plan.reason);
}

}  // namespace fastrnn
