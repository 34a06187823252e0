// Host twins of the assembly in csrc/cuda/persistent/ptx.cuh, by the same names.
#pragma once
#include "cuda/device/types.cuh"

namespace fastrnn::cuda {

struct MmaArguments {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

// One value of a register: bf16 and half pack two, the lower k in the lower half; TF32 ignores the low 13 bits.
inline float bf16_value(uint32_t word, int e) { return __uint_as_float(e ? word & 0xffff0000u : word << 16); }
inline float f16_value(uint32_t word, int e) { return __half2float({static_cast<uint16_t>(word >> 16 * e)}); }
inline float tf32_value(uint32_t word, int) { return __uint_as_float(word & 0xffffe000u); }

// What a tensor core makes of an exact sum: float, cut off towards zero.
inline float cut_off(double sum) {
  const float nearest = static_cast<float>(sum);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

// D (16x8) += A (16xK) B (Kx8) of a warp from PTX's fragments, with P values a register. lane = 4*g + c.
// A register r: row g + 8*(r&1), k = P*c + (r>>1)*K/2 on; B register r: k = P*c + r*K/2 on, column g;
// D register r: row g + 8*(r>>1), column 2*c + (r&1).
template <int P, float (*value)(uint32_t, int)>
void mma_of_warp(void** lanes, uint32_t) {
  constexpr int K = 8 * P;
  float A[16][K], B[K][8], D[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& m = *static_cast<MmaArguments*>(lanes[lane]);
    const int g = lane >> 2, c = lane & 3;
    for (int r = 0; r < 4; ++r) {
      for (int e = 0; e < P; ++e) A[g + 8 * (r & 1)][P * c + (r >> 1) * (K / 2) + e] = value(m.a[r], e);
      D[g + 8 * (r >> 1)][2 * c + (r & 1)] = m.d[r];
    }
    for (int r = 0; r < 2; ++r) {
      for (int e = 0; e < P; ++e) B[P * c + r * (K / 2) + e][g] = value(m.b[r], e);
    }
  }
  // PTX leaves the order and the rounding of the sum open. Ampere's tensor cores add half of K at a time, exactly
  // but for the last bit, which they cut off: errors that grow with the number of products, unlike rounding's.
  for (int i = 0; i < 16; ++i) {
    for (int half = 0; half < K; half += K / 2) {
      double sums[8] = {};
      for (int k = half; k < half + K / 2; ++k) {
        for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(A[i][k]) * B[k][j];
      }
      for (int j = 0; j < 8; ++j) D[i][j] = cut_off(D[i][j] + sums[j]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& m = *static_cast<MmaArguments*>(lanes[lane]);
    for (int r = 0; r < 4; ++r) m.d[r] = D[(lane >> 2) + 8 * (r >> 1)][2 * (lane & 3) + (r & 1)];
  }
}

inline void mma_bf16(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1, EMU_LOC) {
  MmaArguments m{d, a, {b0, b1}};
  emu::collective(~0u, "mma.bf16", &m, mma_of_warp<2, bf16_value>, loc);
}
inline void mma_f16(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1, EMU_LOC) {
  MmaArguments m{d, a, {b0, b1}};
  emu::collective(~0u, "mma.f16", &m, mma_of_warp<2, f16_value>, loc);
}
inline void mma_tf32(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1, EMU_LOC) {
  MmaArguments m{d, a, {b0, b1}};
  emu::collective(~0u, "mma.tf32", &m, mma_of_warp<1, tf32_value>, loc);
}
inline uint32_t to_tf32(float v) { return v != v ? 0x7fffe000u : (__float_as_uint(v) + 0x1000u) & 0xffffe000u; }

template <class Vector>
Vector load_vector(const Vector* p, EMU_LOC) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Vector)) {
    emu::fail(emu::fmt("misaligned load of %zu bytes from %p", sizeof(Vector), (const void*)p), &loc);
  }
  return *p;
}

// As wrong as PTX allows, always to the same side: opt.side. A tanh is not above 1, though.
inline float off_by(double right, double error) { return static_cast<float>(right * (1 + emu::opt.side * error)); }
inline float tanh_approx(float v) { return std::clamp(off_by(std::tanh((double)v), 0x1p-11), -1.0f, 1.0f); }
inline float flushed(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; }
inline float exp2_approx(float v) { return flushed(off_by(std::exp2((double)flushed(v)), 0x1p-22)); }
inline float reciprocal_approx(float v) { return flushed(off_by(1.0 / flushed(v), 0x1p-23)); }

template <class Int>
void forget(Int&) {}

constexpr bool kHasClusters = true;
inline uint32_t shared_address(const void* p) { return emu::to_shared(p); }
inline uint32_t peer_address(uint32_t address, int rank, EMU_LOC) { return emu::mapa(address, rank, loc); }
inline void cluster_barrier(EMU_LOC) {
  emu::cluster_arrive(loc);
  emu::cluster_wait(loc);
}
inline void barrier_init(uint32_t barrier, EMU_LOC) { emu::mbar_init(barrier, 1, loc); }
inline void barrier_init_fence() {}
inline void barrier_expect(uint32_t barrier, uint32_t bytes, EMU_LOC) { emu::mbar_arrive(barrier, bytes, loc); }
inline bool try_phase(uint32_t barrier, int parity, EMU_LOC) { return emu::mbar_wait(barrier, parity, loc, true); }
EMU_NOSAN inline void raise_flag(uint32_t address, EMU_LOC) {
  *static_cast<volatile uint32_t*>(emu::at(emu::target(address, loc), address & 0xffffff, 4, loc)) = 1;
  emu::S.broken = true;  // a wait has given up
}
EMU_NOSAN inline bool flag_is_raised(uint32_t address, EMU_LOC) {
  return *static_cast<volatile uint32_t*>(emu::at(emu::S.cur->blk, address, 4, loc)) != 0;
}
template <class Words>
void push(uint32_t address, Words v, uint32_t barrier, EMU_LOC) {
  emu::st_async(address, &v, sizeof v, barrier, loc);
}

inline void add_release(uint64_t* flag, uint64_t n) {
  if (!emu::lost()) atomicAdd(flag, n);
}
inline uint64_t load_acquire(const uint64_t* flag, EMU_LOC) { return emu::poll(flag, loc, true); }
EMU_NOSAN inline void or_relaxed(uint64_t* flag, uint64_t bits) {
  emu::maybe_yield();
  *flag |= bits;
}
inline void copy_exchanged(uint32_t* shared, const uint32_t* p, EMU_LOC) {
  emu::cp_async_exchanged(emu::to_shared(shared), p, loc);
}
// As those of the flag would be without release and acquire: for planted faults.
EMU_NOSAN inline void add_relaxed(uint64_t* flag, uint64_t n) {
  emu::maybe_yield();
  *flag += n;
}
inline uint64_t poll_relaxed(const uint64_t* flag, EMU_LOC) { return emu::poll(flag, loc, true, false); }

// The clock goes on when nothing else can.
inline uint32_t ticks_now() { return static_cast<uint32_t>(emu::S.clock >> 20); }
constexpr int kPollsALook = 1;  // a poll takes until the next tick
inline void take_a_nap(EMU_LOC) { emu::nap(loc); }

}  // namespace fastrnn::cuda
