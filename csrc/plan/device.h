// What a plan for a GPU speaks of: the device, as far as plans look at it, and how products are computed there.
#pragma once
#include <cstdint>

namespace fastrnn::cuda {

// How the recurrent products are computed. State, gates and sums are float in all of them.
enum class Precision : int {
  kFloat32 = 0,   // float layers within float's tolerance: three TF32 products a product
  kTf32 = 1,      // float layers whose products may round their operands to TF32
  kBFloat16 = 2,  // layers of bfloat16
  kHalf = 3,      // layers of half
};
// Input features up to which the forward kernel can make x's part of the gates itself.
constexpr int64_t kMaxProjected = 64;

enum class Pass : int { kForward = 0, kBackward = 1 };

struct CudaDevice {
  int compute_capability = 0;  // 80, 86, 90, ...
  int sms = 0;
  int64_t shared_bytes_per_block_optin = 0;
  int64_t l2_bytes = 0;
  bool cooperative_launch = false;
  int max_cluster = 0;  // CTAs of the largest thread block cluster that is worth trying; 0: none
};

// What CudaDevice::max_cluster begins with. Whether a cluster of 16 fits just now, the launch finds out.
constexpr int max_cluster_of(int compute_capability) { return compute_capability >= 90 ? 16 : 0; }

// Clusters of so many CTAs, an SM each, that a device runs at once: an estimate for plans. A cluster does not leave
// its GPC, and those of Hopper and Blackwell have up to 18 SMs, of which 16 are in clusters.
constexpr int clusters_at_once(const CudaDevice& device, int ctas) {
  const int clusters = device.sms * (16 / ctas) / 18;
  return clusters > 1 ? clusters : 1;
}

}  // namespace fastrnn::cuda
