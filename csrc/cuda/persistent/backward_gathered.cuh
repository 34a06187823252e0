// The gradient of h through the recurrent product where a replica's CTAs gather all gates' gradients: one CTA and the
// grid tier. A CTA holds the columns of the weights that belong to its own units.
#pragma once
#include "cuda/persistent/products.cuh"

namespace fastrnn::cuda {

// The steps' exchange and product of the backward kernel; ScatteredProduct has the same functions. In this order:
//     load_weights(..), begin(n)  before the first step; there will be n publications. False: nothing to do here
//     take(i,..)                  the gradient of the h that publication i's gates were computed from, for the
//                                 finishing warps' lanes; i = 0, 1, ...
//     write(i,..)                 a finishing warp's tile of one gate's gradient, into publication i
//     publish(i,..)               this CTA has written its tiles of publication i
//     end()                       after the last take
//     poison()                    0, or NaN once a take waited in vain
// All warps of a CTA call them, but for write.
template <class F, class Exchange, int kGates, int kTiles>
struct GatheredProduct {
  using T = typename F::Type;
  using P = Products<F, Exchange, Pass::kBackward, kGates, kTiles>;

  const Cut& cut;
  uint32_t* rest;
  Exchange exchange;
  P products;

  __device__ __forceinline__ GatheredProduct(const Cut& cut, uint32_t* shared, const Position& at)
      : cut(cut), rest(shared + front_words(0, 0)), exchange(cut, shared, rest, at.replica) {}

  static __device__ __forceinline__ Position place(const LayerShape& shape, const Cut& cut) {
    return Position::of<Exchange>(shape, cut);
  }

  __device__ __forceinline__ void load_weights(const T* w, int64_t stride, int H, const Position& at) {
    products.load_weights(w, stride, H, at, cut, rest);
  }
  __device__ __forceinline__ bool begin(int n) { return exchange.begin(n); }
  __device__ __forceinline__ void end() { exchange.end(); }
  __device__ __forceinline__ float poison() const { return exchange.poison; }

  __device__ __forceinline__ void take(int i, const Position& at, float (&through)[4]) {
    const uint32_t* operand = exchange.wait(i);
    float sums[1][4];
    products.sum(operand, rest, exchange.parts(), at, cut, exchange.poison, sums);
#pragma unroll
    for (int r = 0; r < 4; ++r) through[r] = sums[0][r];
  }
  __device__ __forceinline__ void write(int i, int gate, const Position& at, const Pair<T> (&rows)[2]) {
    exchange.template write<F>(i, P::offset(cut, at.row_tile, gate, at.unit_tile), at.lane, rows);
  }
  __device__ __forceinline__ void publish(int /*i*/, const Position& at) {
    if (at.finishes) exchange.publish();
  }
};

}  // namespace fastrnn::cuda
