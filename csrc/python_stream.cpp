// fastrnn._C.Stream: a call of a stack of packed layers (params/stream.h) as one call of C.
//
// A step of a small layer takes a microsecond or two. The dispatcher with its boxes and the checks in Python took ten
// more; here the arguments are read by DLPack (python_torch.h), and only what is ordinary is taken: for everything
// else (an argument that does not fit, one that requires a gradient, a mode or a transform that looks on, weights
// that have changed) the answer is None, and the caller goes the long way, which does what there is to do or says
// what is wrong.
//
// A type of its own, not one of pybind11's: that would cost a call more than all of this.
#include "python_stream.h"

#include <atomic>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "params/stream.h"
#include "python_torch.h"

namespace fastrnn {
namespace {

// From so many bytes of weights on, times the rows that they serve, other Python threads may run meanwhile.
constexpr int64_t kLongBytes = 1 << 19;

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
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

struct StreamObject {
  PyObject_HEAD Impl* impl;
};

enum class Form { kStep, kChunk };

// A tensor of the stream's type on the CPU that is a plain torch.Tensor, with memory: a wrapper around another tensor
// or a zero that torch has not written down has none.
bool take(const Torch& torch, const Impl& s, PyObject* object, bool gradients, Argument& out) {
  if (Py_TYPE(object) != torch.tensor || !torch.read(object, &out.tensor)) return false;
  const DLTensor& t = out.tensor;
  if (!t.data) return false;
  if (t.device.device_type != kDLCPU || t.dtype.code != s.kind.code || t.dtype.bits != s.kind.bits) return false;
  if (gradients && Torch::truth(PyObject_GetAttr(object, torch.requires_grad))) return false;
  return !Torch::truth(PyObject_CallMethodNoArgs(object, torch.is_neg));
}

bool has_state_shape(const Argument& a, int64_t states, bool batched, int64_t rows, int64_t size) {
  const DLTensor& t = a.tensor;
  if (t.ndim != (batched ? 3 : 2) || t.shape[0] != states || t.shape[t.ndim - 1] != size) return false;
  return (!batched || t.shape[1] == rows) && a.contiguous();
}

bool unchanged(const Torch& torch, const Impl& s) {
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

// The sizes one by one: as a tuple they take torch half as long again.
PyObject* new_tensor(const Torch& torch, const Impl& s, std::initializer_list<int64_t> sizes) {
  PyObject* arguments[4];
  size_t count = 0;
  for (const int64_t size : sizes) {
    arguments[count] = PyLong_FromLongLong(size);
    if (!arguments[count++]) return nullptr;  // of memory there is none left: what was made of it does not matter
  }
  arguments[count] = s.dtype;
  PyObject* const made = PyObject_Vectorcall(torch.empty, arguments, count, torch.dtype_name);
  while (count) Py_DECREF(arguments[--count]);
  return made;
}
PyObject* new_like(const Torch& torch, PyObject* tensor) { return PyObject_CallOneArg(torch.empty_like, tensor); }

// The call itself. False: it cannot run here.
bool run(Impl& s, const StreamCall& call) {
  const bool other = s.busy.test_and_set(std::memory_order_acquire);  // another thread is in this stream's memory
  Memory own;
  Memory& memory = other ? own : s.scratch;
  bool done = false;
  const auto attempt = [&] {
    int64_t wanted = s.entry->run(call, memory.data, memory.bytes);
    if (wanted > 0) {
      memory.grow(wanted);
      wanted = s.entry->run(call, memory.data, memory.bytes);
    }
    done = wanted == 0;
  };
  try {
    if (s.bytes * call.rows.T * call.rows.B >= kLongBytes) {
      const py::gil_scoped_release others;
      attempt();
    } else {
      attempt();
    }
  } catch (...) {
    done = false;
  }
  if (!other) s.busy.clear(std::memory_order_release);
  return done;
}

// What a call is of, once its input and state are seen to be ordinary.
struct Read {
  StreamCall call;
  Argument x, h, c;
  PyObject *h_object = nullptr, *c_object = nullptr;
  bool batched = true;
};

bool read_call(const Torch& torch, const Impl& s, Form form, PyObject* input, PyObject* hx, Read& r) {
  if (!torch.ordinary()) return false;
  const bool gradients = Torch::ask(torch.gradients);
  if (!take(torch, s, input, gradients, r.x)) return false;
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
  if (call.rows.T < 1 || call.rows.B < 1) return false;
  if (hx != Py_None) {
    r.h_object = hx;
    if (s.has_cell) {
      if (!PyTuple_CheckExact(hx) || PyTuple_GET_SIZE(hx) != 2) return false;
      r.h_object = PyTuple_GET_ITEM(hx, 0);
      r.c_object = PyTuple_GET_ITEM(hx, 1);
      if (!take(torch, s, r.c_object, gradients, r.c)) return false;
      if (!has_state_shape(r.c, s.states, r.batched, call.rows.B, s.hidden_size)) return false;
      call.c0 = r.c.data();
    }
    if (!take(torch, s, r.h_object, gradients, r.h)) return false;
    if (!has_state_shape(r.h, s.states, r.batched, call.rows.B, s.output_size)) return false;
    call.h0 = r.h.data();
  }
  if (!unchanged(torch, s)) return false;
  call.packed = s.pointers.data();
  call.directions = s.directions;
  call.layers = s.states / s.directions;
  return true;
}

// Where a new tensor's data is.
void* address(const Torch& torch, PyObject* tensor) {
  DLTensor t;
  if (!tensor || !torch.read(tensor, &t)) return nullptr;
  return static_cast<char*>(t.data) + t.byte_offset;
}

PyObject* none_of(PyObject* a, PyObject* b, PyObject* c) {
  Py_XDECREF(a);
  Py_XDECREF(b);
  Py_XDECREF(c);
  PyErr_Clear();
  Py_RETURN_NONE;
}

PyObject* run_new(StreamObject* self, PyObject* const* arguments, Py_ssize_t count, Form form) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "expected an input and a state");
    return nullptr;
  }
  Impl& s = *self->impl;
  const Torch& torch = Torch::get();
  Read r;
  if (!read_call(torch, s, form, arguments[0], arguments[1], r)) return none_of(nullptr, nullptr, nullptr);
  const int64_t T = r.call.rows.T, B = r.call.rows.B, out = s.output_size, features = out * s.directions;
  const auto new_output = [&] {
    if (form == Form::kStep)
      return r.batched ? new_tensor(torch, s, {B, features}) : new_tensor(torch, s, {features});
    if (!r.batched) return new_tensor(torch, s, {T, features});
    return s.batch_first ? new_tensor(torch, s, {B, T, features}) : new_tensor(torch, s, {T, B, features});
  };
  const auto new_state = [&](PyObject* old, int64_t size) {
    if (old) return new_like(torch, old);
    return r.batched ? new_tensor(torch, s, {s.states, B, size}) : new_tensor(torch, s, {s.states, size});
  };
  PyObject* const y = new_output();
  PyObject* const h = new_state(r.h_object, out);
  PyObject* const c = s.has_cell ? new_state(r.c_object, s.hidden_size) : nullptr;
  r.call.y = address(torch, y);
  r.call.hn = address(torch, h);
  r.call.cn = s.has_cell ? address(torch, c) : nullptr;
  if (!r.call.y || !r.call.hn || (s.has_cell && !r.call.cn) || !run(s, r.call)) return none_of(y, h, c);
  PyObject* const state = c ? PyTuple_Pack(2, h, c) : h;
  if (c) {
    Py_DECREF(h);
    Py_DECREF(c);
  }
  PyObject* const result = state ? PyTuple_Pack(2, y, state) : nullptr;
  Py_DECREF(y);
  Py_XDECREF(state);
  return result;
}

PyObject* step(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return run_new(reinterpret_cast<StreamObject*>(self), arguments, count, Form::kStep);
}
PyObject* chunk(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return run_new(reinterpret_cast<StreamObject*>(self), arguments, count, Form::kChunk);
}

// step(input, hx) into out, and the new state into hx. True, or None.
PyObject* step_in_place(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "expected an input, a state and an output");
    return nullptr;
  }
  Impl& s = *reinterpret_cast<StreamObject*>(object)->impl;
  const Torch& torch = Torch::get();
  Read r;
  Argument y;
  const auto long_way = [] { return none_of(nullptr, nullptr, nullptr); };
  if (arguments[1] == Py_None || !read_call(torch, s, Form::kStep, arguments[0], arguments[1], r)) return long_way();
  if (!take(torch, s, arguments[2], false, y) || y.tensor.ndim != r.x.tensor.ndim) return long_way();
  const int64_t features = s.output_size * s.directions;
  if (y.tensor.shape[y.tensor.ndim - 1] != features || y.numel() != r.call.rows.B * features || !y.contiguous()) {
    return long_way();
  }
  const bool apart = !y.overlaps(r.x, s.element) && !y.overlaps(r.h, s.element) && !r.h.overlaps(r.x, s.element);
  const bool cell_apart =
      !s.has_cell || (!r.c.overlaps(y, s.element) && !r.c.overlaps(r.h, s.element) && !r.c.overlaps(r.x, s.element));
  // x may have gaps between its rows, of which numel() says nothing.
  if (!apart || !cell_apart || !r.x.contiguous()) return long_way();
  if (Torch::ask(torch.gradients) && Torch::truth(PyObject_GetAttr(arguments[2], torch.requires_grad)))
    return long_way();
  // Counted before they are written: what autograd has saved of them is seen to be gone.
  PyObject* const written =
      s.has_cell ? PyTuple_Pack(3, arguments[2], r.h_object, r.c_object) : PyTuple_Pack(2, arguments[2], r.h_object);
  PyObject* const counted = written ? PyObject_CallOneArg(torch.increment_version, written) : nullptr;
  Py_XDECREF(written);
  if (!counted) return long_way();
  Py_DECREF(counted);
  r.call.y = y.data();
  r.call.hn = r.h.data();
  r.call.cn = s.has_cell ? r.c.data() : nullptr;
  if (!run(s, r.call)) return long_way();
  Py_RETURN_TRUE;
}

// ---- the type -----------------------------------------------------------------------------------

// sources: (dict, name, tensor, version, address) of what the packed weights were made of.
void initialise(Impl& s, const py::dict& facts, const py::list& packed, const py::list& sources) {
  Torch& torch = Torch::get();
  torch.find();
  s.entry = reinterpret_cast<const StreamEntry*>(static_cast<intptr_t>(py::cast<int64_t>(facts["entry"])));
  if (!s.entry || s.entry->bytes != kStreamEntryBytes) throw py::type_error("entry: it is of another version");
  const auto is_plain = [&](const py::handle& t) {
    auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(t.ptr()));
    return type == reinterpret_cast<PyObject*>(torch.tensor) || type == torch.parameter;
  };
  const auto whole = [&](const char* name) { return py::cast<int64_t>(facts[name]); };
  s.states = whole("states");
  s.input_size = whole("input_size");
  s.output_size = whole("output_size");
  s.hidden_size = whole("hidden_size");
  s.directions = static_cast<int>(whole("directions"));
  s.has_cell = py::cast<bool>(facts["has_cell"]);
  s.batch_first = py::cast<bool>(facts["batch_first"]);
  if (static_cast<int64_t>(packed.size()) != s.states) throw py::type_error("packed: expected one for each state");
  s.packed = packed;
  for (const py::handle& own : packed) {
    DLTensor t;
    if (!is_plain(own) || !torch.read(own.ptr(), &t)) throw py::type_error("packed: expected plain tensors");
    s.pointers.push_back(static_cast<const char*>(t.data) + t.byte_offset);
    s.bytes += t.shape[0];
  }
  s.held.push_back(facts["dtype"]);
  s.dtype = s.held.back().ptr();
  DLTensor sample;
  const py::object like = facts["sample"];
  if (!torch.read(like.ptr(), &sample)) throw py::type_error("sample: expected a tensor");
  s.kind = sample.dtype;
  s.element = s.kind.bits / 8;
  for (const py::handle& row : sources) {
    const auto source = py::cast<py::tuple>(row);
    const py::object holder = source[0], name = source[1], tensor = source[2];
    if (!is_plain(tensor) || source[3].is_none() || !PyDict_CheckExact(holder.ptr())) {
      throw py::type_error("sources: expected plain tensors");
    }
    for (const py::object& own : {holder, name, tensor}) s.held.push_back(own);
    s.sources.push_back({holder.ptr(), name.ptr(), tensor.ptr(), py::cast<int64_t>(source[3]),
                         reinterpret_cast<void*>(py::cast<intptr_t>(source[4]))});
  }
}

PyObject* new_stream(PyTypeObject* type, PyObject* arguments, PyObject*) {
  PyObject *facts, *packed, *sources;
  if (!PyArg_ParseTuple(arguments, "O!O!O!", &PyDict_Type, &facts, &PyList_Type, &packed, &PyList_Type, &sources)) {
    return nullptr;
  }
  try {
    auto impl = std::make_unique<Impl>();
    initialise(*impl, py::reinterpret_borrow<py::dict>(facts), py::reinterpret_borrow<py::list>(packed),
               py::reinterpret_borrow<py::list>(sources));
    PyObject* const self = type->tp_alloc(type, 0);
    if (self) reinterpret_cast<StreamObject*>(self)->impl = impl.release();
    return self;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  }
  return nullptr;
}

void delete_stream(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  delete reinterpret_cast<StreamObject*>(self)->impl;
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef kMethods[] = {{"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step)), METH_FASTCALL,
                           "step(input, hx): output and new state, or None where the call is out of the ordinary."},
                          {"chunk", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&chunk)),
                           METH_FASTCALL, "chunk(input, hx): the same of a sequence."},
                          {"step_", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step_in_place)),
                           METH_FASTCALL, "step_(input, hx, out): a step into out and hx. True, or None."},
                          {nullptr, nullptr, 0, nullptr}};
PyType_Slot kSlots[] = {{Py_tp_new, reinterpret_cast<void*>(&new_stream)},
                        {Py_tp_dealloc, reinterpret_cast<void*>(&delete_stream)},
                        {Py_tp_methods, kMethods},
                        {0, nullptr}};
PyType_Spec kSpec = {"fastrnn._C.Stream", sizeof(StreamObject), 0, Py_TPFLAGS_DEFAULT, kSlots};

}  // namespace

void add_stream_type(py::module_& module) {
  PyObject* const type = PyType_FromSpec(&kSpec);
  if (!type) throw py::error_already_set();
  module.attr("Stream") = py::reinterpret_steal<py::object>(type);
}

}  // namespace fastrnn
