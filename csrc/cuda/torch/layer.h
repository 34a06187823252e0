// A layer's checked arguments, ready for the passes of the CUDA ops.
#pragma once
#include <optional>
#include <vector>

#include "cuda/device/prepare.h"
#include "cuda/device/upload.h"
#include "cuda/torch/device_properties.h"
#include "cuda/torch/tensors.h"
#include "ops/rnn_args.h"

namespace fastrnn::cuda {

class Layer {
 public:
  // The arguments must outlive the layer.
  Layer(const RnnArguments& in, const CheckedLayer& checked, bool tf32_allowed)
      : checked_(checked), weights_(in.weights) {
    const Tensor& x = in.x;
    type = x.scalar_type();
    tf32 = tf32_allowed && type == ScalarType::Float;
    compute = compute_type(shape().dtype);
    device = x.get_device_index();
    stream = current_stream(device);
    N = shape().rows();
    G = gates_of(shape().cell);
    saved = saved_of(shape());
    recurrent_gates = recurrent_gates_of(shape().cell);
    rows_ = view(as_contiguous(x), {N, shape().I}, {shape().I, 1});
  }

  // shape().T counts the steps of the longest row: a padded batch with lengths may have more.
  const LayerShape& shape() const { return checked_.shape; }
  bool has_lengths() const { return shape().order; }
  bool is(CellKind cell) const { return shape().cell == cell; }
  StepShape step_shape() const { return {shape().cell, shape().dtype, N, shape().B, shape().H, shape().D}; }

  // The rows that are s steps into each direction's own time: step s of the one, step T-1-s of the
  // other. None for s = -1, the initial state.
  StepRows rows_at(int64_t s) const {
    StepRows rows = {.t = {-1, -1}};
    if (s < 0) return rows;
    for (int d = 0; d < shape().D; ++d) {
      const int64_t t = d ? shape().T - 1 - s : s;
      rows.t[d] = t;
      rows.first[d] = shape().packed() ? shape().row_offsets[t] : t * shape().B;
      rows.count[d] = shape().packed() ? shape().batch_sizes[t] : shape().B;
    }
    return rows;
  }

  // On the device, uploaded by the first call.
  const RowTable& table() const {
    if (!table_) {
      const LayerShape& s = shape();
      table_ = RowTable{.T = s.T, .B = s.B, .resets = s.resets};
      const int64_t offsets = s.packed() ? s.T + 1 : 0;
      if (s.batch_sizes) {
        std::vector<int64_t> lengths(s.B);
        for (int64_t t = 0; t < s.T; ++t) {
          for (int64_t b = s.active(t + 1); b < s.active(t); ++b) lengths[s.row_of(b)] = t + 1;
        }
        on_device_ = empty({offsets + s.B}, ScalarType::Long, device);
        int64_t* const to = static_cast<int64_t*>(on_device_->data_ptr());
        check_cuda(upload(s.row_offsets, offsets, to, stream));
        check_cuda(upload(lengths.data(), s.B, to + offsets, stream));
        table_->row_offsets = offsets ? to : nullptr;
        table_->lengths = to + offsets;
      }
    }
    return *table_;
  }

  // Zeroes what lies beyond the rows' lengths of a contiguous (T,B,.) or (D,T*B,.) tensor.
  void clear_padding(const Tensor& tensor, int directions) const {
    if (!has_lengths() || !tensor.numel()) return;
    const int64_t width = tensor.size(tensor.dim() - 1);
    check_cuda(cuda::clear_padding(table(), shape().padded_steps, directions, width, tensor.element_size(),
                                   tensor.data_ptr(), stream));
  }

  Tensor make(const Sizes& sizes) const { return empty(sizes, type, device); }
  Tensor make_compute(const Sizes& sizes) const { return empty(sizes, compute, device); }
  Tensor make_zeros(const Sizes& sizes, ScalarType of_type) const {
    Tensor out = empty(sizes, of_type, device);
    zero(out);
    return out;
  }

  const Tensor& x() const { return rows_; }  // (N,I)
  // x as a factor of the weights' gradient, where what lies beyond a row's length meets zeros: it may not be finite.
  Tensor finite_x() const {
    if (!has_lengths()) return x();
    const Tensor out = make({N, shape().I});
    copy(out, x());
    clear_padding(out, 1);
    return out;
  }
  const Tensor& w_ih(int d) const { return weight(d, 0); }
  const Tensor& w_hh(int d) const { return weight(d, 1); }
  const Tensor& b_ih(int d) const { return weight(d, 2); }
  const Tensor& b_hh(int d) const { return weight(d, 3); }
  const Tensor& w_hr(int d) const { return weight(d, shape().bias ? 4 : 2); }

  // The tensors of a variant: those of a direction behind its plain ones, and the masks behind all directions.
  const Tensor& variant_weight(int d, int i) const { return weight(d, plain_weights(shape()) + i); }
  const Tensor& variant_mask(int i) const { return weights_[weights_.size() - variant_masks(shape().variant) + i]; }

  // One weight of all directions as one (D,rows,columns) stack, for the products of the steps: no copy
  // where there is one direction with contiguous weights.
  Tensor stacked_w_hh() const { return stacked(&Layer::w_hh); }
  Tensor stacked_w_hr() const { return stacked(&Layer::w_hr); }

  // The same as a copy, into out.
  void stack_w_hh(const Tensor& out) const { stack(&Layer::w_hh, out); }
  void stack_w_hr(const Tensor& out) const { stack(&Layer::w_hr, out); }

  // (D,Gr*H) in the compute type as the kernels add it, see combine_bias; nullopt without bias.
  std::optional<Tensor> combined_bias() const {
    if (!shape().bias) return std::nullopt;
    const Tensor out = make_compute({shape().D, recurrent_gates * shape().H});
    combine_biases(out);
    return out;
  }
  void combine_biases(const Tensor& out) const {
    const int64_t width = recurrent_gates * shape().H;
    for (int d = 0; d < shape().D; ++d) {
      const Tensor b_ih = as_contiguous(this->b_ih(d)), b_hh = as_contiguous(this->b_hh(d));
      check_cuda(combine_bias(step_shape(), b_ih.data_ptr(), b_hh.data_ptr(),
                              view(out, {width}, {1}, d * width).data_ptr(), stream));
    }
  }

  ScalarType type, compute;
  bool tf32;  // float32 products may round their factors to TensorFloat-32
  int device;
  void* stream;
  int64_t N, G, saved, recurrent_gates;

 private:
  const Tensor& weight(int d, int i) const { return weights_[d * checked_.weights_a_direction + i]; }
  Tensor stacked(const Tensor& (Layer::*of)(int) const) const {
    const Tensor& first = (this->*of)(0);
    const int64_t m = first.size(0), n = first.size(1);
    if (shape().D == 1) return view(as_contiguous(first), {1, m, n}, {m * n, n, 1});
    const Tensor out = make({shape().D, m, n});
    stack(of, out);
    return out;
  }
  void stack(const Tensor& (Layer::*of)(int) const, const Tensor& out) const {
    for (int d = 0; d < shape().D; ++d) copy(slice(out, d), (this->*of)(d));
  }

  const CheckedLayer& checked_;
  const std::vector<Tensor>& weights_;
  Tensor rows_;
  mutable std::optional<RowTable> table_;
  mutable std::optional<Tensor> on_device_;  // what it points into
};

}  // namespace fastrnn::cuda
