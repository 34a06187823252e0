// The kernels of streams of one instruction set: included by the files of csrc/stream/isa.
#pragma once
#include "cpu/stream/dense.inl"
#include "cpu/stream/rnn.inl"
#include "cpu/stream/scan.inl"

namespace fastrnn {
namespace {

constexpr StreamKernels make_stream_kernels(const char* name, bool (*runs_here)()) {
  return {name,          runs_here,  rnn_bytes,    prepare_rnn, rnn_state, dense_bytes,
          prepare_dense, scan_bytes, prepare_scan, scan_state,  activate};
}

}  // namespace
}  // namespace fastrnn
