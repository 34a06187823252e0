// The weights of one direction as the forward pass reads them: packed at every call, in its workspace, or
// packed once and kept by the caller (rnn_pack), for steps whose time is the reading of the weights.
#pragma once
#include "cpu/product/operand.inl"
#include "cpu/team.h"

namespace fastrnn {
namespace {

template <class T, template <class> class CellOf, class Operand>
struct PackedWeights {
  using E = typename Operand::E;
  using C = CellOf<VectorMath<T>>;
  static constexpr int W = Simd<T>::W;
  static constexpr int G = C::kGates;
  static constexpr int kPartGates = C::kVariant ? G : gates_a_tile(G), kParts = G / kPartGates;  // of a gate panel
  static constexpr int kUnits = G == 1 ? kRnnUnits : 1;  // blocks of units a gate panel

  // Where a gate lies in a row of a part of a panel's tile.
  struct Lie {
    int units;      // blocks
    int vectors;    // of a row of a part
    int gate_step;  // elements from one gate of a block to the next
    bool close;     // the gates of a last block, one behind the other

    // Of block u's gate g in row m of a tile of so many rows, whose parts lie one after the other.
    FASTRNN_INLINE int64_t at(int64_t m, int64_t rows, int u, int g) const {
      return (g / kPartGates * rows + m) * vectors * W + u * kPartGates * W + g % kPartGates * gate_step;
    }
  };
  static Lie lie_of(const Panels<T>& units, int64_t panel) {
    const int blocks = units.blocks_of(panel), lanes = units.lanes(units.first_block(panel));
    if (Operand::kClosesGates && !C::kVariant && kUnits == 1 && lanes < W) {
      const int vectors = static_cast<int>(ceil_div(kPartGates * lanes, W));
      if (vectors < kPartGates) return {1, vectors, lanes, true};
    }
    return {blocks, blocks * kPartGates, W, false};
  }

  E* w_ih = nullptr;      // gate panels; null where they are not packed ahead, as w_hh
  E* w_hh = nullptr;      // gate panels
  E* w_hr = nullptr;      // gate panels with one gate, projection only
  T* bias = nullptr;      // [block][G][W], what the input projection starts from
  T* bias_rec = nullptr;  // [block][W], what a split gate's recurrent part starts from

  static Panels<T> units_of(const LayerShape& s) { return {s.H, kUnits}; }
  static Panels<T> outputs_of(const LayerShape& s) { return {s.out_size(), kPanelVectors}; }
  // Elements of a block of units in a gate panel.
  static int64_t panel_size(int64_t K) { return G * W * Operand::depth(K); }

  // Takes room for the pieces; with an arena that only measures, for their size.
  void lay_out(Arena& arena, const LayerShape& s, bool input, bool state) {
    const int64_t blocks = units_of(s).blocks();
    if (input) w_ih = arena.take<E>(blocks * panel_size(s.I));
    if (state) w_hh = arena.take<E>(blocks * panel_size(s.out_size()));
    if (s.P) w_hr = arena.take<E>(outputs_of(s).blocks() * W * Operand::depth(s.H));
    bias = arena.take<T>(blocks * G * W);
    bias_rec = arena.take<T>(C::kSplit ? blocks * W : 0);
  }

  // Points into what was packed before. Nothing is written there.
  void read(const void* packed, const LayerShape& s) {
    Arena arena{const_cast<char*>(static_cast<const char*>(packed))};
    lay_out(arena, s, true, true);
  }

  static size_t bytes(const LayerShape& s) {
    Arena arena;
    PackedWeights().lay_out(arena, s, true, true);
    return arena.used;
  }

  // One gate panel of W_ih or W_hh, which has K columns.
  static void pack_panel(const void* weight, const LayerShape& s, int64_t K, int64_t panel, E* out) {
    const Panels<T> units = units_of(s);
    const Lie lie = lie_of(units, panel);
    Operand::pack(weight, K, s.dtype, G, units, panel, K, out, kPartGates, lie.close ? lie.vectors : 0);
  }

  // Fills all of the pieces that were laid out.
  void pack(const DirectionWeights& weights, const LayerShape& s) const {
    pack(weights, s, {0, units_of(s).count(), 1}, {0, outputs_of(s).count(), 1});
  }
  // Fills these panels of them: of the units', and of a projection's outputs.
  void pack(const DirectionWeights& weights, const LayerShape& s, Turns of_units, Turns of_outputs) const {
    const Panels<T> units = units_of(s), outputs = outputs_of(s);
    for (int64_t panel = of_units.begin; panel < of_units.end; panel += of_units.step) {
      const int64_t first = units.first_block(panel);
      if (w_ih) pack_panel(weights.w_ih, s, s.I, panel, w_ih + first * panel_size(s.I));
      if (w_hh) pack_panel(weights.w_hh, s, s.out_size(), panel, w_hh + first * panel_size(s.out_size()));
      const Lie lie = lie_of(units, panel);
      for (int u = 0; u < units.blocks_of(panel); ++u) {
        pack_gate_bias<T, C>(weights, s, units, first + u, bias, bias_rec, lie.close ? kPartGates : G, lie.vectors,
                             lie.gate_step);
      }
    }
    if (!s.P) return;
    for (int64_t panel = of_outputs.begin; panel < of_outputs.end; panel += of_outputs.step) {
      Operand::pack(weights.w_hr, s.H, s.dtype, 1, outputs, panel, s.H,
                    w_hr + outputs.first_block(panel) * W * Operand::depth(s.H));
    }
  }
};

}  // namespace
}  // namespace fastrnn
