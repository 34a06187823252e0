// Streams, events and graphs: what the host orders, and in which order it happens.
//
// By default work happens when it is handed over, which is one of the orders that a GPU may take. With opt.deferred
// streams are queues: their work happens when the host waits for the device, in an order that opt.order chooses among
// all those that streams and events leave open. What is freed belongs to later work of its stream then: it is filled
// with NaN in the stream's turn.
//
// Between cudaStreamBeginCapture and cudaStreamEndCapture a stream's work is kept, with its argument bytes, and a
// launch of the graph does it again. Errors as CUDA has them: a capture of the default stream, a wait for a stream
// that is captured, what is prohibited while this thread captures. Beyond CUDA's own: an allocation of torch's while
// a stream is captured of which torch knows nothing is an error.
#pragma once
#include <deque>
#include <optional>

#include "emu_launch.h"

typedef int cudaError_t;
typedef void* cudaStream_t;
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone,
  cudaStreamCaptureStatusActive,
  cudaStreamCaptureStatusInvalidated
};

namespace emu {
using Work = std::function<void()>;

struct Event {
  uint64_t recorded = 0, happened = 0;  // numbers of records: by the host, and in a stream's turn
};
struct Task {
  Work work;
  std::shared_ptr<Event> after;  // a wait: for this record of it
  uint64_t record = 0;
};
struct Capture {
  cudaStreamCaptureMode mode;
  bool torch_knows = false;  // its allocator too
  bool broken = false;
  std::vector<Work> work;
};
struct Stream {
  std::deque<Task> tasks;
  std::optional<Capture> capture;
};
struct Graph {
  std::vector<Work> work;
};

struct Device {
  Stream legacy;
  std::vector<Stream*> streams{&legacy};
  cudaStream_t current = nullptr;                            // torch's
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;  // this thread's
  int captures = 0, graph_launches = 0, graphs = 0;          // ended well, made, and there now
  std::vector<std::pair<void*, size_t>> freed;
  uint64_t random = 1;

  uint32_t below(uint32_t n) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    return static_cast<uint32_t>((random >> 16) % n);
  }
};
inline Device device;
inline Stream& stream_of(cudaStream_t s) { return s ? *static_cast<Stream*>(s) : device.legacy; }
// A program's streams, by number; 0 is the default one.
inline cudaStream_t numbered_stream(int64_t number) {
  static std::map<int64_t, std::unique_ptr<Stream>> made;
  if (number == 0) return nullptr;
  auto& stream = made[number];
  if (!stream) {
    stream = std::make_unique<Stream>();
    device.streams.push_back(stream.get());
  }
  return stream.get();
}
inline Stream* captured() {
  for (Stream* s : device.streams)
    if (s->capture) return s;
  return nullptr;
}
// What is prohibited while a capture is under way, unless the thread has said that it is no part of it.
inline bool prohibited() {
  Stream* s = captured();
  if (!s || device.mode == cudaStreamCaptureModeRelaxed || s->capture->mode == cudaStreamCaptureModeRelaxed)
    return false;
  s->capture->broken = true;
  return true;
}

inline void submit(cudaStream_t to, Task task) {
  Stream& s = stream_of(to);
  if (s.capture) {
    s.capture->work.push_back(std::move(task.work));
  } else if (opt.deferred) {
    s.tasks.push_back(std::move(task));
  } else if (task.work) {
    task.work();
  }
}
inline void submit(cudaStream_t to, Work work) { submit(to, Task{std::move(work)}); }

// All work of all streams. order: 0 to 2 the streams one after another as far as events let them, the first ones or
// the last ones first, or in turns; else at random.
inline void synchronize() {
  device.random = opt.order * 0x9E3779B97F4A7C15ULL + 0x7654321;
  size_t turn = 0;
  for (;;) {
    std::vector<size_t> ready;
    bool left = false;
    for (size_t i = 0; i < device.streams.size(); ++i) {
      const auto& tasks = device.streams[i]->tasks;
      if (tasks.empty()) continue;
      left = true;
      const Task& next = tasks.front();
      if (!next.after || next.after->happened >= next.record) ready.push_back(i);
    }
    if (!left) {
      for (const auto& [p, bytes] : device.freed) dev_free(p, bytes);
      device.freed.clear();
      return;
    }
    if (ready.empty()) {
      for (Stream* s : device.streams) s->tasks.clear();
      throw Error("deadlock: streams wait for events that nobody records");
    }
    const size_t chosen = opt.order == 0   ? ready.front()
                          : opt.order == 1 ? ready.back()
                          : opt.order == 2 ? ready[turn++ % ready.size()]
                                           : ready[device.below(static_cast<uint32_t>(ready.size()))];
    Task task = std::move(device.streams[chosen]->tasks.front());
    device.streams[chosen]->tasks.pop_front();
    try {
      if (task.work) task.work();
    } catch (...) {
      for (Stream* s : device.streams) s->tasks.clear();
      throw;
    }
  }
}
inline bool idle() {
  for (Stream* s : device.streams)
    if (!s->tasks.empty()) return false;
  return true;
}

// Memory goes back in its stream's turn.
inline void free_in_turn(cudaStream_t of, void* p, size_t bytes) {
  Stream& s = stream_of(of);
  if (s.capture) return;  // of torch's pool for a program's graph, which names it
  if (idle()) return dev_free(p, bytes);
  s.tasks.push_back({[p, bytes] { memset(p, 0xff, bytes); }});
  device.freed.push_back({p, bytes});  // the pages stay for whoever still reads them, wrongly
}
inline void check_allocation() {
  Stream* s = captured();
  if (s && !s->capture->torch_knows)
    throw Error("an allocation of torch's while a stream is captured of which torch knows nothing");
}
}  // namespace emu

// ---------------------------------------------------------------- the API
constexpr int kEmuUnsupported = 900, kEmuInvalidated = 901, kEmuIllegalState = 401;
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
typedef emu::Graph* cudaGraph_t;
typedef emu::Graph* cudaGraphExec_t;
typedef std::shared_ptr<emu::Event>* cudaEvent_t;

inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(emu::device.mode, *mode);
  return 0;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned) {
  if (emu::prohibited()) return kEmuUnsupported;
  auto* made = new emu::Stream;  // the process' own
  emu::device.streams.push_back(made);
  *out = made;
  return 0;
}
inline cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0, *greatest = -5;
  return 0;
}
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int) {
  return cudaStreamCreateWithFlags(out, flags);
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  const auto& capture = emu::stream_of(s).capture;
  *status = !capture          ? cudaStreamCaptureStatusNone
            : capture->broken ? cudaStreamCaptureStatusInvalidated
                              : cudaStreamCaptureStatusActive;
  return 0;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  if (!s) return kEmuUnsupported;
  if (emu::stream_of(s).capture) return kEmuIllegalState;
  emu::stream_of(s).capture.emplace(emu::Capture{mode});
  return 0;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* out) {
  auto& capture = emu::stream_of(s).capture;
  *out = nullptr;
  if (!capture) return kEmuIllegalState;
  emu::Capture ended = std::move(*capture);
  capture.reset();
  if (ended.broken) return kEmuInvalidated;
  if (emu::opt.fail_captures > 0 && emu::opt.fail_captures--) return kEmuInvalidated;
  ++emu::device.captures;
  *out = new emu::Graph{std::move(ended.work)};
  return 0;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (emu::prohibited()) return kEmuUnsupported;
  *exec = new emu::Graph(*graph);
  ++emu::device.graphs;
  return 0;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return 0;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  if (emu::prohibited()) return kEmuUnsupported;
  delete exec;
  --emu::device.graphs;
  return 0;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  if (emu::opt.fail_graphs > 0 && emu::opt.fail_graphs--) return 701;
  ++emu::device.graph_launches;
  for (const emu::Work& work : exec->work) emu::submit(s, work);
  return 0;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  *out = new std::shared_ptr<emu::Event>(std::make_shared<emu::Event>());
  return 0;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return 0;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s) {
  const uint64_t number = ++(*event)->recorded;
  emu::submit(s, emu::Work([e = *event, number] { e->happened = number; }));
  return 0;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t event, unsigned) {
  emu::submit(s, emu::Task{{}, *event, (*event)->recorded});
  return 0;
}
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t s) {
  emu::submit(s, emu::Work([=] { memcpy(to, from, n); }));
  return 0;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t s) {
  emu::submit(s, emu::Work([=] { memset(p, value, n); }));
  return 0;
}
