// Stacks of layers whose weights were packed once (packed.h): a step, a few or a whole sequence at a time. They run
// by one function, which the operators call with tensors that they have checked, and fastrnn._C without the
// dispatcher.
#include <atomic>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/ops/active_streams.h"
#include "cpu/ops/packed.h"
#include "cpu/ops/padding.h"
#include "cpu/ops/quantized.h"
#include "cpu/ops/this_machine.h"
#include "ops/rnn_call.h"
#include "params/stream.h"
#include "plan/quantized.h"

namespace fastrnn {
namespace {

std::atomic<bool> use_int8_dot{true};

// A layer of a call: its sizes, and where it reads and writes.
struct StreamLayer {
  Storage storage;
  ForwardParams natural;
  QuantizedParams quantized;
  CpuPlan plan;
};

template <class Params>
void point_at_states(Params& to, const StreamCall& call, const LayerShape& s, int64_t k) {
  const int64_t before = k * s.D * (call.streams ? call.streams : s.B);
  const size_t h_bytes = static_cast<size_t>(before * s.out_size()) * size_of(s.dtype);
  const size_t c_bytes = static_cast<size_t>(before * s.H) * size_of(s.dtype);
  const auto part = [](auto* base, size_t offset) { return base ? (char*)(base) + offset : nullptr; };
  to.h0 = part(call.h0, h_bytes);
  to.hn = part(call.hn, h_bytes);
  if (!facts_of(s.cell).has_cell) return;
  to.c0 = part(call.c0, c_bytes);
  to.cn = part(call.cn, c_bytes);
}

// Of layer k of a call, in its first direction.
PackedHeader header_at(const StreamCall& call, int64_t k) {
  PackedHeader header;
  std::memcpy(&header, call.packed[k * call.directions], sizeof(header));
  return header;
}

// Layer k of a call, whose input and output the caller sets.
void describe(StreamLayer& layer, const StreamCall& call, int64_t k, const KernelTable& kernels,
              const CpuMachine& machine) {
  const PackedHeader header = header_at(call, k);
  LayerShape s = layer_of(header);
  static_cast<Rows&>(s) = call.rows;
  s.D = call.directions;
  layer.storage = header.storage;
  if (header.storage == Storage::kNatural) {
    layer.natural.shape = s;
    layer.natural.back = call.back;
    layer.natural.packed = call.packed[k * call.directions] + kPackedHeaderBytes;
    point_at_states(layer.natural, call, s, k);
    layer.plan = plan_cpu(s, machine, true);
  } else {
    layer.quantized.shape = s;
    layer.quantized.storage = header.storage;
    layer.quantized.back = call.back;
    layer.quantized.dot = use_int8_dot.load(std::memory_order_relaxed) && has_int8_dot(kernels);
    for (int d = 0; d < s.D; ++d) {
      layer.quantized.packed[d] = call.packed[k * s.D + d] + kPackedHeaderBytes;
    }
    point_at_states(layer.quantized, call, s, k);
    layer.plan = plan_quantized(s, header.storage == Storage::kInt8, machine);
  }
}

const LayerShape& sizes_of(const StreamLayer& layer) {
  return layer.storage == Storage::kNatural ? layer.natural.shape : layer.quantized.shape;
}

// Rows of contiguous features, packed ones or (T,B,features).
TensorRows contiguous_rows(void* data, const Rows& rows, int64_t features) {
  return {data, rows.packed() ? 0 : rows.B * features, features};
}

// See StreamEntry.
int64_t run_stream(const StreamCall& given, char* scratch, int64_t bytes) {
  StreamCall call = given;
  ActiveStreams active(call);
  const KernelTable& kernels = kernels_in_use();
  if (call.rows.B == 0 || call.rows.rows() == 0) return 0;
  // Asked once, of the stack's one dtype: another thread may change what a plan is made for, and with it the memory
  // that the layers were seen to need.
  const CpuMachine machine = this_machine(kernels, header_at(call, 0).dtype);
  StreamLayer layer;
  Arena arena;
  size_t workspace = 0;
  // What the layers between read and write, by turns; zeros for every layer that has no state and needs one.
  int64_t between = 0, states = 0, inputs = 0, outputs = 0;
  for (int64_t k = 0; k < call.layers; ++k) {
    const PackedHeader header = header_at(call, k);
    if (header.storage == Storage::kNatural && std::strcmp(header.isa, kernels.name)) return -1;
    describe(layer, call, k, kernels, machine);
    const LayerShape& s = sizes_of(layer);
    const int64_t row = s.D * s.out_size() * static_cast<int64_t>(size_of(s.dtype));
    if (k + 1 < call.layers) between = s.rows() * row;
    if (k == 0) inputs = s.I;
    outputs = s.D * s.out_size();
    if (header.storage == Storage::kNatural && !call.h0) {
      states = s.D * s.B * (s.P > s.H ? s.P : s.H) * static_cast<int64_t>(size_of(s.dtype));
    }
    const size_t own = header.storage == Storage::kNatural
                           ? kernels.forward_workspace(layer.natural, layer.plan)
                           : quantized_kernels(kernels).workspace(layer.quantized, layer.plan);
    workspace = own > workspace ? own : workspace;
  }
  char* buffers[2] = {};
  char* zeros = nullptr;
  const auto lay_out = [&](char* base) {
    arena = Arena{base};
    active.lay_out(arena, inputs, outputs, size_of(sizes_of(layer).dtype));
    buffers[0] = arena.take<char>(between);
    buffers[1] = arena.take<char>(call.layers > 2 ? between : 0);
    zeros = arena.take<char>(states);
    return arena.take<char>(static_cast<int64_t>(workspace));
  };
  lay_out(nullptr);
  if (static_cast<int64_t>(arena.used) > bytes) return static_cast<int64_t>(arena.used);
  char* const own_workspace = lay_out(scratch);
  if (states) std::memset(zeros, 0, static_cast<size_t>(states));
  if (!active.begin()) return -2;

  TensorRows below = call.x;
  for (int64_t k = 0; k < call.layers; ++k) {
    if (k || call.layers > 1 || call.streams) describe(layer, call, k, kernels, machine);
    if (states) {
      layer.natural.h0 = zeros;
      layer.natural.c0 = facts_of(layer.natural.shape.cell).has_cell ? zeros : nullptr;
    }
    void* const y = k + 1 == call.layers ? call.y : buffers[k % 2];
    if (layer.storage == Storage::kNatural) {
      layer.natural.x = below;
      layer.natural.y = y;
      kernels.forward(layer.natural, layer.plan, own_workspace, kTorchThreads);
    } else {
      layer.quantized.x = below;
      layer.quantized.y = y;
      quantized_kernels(kernels).run(layer.quantized, layer.plan, own_workspace, kTorchThreads);
    }
    const LayerShape& s = sizes_of(layer);
    below = contiguous_rows(y, call.rows, s.D * s.out_size());
  }
  active.end();
  return 0;
}

const StreamEntry kEntry{kStreamEntryBytes, run_stream};

int64_t cpu_stream_entry() { return static_cast<int64_t>(reinterpret_cast<intptr_t>(&kEntry)); }

// ---- operators ----------------------------------------------------------------------------------

// The first layer's header, once all of them are seen to be those of a stack.
PackedHeader check_stack(const std::vector<Tensor>& packed, int D, const KernelTable& kernels) {
  check(!packed.empty() && packed.size() % static_cast<size_t>(D) == 0,
        "packed: expected the weights of at least one layer", D == 2 ? " in both directions" : "", ", got ",
        packed.empty() ? "none" : "half of them");
  const PackedHeader first = read_header(packed[0], 0, kernels);
  const int64_t out = D * (first.P ? first.P : first.H);
  for (size_t i = 1; i < packed.size(); ++i) {
    const PackedHeader header = read_header(packed[i], i, kernels);
    const int64_t I = i < static_cast<size_t>(D) ? first.I : out;
    check(header.cell == first.cell && header.dtype == first.dtype && header.storage == first.storage &&
              header.H == first.H && header.P == first.P && header.I == I,
          "packed[", i, "]: expected a layer of the cell, dtype and sizes of packed[0], with ", I,
          " inputs, got one of H = ", header.H, ", P = ", header.P, " with ", header.I, " inputs");
  }
  return first;
}

// What the operators have in common once x is known to be rows of the stack's features.
std::tuple<Tensor, Tensor, Tensor> run(const PackedHeader& first, const LayerShape& rows, const Tensor& x,
                                       const Tensor& h0, const std::optional<Tensor>& c0,
                                       const std::vector<Tensor>& packed, int D,
                                       const std::vector<int64_t>& y_sizes) {
  const int64_t states = static_cast<int64_t>(packed.size()), out = first.P ? first.P : first.H;
  const bool lstm = first.cell == CellKind::kLstm;
  check(parse_dtype(x, "x") == first.dtype && x.is_cpu(),
        "x: expected the dtype of the packed weights on the CPU, got ", kind_of(x));
  check_shape(h0, "h0", {states, rows.B, out});
  check_same_kind(h0, "h0", x);
  check(c0.has_value() == lstm, "c0: expected ", lstm ? "a tensor for an LSTM, got none" : "none, got a tensor");
  if (c0) {
    check_shape(*c0, "c0", {states, rows.B, first.H});
    check_same_kind(*c0, "c0", x);
  }
  const ScalarType dtype = x.scalar_type();
  const Tensor h = as_contiguous(h0), hn = empty({states, rows.B, out}, dtype);
  const Tensor c = lstm ? as_contiguous(*c0) : h;
  const Tensor cn = lstm ? empty({states, rows.B, first.H}, dtype) : empty({0}, dtype);
  const Tensor y = empty(y_sizes, dtype), held = with_contiguous_rows(x);
  std::vector<const char*> pointers;
  for (const Tensor& own : packed) pointers.push_back(static_cast<const char*>(own.data_ptr()));
  StreamCall call;
  call.packed = pointers.data();
  call.layers = states / D;
  call.directions = D;
  call.rows = rows;
  call.x = rows_of(held);
  call.h0 = h.data_ptr();
  call.c0 = lstm ? c.data_ptr() : nullptr;
  call.y = y.data_ptr();
  call.hn = hn.data_ptr();
  call.cn = lstm ? cn.data_ptr() : nullptr;
  // Other threads may change the number of threads, and so what is needed, or the instruction set.
  int64_t wanted = run_stream(call, nullptr, 0);
  while (wanted > 0) {
    const Scratch scratch(static_cast<size_t>(wanted));
    wanted = run_stream(call, scratch.data(), wanted);
  }
  check(wanted == 0, "packed: expected weights packed for the instruction set in use, which another thread changed ",
        "meanwhile; pack them again");
  if (rows.order) {
    LayerShape all = rows;  // the states of all layers, as directions of one
    all.D = static_cast<int>(states);
    clear_padding(all, y, D * out);
    keep_unused_states(all, h, hn, out);
    if (lstm) keep_unused_states(all, c, cn, first.H);
  }
  return {y, hn, cn};
}

std::tuple<Tensor, Tensor, Tensor> rnn_stream(Tensor x, Tensor h0, std::optional<Tensor> c0,
                                              std::vector<Tensor> packed) {
  const bool single = x.dim() == 2;
  check(single || x.dim() == 3, "x: expected shape (T, B, input_size) or (B, input_size), got ", shape_of(x));
  check(!packed.empty(), "packed: expected the weights of at least one layer, got none");
  LayerShape rows;
  rows.T = single ? 1 : x.size(0);
  rows.B = x.size(single ? 0 : 1);
  check(rows.T > 0, "x: expected a sequence length larger than 0, got 0");
  const PackedHeader first = check_stack(packed, 1, kernels_in_use());
  check(x.size(x.dim() - 1) == first.I, "x: expected ", first.I, " features, got ", x.size(x.dim() - 1));
  const int64_t out = first.P ? first.P : first.H;
  return run(first, rows, x, h0, c0, packed, 1,
             single ? std::vector<int64_t>{rows.B, out} : std::vector<int64_t>{rows.T, rows.B, out});
}

std::tuple<Tensor, Tensor, Tensor> rnn_quantized(Tensor x, Tensor h0, std::optional<Tensor> c0,
                                                 std::vector<Tensor> packed, std::optional<Tensor> batch_sizes,
                                                 std::optional<Tensor> lengths, bool bidirectional) {
  const int D = bidirectional ? 2 : 1;
  LayerShape shape;
  CheckedRows checked;
  const PackedHeader first = check_stack(packed, D, kernels_in_use());
  check(first.storage != Storage::kNatural,
        "packed: expected what rnn_pack_quantized returned, got weights as they are");
  if (batch_sizes) {
    check(x.dim() == 2, "x: expected packed data of shape (N, input_size), got ", shape_of(x));
    check_packed_rows(checked, shape, *batch_sizes, x.size(0), "x");
  } else {
    check(x.dim() == 3, "x: expected shape (T, B, input_size), got ", shape_of(x));
    shape.T = x.size(0);
    shape.B = x.size(1);
    check(shape.T > 0, "x: expected a sequence length larger than 0, got 0");
  }
  check(x.size(x.dim() - 1) == first.I, "x: expected ", first.I, " features, got ", x.size(x.dim() - 1));
  check_padded_rows(checked, shape, x, lengths, std::nullopt);
  return run(first, shape, x, h0, c0, packed, D, row_sizes(shape, D * (first.P ? first.P : first.H)));
}

bool cpu_int8_dot(bool use) {
  use_int8_dot = use;
  return use && has_int8_dot(kernels_in_use());
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  fastrnn::implement_with_list(m, "rnn_stream", TORCH_BOX(&fastrnn::rnn_stream));
  fastrnn::implement_with_list(m, "rnn_quantized", TORCH_BOX(&fastrnn::rnn_quantized));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_stream_entry", TORCH_BOX(&fastrnn::cpu_stream_entry));
  m.impl("cpu_int8_dot", TORCH_BOX(&fastrnn::cpu_int8_dot));
}
