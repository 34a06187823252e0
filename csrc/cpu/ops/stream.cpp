// Streams on the CPU: layers whose weights were packed once, a step or a few at a time.
//
// The packed weights are a tensor of bytes: a header that says what they are, then the pieces of packed.inl.
// Every call reads the header, so that no tensor of other weights, of another layer or for another
// instruction set can be taken for these, and takes nothing on trust in it: whatever the bytes say, kernels
// read no further than the tensor goes.
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/isa/choose.h"
#include "cpu/ops/tensors.h"
#include "cpu/ops/threads.h"
#include "ops/rnn_call.h"

namespace fastrnn {
namespace {

struct PackedHeader {
  char magic[8];
  char isa[24];
  int32_t version;
  CellKind cell;
  Dtype dtype;
  int64_t I, H, P, bytes;  // bytes of the pieces
};
constexpr char kMagic[8] = "fastrnn";
constexpr int32_t kVersion = 1;       // of the header and of the order of the pieces
constexpr size_t kHeaderBytes = 128;  // keeps the pieces on cache lines
static_assert(sizeof(PackedHeader) <= kHeaderBytes);

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

Tensor rnn_pack(std::vector<Tensor> weights, std::string cell, bool bias) {
  CheckedLayer checked;
  check_weights(checked, weights, cell, bias);
  const LayerShape& s = checked.shape;
  for (Tensor& weight : weights) weight = as_contiguous(weight);
  DirectionWeights pointers;
  point_at(pointers, weights.data(), s);

  const KernelTable& kernels = kernels_in_use();
  PackedHeader header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  std::strncpy(header.isa, kernels.name, sizeof(header.isa) - 1);
  header.version = kVersion;
  header.cell = s.cell;
  header.dtype = s.dtype;
  header.I = s.I;
  header.H = s.H;
  header.P = s.P;
  header.bytes = static_cast<int64_t>(kernels.packed_bytes(s));
  const Tensor packed = empty({static_cast<int64_t>(kHeaderBytes) + header.bytes}, ScalarType::Byte);
  char* const to = static_cast<char*>(packed.data_ptr());
  // The last row of an odd pair is padding that a kernel reads: no garbage, which could be a NaN.
  std::memset(to, 0, static_cast<size_t>(packed.numel()));
  std::memcpy(to, &header, sizeof(header));
  kernels.pack(s, pointers, to + kHeaderBytes);
  return packed;
}

// Whether a layer of the header's sizes is one that rnn_pack packs, and its weights fit into so many bytes: what is
// computed from these sizes cannot overflow then.
bool plausible(const PackedHeader& header, int64_t bytes) {
  const int cell = static_cast<int>(header.cell), dtype = static_cast<int>(header.dtype);
  if (cell < 0 || cell > static_cast<int>(CellKind::kRnnRelu)) return false;
  if (dtype < 0 || dtype > static_cast<int>(Dtype::kHalf)) return false;
  const int64_t I = header.I, H = header.H, P = header.P;
  if (I < 0 || P < 0 || H <= 0 || (P && header.cell != CellKind::kLstm)) return false;
  return H <= bytes && I <= bytes / H && P <= bytes / H;
}

LayerShape layer_of(const PackedHeader& header) {
  LayerShape s;
  s.cell = header.cell;
  s.dtype = header.dtype;
  s.I = header.I;
  s.H = header.H;
  s.P = header.P;
  return s;
}

// The header of packed[i], for kernels that are in use now.
PackedHeader read_header(const Tensor& packed, size_t i, const KernelTable& kernels) {
  constexpr int64_t kBegin = static_cast<int64_t>(kHeaderBytes);
  PackedHeader header{};
  const bool bytes = packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_cpu() &&
                     packed.is_contiguous() && packed.numel() >= kBegin;
  int64_t stored = 0;  // less than the tensor's own size where its storage was resized
  if (bytes) TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(packed.get(), &stored));
  const bool whole = bytes && packed.numel() <= stored - packed.storage_offset();
  if (whole) std::memcpy(&header, packed.data_ptr(), sizeof(header));
  if (!whole || std::memcmp(header.magic, kMagic, sizeof(kMagic))) {  // a step has no time to make the texts
    check(false, "packed[", i, "]: expected what rnn_pack returned, got shape ", shape_of(packed), ", ",
          kind_of(packed));
  }
  check(header.version == kVersion, "packed[", i, "]: expected weights packed by this version of fastrnn, in format ",
        kVersion, ", got format ", header.version, "; pack them again");
  header.isa[sizeof(header.isa) - 1] = 0;
  for (char* c = header.isa; *c; ++c) {
    if (*c < ' ' || *c > '~') *c = '?';  // printed below
  }
  check(!std::strcmp(header.isa, kernels.name), "packed[", i, "]: expected weights packed for ", kernels.name,
        ", the instruction set in use, got some for ", header.isa, "; pack them again");
  const auto misplaced = reinterpret_cast<uintptr_t>(packed.data_ptr()) % alignof(double);
  check(misplaced == 0, "packed[", i, "]: expected bytes at an address divisible by ", alignof(double), ", got one ",
        misplaced, " beyond that");
  const int64_t room = packed.numel() - kBegin;
  check(plausible(header, room), "packed[", i, "]: expected a header that rnn_pack wrote, got cell ",
        static_cast<int>(header.cell), ", dtype ", static_cast<int>(header.dtype), ", I = ", header.I,
        ", H = ", header.H, ", P = ", header.P, " before ", room, " bytes of weights");
  const auto expected = static_cast<int64_t>(kernels.packed_bytes(layer_of(header)));
  check(header.bytes == expected && room == expected, "packed[", i, "]: expected ", expected,
        " bytes of weights after the header, got ", room, ", of which the header counts ", header.bytes);
  return header;
}

std::tuple<Tensor, Tensor, Tensor> rnn_stream(Tensor x, Tensor h0, std::optional<Tensor> c0,
                                              std::vector<Tensor> packed) {
  const KernelTable& kernels = kernels_in_use();
  const int64_t L = static_cast<int64_t>(packed.size());
  check(L > 0, "packed: expected the weights of at least one layer, got none");
  const bool single = x.dim() == 2;
  check(single || x.dim() == 3, "x: expected shape (T, B, input_size) or (B, input_size), got ", shape_of(x));
  const int64_t T = single ? 1 : x.size(0), B = x.size(single ? 0 : 1);
  check(T > 0, "x: expected a sequence length larger than 0, got 0");
  const PackedHeader first = read_header(packed[0], 0, kernels);
  const bool lstm = first.cell == CellKind::kLstm;
  const int64_t H = first.H, out = first.P ? first.P : first.H;
  check(parse_dtype(x, "x") == first.dtype && x.is_cpu(),
        "x: expected the dtype of the packed weights on the CPU, got ", kind_of(x));
  check(x.size(x.dim() - 1) == first.I, "x: expected ", first.I, " features, got ", x.size(x.dim() - 1));
  check_shape(h0, "h0", {L, B, out});
  check_same_kind(h0, "h0", x);
  check(c0.has_value() == lstm, "c0: expected ", lstm ? "a tensor for an LSTM, got none" : "none, got a tensor");
  if (c0) {
    check_shape(*c0, "c0", {L, B, H});
    check_same_kind(*c0, "c0", x);
  }

  const ScalarType dtype = x.scalar_type();
  const Tensor h = as_contiguous(h0), hn = empty({L, B, out}, dtype);
  const Tensor c = lstm ? as_contiguous(*c0) : h, cn = lstm ? empty({L, B, H}, dtype) : empty({0}, dtype);
  const size_t h_bytes = static_cast<size_t>(B * out) * size_of(first.dtype);
  const size_t c_bytes = static_cast<size_t>(B * H) * size_of(first.dtype);
  const auto part = [](const Tensor& tensor, size_t offset) {
    return static_cast<char*>(tensor.data_ptr()) + offset;
  };

  const CpuMachine machine = machine_of(kernels, first.dtype, usable_threads());
  Tensor below = with_contiguous_rows(x);
  for (int64_t k = 0; k < L; ++k) {
    const PackedHeader header = k ? read_header(packed[k], k, kernels) : first;
    check(header.cell == first.cell && header.dtype == first.dtype && header.H == H && header.P == first.P &&
              header.I == (k ? out : first.I),
          "packed[", k, "]: expected a layer of the cell, dtype and sizes of packed[0], with ", k ? out : first.I,
          " inputs, got one of H = ", header.H, ", P = ", header.P, " with ", header.I, " inputs");
    ForwardParams params;
    LayerShape& s = params.shape;
    s = layer_of(header);
    s.T = T;
    s.B = B;
    const Tensor y = single ? empty({B, out}, dtype) : empty({T, B, out}, dtype);
    if (B > 0) {
      params.x = rows_of(below);
      params.h0 = part(h, k * h_bytes);
      params.hn = part(hn, k * h_bytes);
      params.c0 = lstm ? part(c, k * c_bytes) : nullptr;
      params.cn = lstm ? part(cn, k * c_bytes) : nullptr;
      params.y = y.data_ptr();
      params.packed = part(packed[k], kHeaderBytes);
      const CpuPlan plan = plan_cpu(s, machine, true);
      const Scratch scratch(kernels.forward_workspace(params, plan));
      kernels.forward(params, plan, scratch.data(), kTorchThreads);
    }
    below = y;
  }
  return {below, hn, cn};
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  fastrnn::implement_with_list(m, "rnn_pack", TORCH_BOX(&fastrnn::rnn_pack));
  fastrnn::implement_with_list(m, "rnn_stream", TORCH_BOX(&fastrnn::rnn_stream));
}
