// A batch of streams of which some run (params/stream.h). Kernels take the rows that run as a batch of their own, and
// read and write the states where they are kept, by Rows::states. Only a step's x and y change places, and those only
// where they have rows of all streams: two rows of features, beside a product for each of them.
#pragma once
#include <cstring>

#include "cpu/team.h"
#include "params/stream.h"

namespace fastrnn {

class ActiveStreams {
 public:
  // `call` is the caller's own, and becomes what the kernels have to do.
  explicit ActiveStreams(StreamCall& call) : call_(call), y_(static_cast<char*>(call.y)) {}

  // Takes what is needed beside the layers' own memory, for features of so many bytes.
  void lay_out(Arena& arena, int64_t inputs, int64_t outputs, size_t element) {
    if (!call_.streams) return;
    const int64_t n = call_.rows.B;
    inputs_ = inputs;
    x_bytes_ = static_cast<size_t>(inputs) * element;
    y_bytes_ = static_cast<size_t>(outputs) * element;
    x_stride_ = static_cast<size_t>(call_.x.row_stride) * element;
    rows_ = arena.take<int64_t>(n);
    seen_ = arena.take<uint8_t>(call_.which ? call_.streams : 0);
    x_buffer_ = arena.take<char>(moves() ? n * static_cast<int64_t>(x_bytes_) : 0);
    y_buffer_ = arena.take<char>(moves() ? n * static_cast<int64_t>(y_bytes_) : 0);
  }

  // Before the first layer. False where the rows are not what they should be: nothing was written then.
  bool begin() {
    if (!call_.streams) return true;
    if (!(call_.mask ? find() : take())) return false;
    call_.rows.states = rows_;
    if (!call_.all) return true;
    const char* const x = static_cast<const char*>(call_.x.data);
    if (moves()) {
      for (int64_t b = 0; b < call_.rows.B; ++b) {
        std::memcpy(x_buffer_ + static_cast<size_t>(b) * x_bytes_, x + static_cast<size_t>(rows_[b]) * x_stride_,
                    x_bytes_);
      }
      call_.x = {x_buffer_, 0, inputs_};
      call_.y = y_buffer_;
    } else {  // one row lies as a batch of one does
      call_.x.data = const_cast<char*>(x) + static_cast<size_t>(rows_[0]) * x_stride_;
      call_.y = y_ + static_cast<size_t>(rows_[0]) * y_bytes_;
    }
    return true;
  }

  // After the last layer.
  void end() {
    if (!moves()) return;
    for (int64_t b = 0; b < call_.rows.B; ++b) {
      std::memcpy(y_ + static_cast<size_t>(rows_[b]) * y_bytes_, y_buffer_ + static_cast<size_t>(b) * y_bytes_,
                  y_bytes_);
    }
  }

 private:
  bool moves() const { return call_.all && call_.rows.B > 1; }

  bool find() {
    int64_t n = 0;
    for (int64_t s = 0; s < call_.streams; ++s) {
      if (!call_.mask[s]) continue;
      if (n == call_.rows.B) return false;
      rows_[n++] = s;
    }
    return n == call_.rows.B;
  }

  bool take() {
    std::memset(seen_, 0, static_cast<size_t>(call_.streams));
    for (int64_t b = 0; b < call_.rows.B; ++b) {
      const int64_t s = call_.which[b];
      if (s < 0 || s >= call_.streams || seen_[s]) return false;
      if (call_.all && b && s < rows_[b - 1]) return false;
      seen_[s] = 1;
      rows_[b] = s;
    }
    return true;
  }

  StreamCall& call_;
  char* const y_;
  int64_t inputs_ = 0;
  size_t x_bytes_ = 0, y_bytes_ = 0, x_stride_ = 0;
  int64_t* rows_ = nullptr;
  uint8_t* seen_ = nullptr;
  char *x_buffer_ = nullptr, *y_buffer_ = nullptr;
};

}  // namespace fastrnn
