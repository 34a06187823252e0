#include "cpu/ops/quantized.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include "cpu/isa/arm.h"
#endif

namespace fastrnn {
namespace {

#if defined(__x86_64__)
bool is_avx512(const KernelTable& table) {
#if defined(__linux__)
  if (&table == &kAmxKernels) return true;
#endif
  return &table == &kAvx512Bf16Kernels || &table == &kAvx512Kernels;
}
#endif

}  // namespace

const QuantizedKernels& quantized_kernels(const KernelTable& table) {
#if defined(__x86_64__)
  if (is_avx512(table)) return kAvx512Quantized;
  if (&table == &kAvx2Kernels) return kAvx2Quantized;
#elif defined(__aarch64__)
  if (&table == &kNeonBf16Kernels || &table == &kNeonKernels) return kNeonQuantized;
#endif
  return kBaselineQuantized;
}

namespace {

#if defined(__x86_64__)
// Compilers' own question has no word for it everywhere.
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}
bool has_avx512_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & (1u << 11));
}
#endif

}  // namespace

bool has_int8_dot(const KernelTable& table) {
#if defined(__x86_64__)
  // Asked once: a virtual machine takes some 15 us to answer.
  static const bool avx = has_avx_vnni(), avx512 = has_avx512_vnni();
  if (is_avx512(table)) return avx512;
  return &table == &kAvx2Kernels && avx;
#elif defined(__aarch64__)
  static const bool sdot = has_sdot();
  return &table != &kBaselineKernels && sdot;
#else
  return false;
#endif
}

}  // namespace fastrnn
