#include "stream/isa/choose.h"

#include <cstdlib>
#include <string>

#include "stream/error.h"

namespace fastrnn::stream {

std::vector<const StreamKernels*> runnable_kernels() {
  std::vector<const StreamKernels*> found;
#if defined(__x86_64__)
  for (const StreamKernels* kernels : {&kAvx512Stream, &kAvx2Stream}) {
    if (kernels->runs_here()) found.push_back(kernels);
  }
#elif defined(__aarch64__)
  found.push_back(&kNeonStream);
#endif
  found.push_back(&kBaselineStream);
  return found;
}

const StreamKernels& choose_kernels() {
  const std::vector<const StreamKernels*> here = runnable_kernels();
  const char* asked = std::getenv("FASTRNN_CPU_ISA");
  if (!asked || !*asked) return *here.front();
  // What is named for its bfloat16 instructions computes float32 without them.
  constexpr std::string_view kDot = "_bf16";
  std::string_view name = asked;
  if (name.ends_with(kDot)) name.remove_suffix(kDot.size());
  std::string known;
  for (const StreamKernels* kernels : here) {
    if (name == kernels->name) return *kernels;
    known += (known.empty() ? "" : ", ") + std::string(kernels->name);
  }
  fail("FASTRNN_CPU_ISA: expected an instruction set of this machine, ", known, ", got '", printable(asked), "'");
}

}  // namespace fastrnn::stream
