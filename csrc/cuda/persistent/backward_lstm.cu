#include "cuda/persistent/backward.cuh"
#include "cuda/persistent/launch.cuh"

namespace fastrnn::cuda {

template <>
int launch_backward<Lstm>(const PersistentBackward& p, const PersistentGeometry& g, const Cut& cut, void* stream) {
  return with_instance(g, cut, [&]<Precision precision, class Exchange>() {
    return launch_persistent(persistent_backward_kernel<Lstm, precision, Exchange>, p, g, cut, stream);
  });
}

}  // namespace fastrnn::cuda
