// The contract of a cell: one time step of one hidden unit and its derivative.
//
// A cell is arithmetic and nothing else: no loop, no tensor, no memory. It is a template over a
// math policy M, which supplies the value type M::V (a scalar in a CUDA thread, a whole vector
// register in a CPU kernel) and the functions that the equations need, as static members:
//     V set(double), sigmoid(V), tanh(V), relu(V), positive_mask(V v, V d) = v <= 0 ? 0 : d
// NaN passes through each of them; positive_mask passes d where v is NaN, as torch's derivative of relu does.
// Backward takes derivatives from the results, 1 - y^2 and y (1 - y), and multiplies them by numbers that can be of
// any size. So where a function has converged, its result is exactly +-1 or 0 or 1, in approximate policies too.
// The same source is therefore the definition on every device.
//
// Every cell has
//     kGates      gate pre-activations a unit, in torch's order
//     kSaved      values a unit that training keeps for backward ("save gates" mode)
//     kHasCell    a second state c beside h
//     kSplit      the last gate's recurrent part is kept apart from its input part (GRU: the reset
//                 gate multiplies the recurrent part alone), so it arrives as `rec` and has a
//                 gradient of its own, `drec`
//
//     forward(pre, rec, h_prev, c_prev, saved, c, h)
//         pre[kGates]   x W_ih^T + b_ih + h_prev W_hh^T + b_hh; for a kSplit cell pre[kGates-1]
//                       holds the input part alone
//         rec           the last gate's recurrent part, b_hh included (kSplit cells only)
//         saved[kSaved], c, h   written
//
//     backward(saved, c_prev, c, h_prev, h, dh, dc, dpre, drec, dc_prev, dh_prev)
//         dh, dc        the whole gradient that reaches this step's h and c
//         dpre[kGates]  gradient of pre; for a kSplit cell dpre[kGates-1] is that of the input part
//         drec          gradient of rec (kSplit cells only)
//         dc_prev       gradient of c_prev (kHasCell only)
//         dh_prev       the part of h_prev's gradient that does not pass through the recurrent
//                       product (GRU's z * dh; zero elsewhere)
#pragma once

#ifdef __CUDACC__
#define FASTRNN_HD __host__ __device__ __forceinline__
#else
#define FASTRNN_HD __attribute__((always_inline)) inline
#endif
