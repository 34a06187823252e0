// What an Arm processor has beyond NEON, which all of aarch64 have. Linux and macOS tell each in a way of its own.
#pragma once

#if defined(__APPLE__)
#include <sys/sysctl.h>
#include <sys/types.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

namespace fastrnn {

// BFDOT and BFMMLA on bfloat16, which come together.
[[maybe_unused]] static inline bool has_bf16_dot() {
#if defined(__APPLE__)
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &value, &size, nullptr, 0) == 0 && value != 0;
#elif defined(__linux__)
  constexpr unsigned long kBf16 = 1 << 14;  // HWCAP2_BF16, which older headers do not have
  return getauxval(AT_HWCAP2) & kBf16;
#else
  return false;
#endif
}

// SDOT on int8.
[[maybe_unused]] static inline bool has_sdot() {
#if defined(__APPLE__)
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
#elif defined(__linux__)
  constexpr unsigned long kDotProduct = 1 << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProduct;
#else
  return false;
#endif
}

}  // namespace fastrnn
