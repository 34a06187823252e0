// The passes of a layer with stages, step by step, for ops/rnn_forward.cpp and ops/rnn_backward.cpp.
#pragma once
#include "cuda/stepwise/stages.h"
#include "cuda/torch/sequence.h"

namespace fastrnn::cuda {

void forward_stages(const Layer& layer, const RnnArguments& in, const RnnResults& results);
std::pair<Tensor, std::vector<Tensor>> backward_stages(const Layer& layer, const RnnArguments& in,
                                                       const SavedArguments& saved, const WantedGradients& wanted,
                                                       const Tensor& grad_h0, const Tensor& grad_c0);

// A layer as its kernels see it, and the tensors that it points into.
class StagedLayer {
 public:
  explicit StagedLayer(const Layer& layer) {
    const LayerShape& s = layer.shape();
    const Variant& v = s.variant;
    out_.shape = layer.step_shape();
    out_.on = v;
    out_.table = layer.table();
    out_.width = s.out_size();
    out_.saved = layer.saved;
    const int vectors = variant_weights(s.cell, v);
    held_.reserve(s.D * vectors + 3);
    for (int d = 0; d < s.D && vectors; ++d) {
      const size_t first = held_.size();
      for (int i = 0; i < vectors; ++i) held_.push_back(as_contiguous(layer.variant_weight(d, i)));
      point_at_variant(out_.weights[d], s, held_.data() + first);
    }
    int mask = 0;
    const auto keep = [&] { return rows_of(held_.emplace_back(with_contiguous_rows(layer.variant_mask(mask++)))); };
    if (v.zoneout_h) out_.masks.keep_h = keep();
    if (v.zoneout_c) out_.masks.keep_c = keep();
    if (v.recurrent_mask) {
      out_.masks.recurrent = held_.emplace_back(as_contiguous(layer.variant_mask(mask))).data_ptr();
    }
  }
  const StageLayer& operator*() const { return out_; }

 private:
  StageLayer out_;
  std::vector<Tensor> held_;
};

// out = a b over the first rows of a step, for every direction and head: (D,heads,B,K), (D,heads,K,M), (D,heads,B,M)
// of any strides. The views are kept while as many rows run.
class StageProduct {
 public:
  StageProduct(const Layer& layer, Tensor a, Tensor b, Tensor out)
      : tf32_(layer.tf32), a_(std::move(a)), b_(std::move(b)), out_(std::move(out)) {}

  void operator()(const StepRows& rows) {
    if (products_.empty() || rows.count[0] != count_[0] || rows.count[1] != count_[1]) set(rows);
    for (const Product& p : products_) multiply(p.out, p.a, p.b, tf32_);
  }

 private:
  struct Product {
    Tensor out, a, b;
  };
  void set(const StepRows& rows) {
    count_[0] = rows.count[0];
    count_[1] = rows.count[1];
    products_.clear();
    const int64_t D = a_.size(0), heads = a_.size(1);
    if (D == 2 && heads == 1 && count_[0] == count_[1]) {
      add(0, 0, count_[0]);
    } else {
      for (int64_t d = 0; d < D; ++d) add(d, 1, count_[d]);
    }
  }
  // A stack of the directions (dimension 0), or of direction d's heads (1).
  void add(int64_t d, int64_t stack, int64_t n) {
    const auto part = [&](const Tensor& t, int64_t down) {
      return view(t, {t.size(stack), down, t.size(3)}, {t.stride(stack), t.stride(2), t.stride(3)}, d * t.stride(0));
    };
    products_.push_back({part(out_, n), part(a_, n), part(b_, b_.size(2))});
  }

  bool tf32_;
  Tensor a_, b_, out_;
  int64_t count_[2] = {0, 0};
  std::vector<Product> products_;
};

// The recurrent weights by heads, (D,heads,G*S,K): S = H / heads units of a head, K = Hout / heads of what they
// multiply; its gates [first, first + count) as a factor of a step's product, forward and backward.
class HeadWeights {
 public:
  explicit HeadWeights(const Layer& layer)
      : D_(layer.shape().D),
        heads_(layer.shape().variant.heads),
        gates_(layer.G),
        size_(layer.shape().H / heads_),
        depth_(layer.shape().out_size() / heads_),
        stack_(layer.stacked_w_hh()) {
    if (heads_ == 1) return;
    const Tensor whole = stack_;
    stack_ = layer.make({D_, heads_, gates_ * size_, depth_});
    const int64_t block = size_ * depth_;
    for (int64_t d = 0; d < D_; ++d) {
      const int64_t from = d * heads_ * gates_ * block;
      copy(view(stack_, {heads_, gates_, size_, depth_}, {gates_ * block, block, depth_, 1}, from),
           view(whole, {heads_, gates_, size_, depth_}, {block, heads_ * block, depth_, 1}, from));
    }
  }
  Tensor forward(int64_t first, int64_t count) const {
    return part(first, {D_, heads_, depth_, count * size_}, {1, depth_});
  }
  Tensor backward(int64_t first, int64_t count) const {
    return part(first, {D_, heads_, count * size_, depth_}, {depth_, 1});
  }
  // A (D,B,Hout) buffer, and one that is by heads.
  Tensor of_rows(const Tensor& h) const {
    const int64_t B = h.size(1), width = h.size(2);
    return view(h, {D_, heads_, B, depth_}, {B * width, depth_, width, 1});
  }
  Sizes by_heads(int64_t B, int64_t count) const { return {D_, heads_, B, count * size_}; }

 private:
  Tensor part(int64_t first, const Sizes& sizes, const Sizes& strides) const {
    const int64_t head = gates_ * size_ * depth_;
    return view(stack_, sizes, {heads_ * head, head, strides[0], strides[1]}, first * size_ * depth_);
  }

  int64_t D_, heads_, gates_, size_, depth_;
  Tensor stack_;
};

}  // namespace fastrnn::cuda
