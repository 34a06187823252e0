// Packing weights once, as they are or quantized.
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "cpu/ops/packed.h"
#include "ops/rnn_call.h"

namespace fastrnn {
namespace {

// A layer of one step and one row, with tensors enough for check_layer to look at the weights.
void check_weights(CheckedLayer& checked, const std::vector<Tensor>& weights, const std::string& cell, bool bias) {
  check(weights.size() >= 2, "weights: expected w_ih, w_hh and what else the layer has, got ", weights.size(),
        " tensors");
  for (int i = 0; i < 2; ++i) {
    check(weights[i].dim() == 2 && weights[i].is_cpu(), "weights[", i, "]: expected a matrix on the CPU, got shape ",
          shape_of(weights[i]), ", ", kind_of(weights[i]));
  }
  parse_dtype(weights[0], "weights[0]");
  const auto blank = [&](int64_t size) { return empty({1, 1, size}, weights[0].scalar_type()); };
  std::optional<Tensor> c0;
  if (parse_cell(cell) == CellKind::kLstm) c0 = blank(weights[0].size(0) / 4);
  const std::optional<Tensor> none;
  const Tensor x = blank(weights[0].size(1)), h0 = blank(weights[1].size(1));
  check_layer(checked, {x, h0, c0, weights, none, none, none, cell, bias});
}

PackedHeader header_of(const LayerShape& s) {
  PackedHeader header{};
  header.cell = s.cell;
  header.dtype = s.dtype;
  header.I = s.I;
  header.H = s.H;
  header.P = s.P;
  return header;
}

char* pieces_of(const Tensor& packed) { return static_cast<char*>(packed.data_ptr()) + kPackedHeaderBytes; }

Tensor rnn_pack(std::vector<Tensor> weights, std::string cell, bool bias) {
  CheckedLayer checked;
  check_weights(checked, weights, cell, bias);
  const LayerShape& s = checked.shape;
  for (Tensor& weight : weights) weight = as_contiguous(weight);
  DirectionWeights pointers;
  point_at(pointers, weights.data(), s);

  const KernelTable& kernels = kernels_in_use();
  PackedHeader header = header_of(s);
  std::strncpy(header.isa, kernels.name, sizeof(header.isa) - 1);
  const Tensor packed = new_packed(header, kernels);
  kernels.pack(s, pointers, pieces_of(packed));
  return packed;
}

// ---- quantized ----------------------------------------------------------------------------------

// f(gate, unit, row of the weight, place in the [block][G][16] of a row)
template <class F>
void for_rows(int64_t units, int G, F&& f) {
  for (int64_t unit = 0; unit < units; ++unit) {
    for (int g = 0; g < G; ++g) {
      const int64_t block = unit / kQuantizedBlock;
      f(g, unit, g * units + unit, (block * G + g) * kQuantizedBlock + unit % kQuantizedBlock);
    }
  }
}

// Elements of e bytes, `columns` of them together.
void pack_matrix(const Tensor& weight, int64_t units, int G, Storage storage, char* to) {
  const int64_t K = weight.size(1), columns = quantized_columns(storage), e = 4 / columns;
  const char* const from = static_cast<const char*>(weight.data_ptr());
  const int64_t block_bytes = QuantizedWeights::block_bytes(K, G, storage);
  for_rows(units, G, [&](int g, int64_t unit, int64_t row, int64_t) {
    char* out = to + unit / kQuantizedBlock * block_bytes + (g * kQuantizedBlock + unit % kQuantizedBlock) * 4;
    for (int64_t k = 0; k < K; k += columns, out += G * kQuantizedBlock * 4) {
      const int64_t n = k + columns < K ? columns : K - k;
      std::memcpy(out, from + (row * K + k) * e, static_cast<size_t>(n * e));
    }
  });
}

void pack_scales(const Tensor& weight, const Tensor& scale, int64_t units, int G, const char* name,
                 const QuantizedMatrix& to) {
  const int64_t K = weight.size(1);
  const auto* const q = static_cast<const int8_t*>(weight.data_ptr());
  const auto* const scales = static_cast<const float*>(scale.data_ptr());
  for_rows(units, G, [&](int, int64_t, int64_t row, int64_t at) {
    check(std::isfinite(scales[row]), name, ": expected finite scales, got ", scales[row], " for row ", row);
    int32_t sum = 0;
    for (int64_t k = 0; k < K; ++k) {
      check(q[row * K + k] != -128, name, ": expected int8 from -127 to 127, got -128 in row ", row);
      sum += q[row * K + k];
    }
    to.scale[at] = scales[row];
    to.offset[at] = -128 * sum;
  });
}

Tensor rnn_pack_quantized(Tensor w_ih, Tensor w_hh, std::optional<Tensor> w_hr, std::optional<Tensor> scale_ih,
                          std::optional<Tensor> scale_hh, std::optional<Tensor> scale_hr, std::optional<Tensor> b_ih,
                          std::optional<Tensor> b_hh, std::string cell) {
  LayerShape s;
  s.cell = parse_cell(cell);
  const int G = gates_of(s.cell);
  const bool lstm = s.cell == CellKind::kLstm;
  const bool int8 = w_ih.scalar_type() == ScalarType::Char;
  check(int8 || w_ih.scalar_type() == ScalarType::BFloat16, "w_ih: expected int8 or bfloat16, got ", kind_of(w_ih));
  const Storage storage = int8 ? Storage::kInt8 : Storage::kBFloat16;
  check(w_ih.dim() == 2 && w_ih.is_cpu() && w_ih.size(0) > 0 && w_ih.size(0) % G == 0, "w_ih: expected shape (", G,
        " * hidden_size, input_size) on the CPU, got ", shape_of(w_ih), ", ", kind_of(w_ih));
  s.H = w_ih.size(0) / G;
  s.I = w_ih.size(1);
  if (w_hr) {
    check(lstm && w_hr->dim() == 2 && w_hr->size(0) > 0, "w_hr: expected shape (proj_size, hidden_size) for an LSTM");
    s.P = w_hr->size(0);
  }
  const auto prepared = [&](Tensor& tensor, const char* name, const ExpectedShape& shape, ScalarType type) {
    check_shape(tensor, name, shape);
    check(tensor.scalar_type() == type && tensor.is_cpu(), name, ": expected the dtype of its kind on the CPU, got ",
          kind_of(tensor));
    tensor = as_contiguous(tensor);
  };
  const ScalarType stored = w_ih.scalar_type();
  prepared(w_ih, "w_ih", {G * s.H, s.I}, stored);
  prepared(w_hh, "w_hh", {G * s.H, s.out_size()}, stored);
  if (w_hr) prepared(*w_hr, "w_hr", {s.P, s.H}, stored);
  check(b_ih.has_value() == b_hh.has_value(), "b_hh: expected both biases or none");
  if (b_ih) {
    prepared(*b_ih, "b_ih", {G * s.H}, ScalarType::Float);
    prepared(*b_hh, "b_hh", {G * s.H}, ScalarType::Float);
  }
  if (int8) {
    check(scale_ih && scale_hh && scale_hr.has_value() == w_hr.has_value(),
          "scale_ih: expected a scale for each row of every int8 weight");
    prepared(*scale_ih, "scale_ih", {G * s.H}, ScalarType::Float);
    prepared(*scale_hh, "scale_hh", {G * s.H}, ScalarType::Float);
    if (w_hr) prepared(*scale_hr, "scale_hr", {s.P}, ScalarType::Float);
    for (const int64_t columns : {s.I, s.out_size(), s.H}) {
      check(columns <= kMostInt8Columns, "w_ih: expected at most ", kMostInt8Columns,
            " columns in a weight of int8, whose sums have 32 bits, got ", columns);
    }
  }

  PackedHeader header = header_of(s);
  header.storage = storage;
  const Tensor packed = new_packed(header, kernels_in_use());
  QuantizedWeights to;
  to.read(pieces_of(packed), s, storage, G, facts_of(s.cell).split);
  pack_matrix(w_ih, s.H, G, storage, to.w_ih.data);
  pack_matrix(w_hh, s.H, G, storage, to.w_hh.data);
  if (w_hr) pack_matrix(*w_hr, s.P, 1, storage, to.w_hr.data);
  if (int8) {
    pack_scales(w_ih, *scale_ih, s.H, G, "w_ih", to.w_ih);
    pack_scales(w_hh, *scale_hh, s.H, G, "w_hh", to.w_hh);
    if (w_hr) pack_scales(*w_hr, *scale_hr, s.P, 1, "w_hr", to.w_hr);
  }
  if (b_ih) {
    const auto* const input = static_cast<const float*>(b_ih->data_ptr());
    const auto* const recurrent = static_cast<const float*>(b_hh->data_ptr());
    for_rows(s.H, G, [&](int g, int64_t unit, int64_t row, int64_t at) {
      const bool split = facts_of(s.cell).split && g == G - 1;
      to.bias[at] = split ? input[row] : input[row] + recurrent[row];
      if (split) to.bias_rec[unit] = recurrent[row];
    });
  }
  return packed;
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  fastrnn::implement_with_list(m, "rnn_pack", TORCH_BOX(&fastrnn::rnn_pack));
  m.impl("rnn_pack_quantized", TORCH_BOX(&fastrnn::rnn_pack_quantized));
}
