// The operators about the devices themselves: what may run there unasked, what ran, what went wrong.
#include <sstream>

#include "cuda/device/upload.h"
#include "cuda/stepwise/graphs.h"
#include "cuda/torch/sequence.h"

namespace fastrnn::cuda {
namespace {

void cuda_trust(int64_t device, const std::string& lines) {
  DeviceTrust& here = trust_of(static_cast<int>(device));
  const std::lock_guard lock(here.mutex);
  check(here.trust.replace(lines), "lines: expected a key and the tiers of two passes each, got ", lines);
}

void cuda_quarantine(int64_t device, const std::string& tier, const std::string& why) {
  DeviceTrust& here = trust_of(static_cast<int>(device));
  const std::lock_guard lock(here.mutex);
  if (tier.empty()) {
    here.trust.release();
    here.warned = {};
    return;
  }
  const std::optional<Tier> named = tier_named(tier);
  check(named.has_value(), "tier: expected the name of one, got '", tier, "'");
  here.trust.quarantine(*named, why);
}

std::string cuda_quarantined(int64_t device) {
  DeviceTrust& here = trust_of(static_cast<int>(device));
  const std::lock_guard lock(here.mutex);
  std::string out;
  for (const auto& [tier, why] : here.trust.quarantined()) out += std::string(tier_name(tier)) + '\t' + why + '\n';
  return out;
}

std::string cuda_ran() {
  std::ostringstream out;
  for (int tier = 1; tier < kTiers; ++tier) {
    for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
      out << tier_name(static_cast<Tier>(tier)) << '\t' << pass_name(pass) << '\t'
          << ran()[tier][static_cast<int>(pass)].load() << '\n';
    }
  }
  return out.str();
}

void cuda_clear_ran() {
  for (auto& passes : ran()) {
    for (auto& number : passes) number = 0;
  }
}

std::string cuda_status(int64_t device) {
  trust_of(static_cast<int>(device));  // which checks the index
  return taken_status(static_cast<int>(device));
}

bool cuda_has_image(int64_t device) {
  const DeviceGuard guard(static_cast<int>(device));
  bool found = false;
  check_cuda(has_image(found));
  return found;
}

int64_t cuda_release_scratch() { return release_graphs(); }

}  // namespace
}  // namespace fastrnn::cuda

STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("cuda_trust", TORCH_BOX(&fastrnn::cuda::cuda_trust));
  m.impl("cuda_quarantine", TORCH_BOX(&fastrnn::cuda::cuda_quarantine));
  m.impl("cuda_quarantined", TORCH_BOX(&fastrnn::cuda::cuda_quarantined));
  m.impl("cuda_ran", TORCH_BOX(&fastrnn::cuda::cuda_ran));
  m.impl("cuda_clear_ran", TORCH_BOX(&fastrnn::cuda::cuda_clear_ran));
  m.impl("cuda_status", TORCH_BOX(&fastrnn::cuda::cuda_status));
  m.impl("cuda_has_image", TORCH_BOX(&fastrnn::cuda::cuda_has_image));
  m.impl("cuda_release_scratch", TORCH_BOX(&fastrnn::cuda::cuda_release_scratch));
}
