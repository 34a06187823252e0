// The stepwise kernels with policies that the library does not have, in place of csrc/cuda/stepwise/kernels.cu: the
// LSTM's gates look at c, the GRU's h keeps a part of the one before. What saves values of its own needs a layer that
// makes room for them.
#include "cuda/stepwise/kernels.cuh"
#include "stages_policies.h"

namespace fastrnn::cuda {
template <class M>
using PeekingLstm = typename WithPolicies<LstmCell, stages::Peek, PlainState>::template Of<M>;
template <class M>
using KeepingGru = typename WithPolicies<GruCell, PlainGates, stages::KeepH>::template Of<M>;
}  // namespace fastrnn::cuda

#define LstmCell PeekingLstm
#define GruCell KeepingGru
#include "cuda/stepwise/kernels.cu"
