// Small integer tables (row offsets, lengths) from the host to the device, by value.
#pragma once
#include <cstdint>

namespace fastrnn::cuda {

// device[0..n) = host[0..n). The values travel as kernel arguments, a launch for every kUploadBatch of
// them: nothing waits for the device, no pinned memory has to outlive the call, and a CUDA graph that
// captures it keeps the values. Returns a cudaError_t as int.
constexpr int kUploadBatch = 480;  // 3840 bytes: arguments end at 4096 before CUDA 12.1
int upload(const int64_t* host, int64_t n, int64_t* device, void* stream);

// Whether the current device can run the upload's kernel, and with it all of this library: every kernel is compiled
// for the same devices. Returns a cudaError_t as int where it could not be asked.
int has_image(bool& found);

}  // namespace fastrnn::cuda
