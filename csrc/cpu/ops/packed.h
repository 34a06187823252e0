// Packed weights: a tensor of bytes, a header that says what they are and then the pieces, of one layer and
// direction.
//
// Every call reads the header, so that no tensor of other weights, of another layer or for another instruction set
// can be taken for these, and takes nothing on trust in it: whatever the bytes say, kernels read no further than the
// tensor goes.
#pragma once
#include <cstring>
#include <vector>

#include "cpu/isa/choose.h"
#include "cpu/ops/tensors.h"
#include "cpu/quantized/weights.h"
#include "ops/check.h"
#include "params/quantized.h"

namespace fastrnn {

struct PackedHeader {
  char magic[8];
  char isa[24];  // nothing of quantized weights, which are the same everywhere
  int32_t version;
  CellKind cell;
  Dtype dtype;
  Storage storage;
  int64_t I, H, P, bytes;  // bytes of the pieces
};
inline constexpr char kPackedMagic[8] = "fastrnn";
// Of the header and of the order of the pieces; another number in another byte order. 2: the gates of a last block of
// units may lie close (product/pack.inl).
inline constexpr int32_t kPackedVersion = 2;
constexpr size_t kPackedHeaderBytes = 128;  // keeps the pieces on cache lines
static_assert(sizeof(PackedHeader) <= kPackedHeaderBytes);

inline LayerShape layer_of(const PackedHeader& header) {
  LayerShape s;
  s.cell = header.cell;
  s.dtype = header.dtype;
  s.I = header.I;
  s.H = header.H;
  s.P = header.P;
  return s;
}

// Whether a layer of the header's sizes is one that can be packed, and its weights fit into so many bytes: what is
// computed from these sizes cannot overflow then.
inline bool plausible(const PackedHeader& header, int64_t bytes) {
  const int cell = static_cast<int>(header.cell), dtype = static_cast<int>(header.dtype);
  const int storage = static_cast<int>(header.storage);
  if (cell < 0 || cell > static_cast<int>(CellKind::kRnnRelu)) return false;
  if (dtype < 0 || dtype > static_cast<int>(Dtype::kHalf)) return false;
  if (storage < 0 || storage > static_cast<int>(Storage::kInt8)) return false;
  if (header.storage != Storage::kNatural && header.dtype != Dtype::kFloat) return false;
  const int64_t I = header.I, H = header.H, P = header.P, out = layer_of(header).out_size();
  if (I < 0 || P < 0 || H <= 0 || (P && header.cell != CellKind::kLstm)) return false;
  return H <= bytes && I <= bytes / H && out <= bytes / H;
}

inline size_t piece_bytes(const PackedHeader& header, const KernelTable& kernels) {
  const LayerShape s = layer_of(header);
  if (header.storage == Storage::kNatural) return kernels.packed_bytes(s);
  return QuantizedWeights().lay_out(nullptr, s, header.storage, gates_of(s.cell), facts_of(s.cell).split);
}

// A tensor with this header, its version and bytes filled in, and zeros after it.
inline Tensor new_packed(PackedHeader header, const KernelTable& kernels) {
  std::memcpy(header.magic, kPackedMagic, sizeof(kPackedMagic));
  header.version = kPackedVersion;
  header.bytes = static_cast<int64_t>(piece_bytes(header, kernels));
  const Tensor packed = empty({static_cast<int64_t>(kPackedHeaderBytes) + header.bytes}, ScalarType::Byte);
  char* const to = static_cast<char*>(packed.data_ptr());
  if (packed.numel() >= (4 << 20)) {  // larger than a huge page, and read from end to end at every step
    wish_for_huge_pages(to, static_cast<size_t>(packed.numel()), Lasting::kCalls);
  }
  // The last row of an odd pair is padding that a kernel reads: no garbage, which could be a NaN.
  std::memset(to, 0, static_cast<size_t>(packed.numel()));
  std::memcpy(to, &header, sizeof(header));
  return packed;
}

// The header of packed[i], for kernels that are in use now.
inline PackedHeader read_header(const Tensor& packed, size_t i, const KernelTable& kernels) {
  constexpr int64_t kBegin = static_cast<int64_t>(kPackedHeaderBytes);
  PackedHeader header{};
  const bool bytes = packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_cpu() &&
                     packed.is_contiguous() && packed.numel() >= kBegin;
  int64_t stored = 0;  // less than the tensor's own size where its storage was resized
  if (bytes) TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(packed.get(), &stored));
  const bool whole = bytes && packed.numel() <= stored - packed.storage_offset();
  if (whole) std::memcpy(&header, packed.data_ptr(), sizeof(header));
  if (!whole || std::memcmp(header.magic, kPackedMagic, sizeof(kPackedMagic))) {  // a step has no time for the texts
    check(false, "packed[", i, "]: expected what rnn_pack returned, got shape ", shape_of(packed), ", ",
          kind_of(packed));
  }
  check(header.version == kPackedVersion, "packed[", i,
        "]: expected weights packed by this version of fastrnn, in format ", kPackedVersion, ", got format ",
        header.version, "; pack them again");
  if (header.storage == Storage::kNatural) {
    header.isa[sizeof(header.isa) - 1] = 0;
    for (char* c = header.isa; *c; ++c) {
      if (*c < ' ' || *c > '~') *c = '?';  // printed below
    }
    check(!std::strcmp(header.isa, kernels.name), "packed[", i, "]: expected weights packed for ", kernels.name,
          ", the instruction set in use, got some for ", header.isa, "; pack them again");
  }
  const auto misplaced = reinterpret_cast<uintptr_t>(packed.data_ptr()) % alignof(double);
  check(misplaced == 0, "packed[", i, "]: expected bytes at an address divisible by ", alignof(double), ", got one ",
        misplaced, " beyond that");
  const int64_t room = packed.numel() - kBegin;
  check(plausible(header, room), "packed[", i, "]: expected a header that rnn_pack wrote, got cell ",
        static_cast<int>(header.cell), ", dtype ", static_cast<int>(header.dtype), ", I = ", header.I,
        ", H = ", header.H, ", P = ", header.P, " before ", room, " bytes of weights");
  const auto expected = static_cast<int64_t>(piece_bytes(header, kernels));
  check(header.bytes == expected && room == expected, "packed[", i, "]: expected ", expected,
        " bytes of weights after the header, got ", room, ", of which the header counts ", header.bytes);
  return header;
}

}  // namespace fastrnn
