// fastrnn._C.Stream: a call of a stack of packed layers (params/stream.h) as one call of C.
//
// A step of a small layer takes a microsecond or two. The dispatcher with its boxes and the checks in Python took ten
// more; here the arguments are read by DLPack (python_torch.h), and only what is ordinary is taken: for everything
// else (an argument that does not fit, one that requires a gradient, a mode or a transform that looks on, weights
// that have changed) the answer is None, and the caller goes the long way, which does what there is to do or says
// what is wrong.
//
// A type of its own (python_type.h), not one of pybind11's: that would cost a call more than all of this.
#include "python_stream.h"

#include <cstring>
#include <memory>
#include <string>

#include "python_stream_call.h"
#include "python_type.h"

namespace fastrnn {
namespace {

using namespace python_stream;

PyObject* run_new(PyObject* self, PyObject* const* arguments, Py_ssize_t count, Form form) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "expected an input and a state");
    return nullptr;
  }
  Impl& s = impl_of<Impl>(self);
  const Torch& torch = Torch::get();
  Read r;
  if (!read_call(torch, s, form, arguments[0], arguments[1], r)) return none_of(nullptr, nullptr, nullptr);
  const int64_t T = r.call.rows.T, B = r.call.rows.B, out = s.output_size, features = out * s.directions;
  const auto new_output = [&] {
    if (form == Form::kStep)
      return r.batched ? torch.new_tensor(s.dtype, {B, features}) : torch.new_tensor(s.dtype, {features});
    if (!r.batched) return torch.new_tensor(s.dtype, {T, features});
    return s.batch_first ? torch.new_tensor(s.dtype, {B, T, features}) : torch.new_tensor(s.dtype, {T, B, features});
  };
  const auto new_state = [&](PyObject* old, int64_t size) {
    if (old) return new_like(torch, old);
    return r.batched ? torch.new_tensor(s.dtype, {s.states, B, size}) : torch.new_tensor(s.dtype, {s.states, size});
  };
  PyObject* const y = new_output();
  PyObject* const h = new_state(r.h_object, out);
  PyObject* const c = s.has_cell ? new_state(r.c_object, s.hidden_size) : nullptr;
  r.call.y = torch.address_of_new(y);
  r.call.hn = torch.address_of_new(h);
  r.call.cn = s.has_cell ? torch.address_of_new(c) : nullptr;
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
  return run_new(self, arguments, count, Form::kStep);
}
PyObject* chunk(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return run_new(self, arguments, count, Form::kChunk);
}

// step(input, hx) into out, and the new state into hx. True, or None.
PyObject* step_in_place(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "expected an input, a state and an output");
    return nullptr;
  }
  Impl& s = impl_of<Impl>(object);
  const Torch& torch = Torch::get();
  Read r;
  const auto long_way = [] { return none_of(nullptr, nullptr, nullptr); };
  if (arguments[1] == Py_None || !read_call(torch, s, Form::kStep, arguments[0], arguments[1], r)) return long_way();
  if (!read_output(torch, s, arguments[2], r) || !write_state(torch, s, r) || !run(s, r.call)) return long_way();
  Py_RETURN_TRUE;
}

// step(input, hx) of the streams that `active` says, the new state into hx: the output, or True where there is `out`
// to take it; None.
PyObject* step_active(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "expected an input, a state, the active rows, and an output or None");
    return nullptr;
  }
  Impl& s = impl_of<Impl>(object);
  const Torch& torch = Torch::get();
  Read r;
  const auto long_way = [](PyObject* y) { return none_of(y, nullptr, nullptr); };
  const bool makes = arguments[3] == Py_None;
  if (arguments[1] == Py_None || !read_input(torch, s, Form::kStep, arguments[0], r)) return long_way(nullptr);
  const int64_t rows = r.call.rows.B;
  if (!r.batched || !read_active(torch, s, arguments[2], arguments[1], r)) return long_way(nullptr);
  if (!makes && !read_output(torch, s, arguments[3], r)) return long_way(nullptr);
  PyObject* y = nullptr;
  if (makes) {
    y = torch.new_tensor(s.dtype, {rows, s.output_size});
    r.call.y = torch.address_of_new(y);
    if (!r.call.y) return long_way(y);
    if (r.call.rows.B < rows) std::memset(r.call.y, 0, static_cast<size_t>(rows * s.output_size * s.element));
  }
  if (!write_state(torch, s, r) || !run(s, r.call)) return long_way(y);
  if (makes) return y;
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
  return new_object<Impl>(type, [&] {
    auto impl = std::make_unique<Impl>();
    initialise(*impl, py::reinterpret_borrow<py::dict>(facts), py::reinterpret_borrow<py::list>(packed),
               py::reinterpret_borrow<py::list>(sources));
    return impl;
  });
}

PyMethodDef methods[] = {
    fast_method("step", &step,
                "step(input, hx): output and new state, or None where the call is out of the ordinary."),
    fast_method("chunk", &chunk, "chunk(input, hx): the same of a sequence."),
    fast_method("step_", &step_in_place, "step_(input, hx, out): a step into out and hx. True, or None."),
    fast_method("step_active", &step_active,
                "step_active(input, hx, active, out): a step of some streams, their state in hx. The "
                "output or, in out, True; or None."),
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_stream_type(py::module_& module) { add_type<Impl>(module, "Stream", &new_stream, methods); }

}  // namespace fastrnn
