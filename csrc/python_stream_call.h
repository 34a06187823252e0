// What the methods of fastrnn._C.Stream (python_stream.cpp) have in common: the stream's own facts, reading the
// arguments of a call, making tensors for its results, and the call.
#pragma once
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <vector>

#include "params/stream.h"
#include "python_torch.h"

namespace fastrnn::python_stream {

struct Source {
  PyObject *holder, *name, *tensor;
  int64_t version;
  void* address;
};

struct Memory {
  char* data = nullptr;
  int64_t bytes = 0;
  void grow(int64_t wanted) {
    release();
    data = static_cast<char*>(::operator new(static_cast<size_t>(wanted), std::align_val_t{64}));
    bytes = wanted;
  }
  void release() {
    if (data) ::operator delete(data, std::align_val_t{64});
    data = nullptr;
    bytes = 0;
  }
  ~Memory() { release(); }
};

struct Impl {
  const StreamEntry* entry = nullptr;
  py::list packed;
  std::vector<const char*> pointers;
  std::vector<Source> sources;
  std::vector<py::object> held;
  PyObject* dtype = nullptr;
  DLDataType kind{};
  int64_t states = 0, input_size = 0, output_size = 0, hidden_size = 0, element = 0, bytes = 0;
  int directions = 1;
  bool has_cell = false, batch_first = false;
  Memory scratch;
  std::atomic<bool> turn{false};  // of the calls, see StreamCall::back
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

// A tensor of the stream's type on the CPU that is a plain torch.Tensor, with memory: a wrapper around another tensor
// or a zero that torch has not written down has none.
inline bool take(const Torch& torch, const Impl& s, PyObject* object, bool gradients, Argument& out) {
  if (Py_TYPE(object) != torch.tensor || !torch.read(object, &out.tensor)) return false;
  const DLTensor& t = out.tensor;
  if (!t.data) return false;
  if (t.device.device_type != kDLCPU || t.dtype.code != s.kind.code || t.dtype.bits != s.kind.bits) return false;
  if (gradients && Torch::truth(PyObject_GetAttr(object, torch.requires_grad))) return false;
  return !Torch::truth(PyObject_CallMethodNoArgs(object, torch.is_neg));
}

inline bool has_state_shape(const Argument& a, int64_t states, bool batched, int64_t rows, int64_t size) {
  const DLTensor& t = a.tensor;
  if (t.ndim != (batched ? 3 : 2) || t.shape[0] != states || t.shape[t.ndim - 1] != size) return false;
  return (!batched || t.shape[1] == rows) && a.contiguous();
}

inline bool unchanged(const Torch& torch, const Impl& s) {
  for (const Source& source : s.sources) {
    if (PyDict_GetItemWithError(source.holder, source.name) != source.tensor) return false;
    DLTensor now;
    if (!torch.read(source.tensor, &now)) return false;
    if (static_cast<char*>(now.data) + now.byte_offset != source.address) return false;
    PyObject* const version = PyObject_GetAttr(source.tensor, torch.version);
    const bool same = version && PyLong_AsLongLong(version) == source.version;
    Py_XDECREF(version);
    if (!same) return false;
  }
  return true;
}

inline PyObject* new_like(const Torch& torch, PyObject* tensor) {
  return PyObject_CallOneArg(torch.empty_like, tensor);
}

// The call itself. False: it cannot run here.
inline bool run(Impl& s, StreamCall& call) {
  call.back = s.turn;
  s.turn = !s.turn;  // by calls of several threads, whichever way: it is a matter of time alone
  const bool other = s.busy.test_and_set(std::memory_order_acquire);  // another thread is in this stream's memory
  Memory own;
  Memory& memory = other ? own : s.scratch;
  bool done = false;
  const auto attempt = [&] {
    try {
      int64_t wanted = s.entry->run(call, memory.data, memory.bytes);
      if (wanted > 0) {
        memory.grow(wanted);
        wanted = s.entry->run(call, memory.data, memory.bytes);
      }
      done = wanted == 0;
    } catch (...) {
      done = false;
    }
    if (!other) s.busy.clear(std::memory_order_release);
  };
  compute_apart(s.bytes * call.rows.T * call.rows.B >= kLongCall, attempt);
  return done;
}

enum class Form { kStep, kChunk };

// What a call is of, once its input and state are seen to be ordinary.
struct Read {
  StreamCall call;
  Argument x, h, c;
  PyObject *h_object = nullptr, *c_object = nullptr;
  bool batched = true, gradients = false;
  PyObject* y_object = nullptr;  // where it is given
};

// Whether nothing looks on; then the rows of x.
inline bool read_input(const Torch& torch, const Impl& s, Form form, PyObject* input, Read& r) {
  if (!torch.ordinary()) return false;
  r.gradients = Torch::ask(torch.gradients);
  if (!take(torch, s, input, r.gradients, r.x)) return false;
  const DLTensor& x = r.x.tensor;
  const int whole = form == Form::kStep ? 2 : 3, features = x.ndim - 1;
  r.batched = x.ndim == whole;
  if (!r.batched && x.ndim != whole - 1) return false;
  if (x.shape[features] != s.input_size || (x.shape[features] > 1 && x.strides[features] != 1)) return false;
  StreamCall& call = r.call;
  call.rows.T = 1;
  call.rows.B = 1;
  call.x.data = r.x.data();
  if (form == Form::kStep) {
    if (r.batched) {
      call.rows.B = x.shape[0];
      call.x.row_stride = x.strides[0];
    }
  } else if (r.batched && s.batch_first) {
    if (x.shape[0] != 1) return false;  // rows of the output lie as the kernels write them, step by step
    call.rows.T = x.shape[1];
    call.x.step_stride = x.strides[1];
  } else {
    call.rows.T = x.shape[0];
    call.x.step_stride = x.strides[0];
    if (r.batched) {
      call.rows.B = x.shape[1];
      call.x.row_stride = x.strides[1];
    }
  }
  return call.rows.T >= 1 && call.rows.B >= 1;
}

// The state, of so many rows, and the weights.
inline bool read_state(const Torch& torch, const Impl& s, PyObject* hx, int64_t rows, Read& r) {
  StreamCall& call = r.call;
  if (hx != Py_None) {
    r.h_object = hx;
    if (s.has_cell) {
      if (!PyTuple_CheckExact(hx) || PyTuple_GET_SIZE(hx) != 2) return false;
      r.h_object = PyTuple_GET_ITEM(hx, 0);
      r.c_object = PyTuple_GET_ITEM(hx, 1);
      if (!take(torch, s, r.c_object, r.gradients, r.c)) return false;
      if (!has_state_shape(r.c, s.states, r.batched, rows, s.hidden_size)) return false;
      call.c0 = r.c.data();
    }
    if (!take(torch, s, r.h_object, r.gradients, r.h)) return false;
    if (!has_state_shape(r.h, s.states, r.batched, rows, s.output_size)) return false;
    call.h0 = r.h.data();
  }
  if (!unchanged(torch, s)) return false;
  call.packed = s.pointers.data();
  call.directions = s.directions;
  call.layers = s.states / s.directions;
  return true;
}

inline bool read_call(const Torch& torch, const Impl& s, Form form, PyObject* input, PyObject* hx, Read& r) {
  return read_input(torch, s, form, input, r) && read_state(torch, s, hx, r.call.rows.B, r);
}

// A given output, with as many rows as x, of a call that writes the state as well.
inline bool read_output(const Torch& torch, const Impl& s, PyObject* out, Read& r) {
  Argument y;
  if (!take(torch, s, out, false, y) || y.tensor.ndim != r.x.tensor.ndim || !y.contiguous()) return false;
  const int64_t rows = r.batched ? r.x.size(0) : 1, features = s.output_size * s.directions;
  if (y.size(y.tensor.ndim - 1) != features || y.numel() != rows * features) return false;
  if (y.overlaps(r.x, s.element) || y.overlaps(r.h, s.element)) return false;
  if (s.has_cell && y.overlaps(r.c, s.element)) return false;
  if (r.gradients && Torch::truth(PyObject_GetAttr(out, torch.requires_grad))) return false;
  r.y_object = out;
  r.call.y = y.data();
  return true;
}

// Lets the call write the state that it reads. False where x, h and c are not apart: x may have gaps between its
// rows, of which numel() says nothing.
inline bool write_state(const Torch& torch, const Impl& s, Read& r) {
  if (!r.x.contiguous() || r.h.overlaps(r.x, s.element)) return false;
  if (s.has_cell && (r.c.overlaps(r.h, s.element) || r.c.overlaps(r.x, s.element))) return false;
  // Counted before they are written: what autograd has saved of them is seen to be gone.
  PyObject* written[3];
  Py_ssize_t count = 0;
  for (PyObject* const object : {r.y_object, r.h_object, r.c_object}) {
    if (object) written[count++] = object;
  }
  PyObject* const all = count == 1   ? PyTuple_Pack(1, written[0])
                        : count == 2 ? PyTuple_Pack(2, written[0], written[1])
                                     : PyTuple_Pack(3, written[0], written[1], written[2]);
  PyObject* const counted = all ? PyObject_CallOneArg(torch.increment_version, all) : nullptr;
  Py_XDECREF(all);
  if (!counted) return false;
  Py_DECREF(counted);
  r.call.hn = r.h.data();
  r.call.cn = s.has_cell ? r.c.data() : nullptr;
  return true;
}

// Which streams run, a mask or their numbers, and the state of all of them. x has rows of all or of those that run.
inline bool read_active(const Torch& torch, const Impl& s, PyObject* active, PyObject* hx, Read& r) {
  Argument which;
  if (s.directions != 1 || Py_TYPE(active) != torch.tensor || !torch.read(active, &which.tensor)) return false;
  const DLTensor& t = which.tensor;
  const bool mask = t.dtype.code == kDLBool && t.dtype.bits == 8,
             numbers = t.dtype.code == kDLInt && t.dtype.bits == 64;
  if (!(mask || numbers) || t.ndim != 1 || t.device.device_type != kDLCPU || !t.data || !which.contiguous())
    return false;
  if (Torch::truth(PyObject_CallMethodNoArgs(active, torch.is_neg))) return false;
  DLTensor h;
  PyObject* const of_h = PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) ? PyTuple_GET_ITEM(hx, 0) : hx;
  if (!torch.read(of_h, &h) || h.ndim != 3) return false;
  const int64_t streams = h.shape[1], rows = r.call.rows.B;
  if (!read_state(torch, s, hx, streams, r)) return false;
  StreamCall& call = r.call;
  call.streams = streams;
  if (mask) {
    if (t.shape[0] != streams) return false;
    call.mask = reinterpret_cast<const uint8_t*>(which.data());
    call.rows.B = 0;
    for (int64_t i = 0; i < streams; ++i) call.rows.B += call.mask[i] != 0;
  } else {
    call.which = reinterpret_cast<const int64_t*>(which.data());
    call.rows.B = t.shape[0];
  }
  call.all = rows != call.rows.B;
  return !call.all || rows == streams;
}

inline PyObject* none_of(PyObject* a, PyObject* b, PyObject* c) {
  Py_XDECREF(a);
  Py_XDECREF(b);
  Py_XDECREF(c);
  PyErr_Clear();
  Py_RETURN_NONE;
}

}  // namespace fastrnn::python_stream
