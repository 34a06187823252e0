#include "cuda/persistent/forward.cuh"
#include "cuda/persistent/launch.cuh"

namespace fastrnn::cuda {

template <>
int launch_forward<Rnn>(const PersistentForward& p, const PersistentGeometry& g, const Cut& cut, void* stream) {
  return with_instance(g, cut, [&]<Precision precision, class Exchange>() {
    return launch_persistent(persistent_forward_kernel<Rnn, precision, Exchange>, p, g, cut, stream);
  });
}

}  // namespace fastrnn::cuda
