// The weights of a variant's stages in one direction as the forward pass reads them: packed at every call, in its
// workspace, or once and kept by the caller (rnn_pack), behind those of cpu/product/panels.inl.
#pragma once
#include "cpu/product/panels.inl"
#include "cpu/rnn/heads.inl"
#include "cpu/rnn/row_sums.inl"

namespace fastrnn {
namespace {

template <class T, template <class> class CellOf, class Operand>
struct StageWeights {
  using Plain = PackedWeights<T, CellOf, Operand>;
  using E = typename Operand::E;
  using C = CellOf<VectorMath<T>>;
  static constexpr int W = Simd<T>::W, G = C::kGates;

  // Gate panels of the recurrent weights, those of a second phase apart; and vectors of the padded units.
  E *first = nullptr, *second = nullptr;
  T* vectors[kStageVectors<G>] = {};

  // Gates of the first phase.
  static int first_gates(const LayerShape& s) { return s.variant.reset_before ? G - 1 : G; }

  void lay_out(Arena& arena, const LayerShape& s) {
    const Panels<T> units = Plain::units_of(s);
    const int64_t width = units.blocks() * W, depth = Heads<T>(s).depth(units, s.out_size());
    first = arena.take<E>(width * first_gates(s) * depth);
    second = arena.take<E>(width * (G - first_gates(s)) * depth);
    for (T*& vector : vectors) vector = arena.take<T>(s.variant.peephole || s.variant.norm ? width : 0);
  }

  // Fills every `shares`th panel from `share` on, and as large a part of the vectors.
  void pack(const DirectionWeights& weights, const LayerShape& s, int64_t share, int64_t shares) const {
    const Panels<T> units = Plain::units_of(s);
    const Heads<T> heads(s);
    const int64_t K = s.out_size(), depth = heads.depth(units, K);
    const int phase = first_gates(s);
    for (int64_t panel = share; panel < units.count(); panel += shares) {
      const int64_t at = units.first_block(panel) * W * depth;
      const auto pack_gates = [&](int g0, int gates, E* to) {
        if (!gates) return;
        if (heads.heads > 1) return heads.pack_gates(weights.w_hh, s.dtype, g0, gates, units, panel, to);
        const char* rows = static_cast<const char*>(weights.w_hh);
        Operand::pack(rows + g0 * s.H * K * static_cast<int64_t>(size_of(s.dtype)), K, s.dtype, gates, units, panel,
                      K, to);
      };
      pack_gates(0, phase, first + at * phase);
      pack_gates(phase, G - phase, second + at * (G - phase));
    }
    const int64_t blocks = units.blocks();
    load_stage_vectors<T, G>(weights, s, units, {blocks * share / shares, blocks * (share + 1) / shares}, vectors);
  }
};

}  // namespace
}  // namespace fastrnn
