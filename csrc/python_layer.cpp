// fastrnn._C.Layer: the operators rnn_forward and rnn_backward for whoever has seen that nobody looks on
// (fastrnn/_run/quick.py, fastrnn/_ops/autograd.py), as calls of C.
//
// A step of a small layer takes a microsecond or two, and the dispatcher with its boxes five, or ten where nothing of
// it is in the caches. Here the arguments are read by DLPack, as in python_stream.cpp, and where all of them are
// ordinary the kernel is called at once; every other call is the operator's, with the same arguments.
#include "python_layer.h"

#include <algorithm>
#include <memory>

#include "python_layer_call.h"

namespace fastrnn {

using namespace python_layer;

namespace {

// Gradients of weights from so many bytes on are the operator's, to which a call is little.
constexpr int64_t kMostGradientBytes = 8 << 20;
// Arguments of the operators by their places, see schema.cpp. Both have the inputs, and the options at the end.
enum : int {
  kX,
  kH0,
  kC0,
  kWeights,
  kBatchSizes,
  kLengths,
  kReset,
  kInputs,
  kCell = 0,
  kBias,
  kMode,
  kOptions,
  kGradY = 0,
  kGradHn,
  kGradCn,
  kGradCells,
  kGradients,
  kSavedY = 0,
  kSavedGates,
  kSavedCells,
  kSaved
};
constexpr int kForwardArguments = kInputs + kOptions;
constexpr int kSavedAt = kGradients + kInputs, kBackwardArguments = kSavedAt + kSaved + kOptions;

// What both operators are given: where in a call's arguments it lies.
struct Given {
  PyObject* const* inputs;
  PyObject* const* options;
  PyObject* weights;  // a tuple
};

// What an integer says; -1 for whatever is none, or is not within 0 and most.
int64_t read_mode(PyObject* object, int64_t most) {
  if (!PyLong_CheckExact(object)) return -1;
  const long mode = PyLong_AsLong(object);
  return mode < 0 || mode > most ? -1 : mode;
}

// The layer and where its arguments lie, of a pass forward or backward; false where one of them is not ordinary, or
// does not fit. kind: of every tensor.
template <class Params>
bool read(const Torch& torch, const Given& given, Params& call, DLDataType& kind) {
  for (const int absent : {kBatchSizes, kLengths, kReset}) {
    if (given.inputs[absent] != Py_None) return false;
  }
  LayerShape& s = call.shape;
  if (!read_cell(given.options[kCell], s.cell) || !PyBool_Check(given.options[kBias])) return false;
  s.bias = given.options[kBias] == Py_True;
  Argument x, h;
  if (!take(torch, given.inputs[kX], x) || !take(torch, given.inputs[kH0], h) || h.tensor.ndim != 3) return false;
  kind = x.tensor.dtype;
  s.D = static_cast<int>(h.size(0));
  if (!read_x(x, false, call) || !read_weights(torch, given.weights, kind, call)) return false;
  if (!has_shape(h, kind, {s.D, s.B, s.H})) return false;
  call.h0 = h.data();
  if (facts_of(s.cell).has_cell) {
    Argument c;
    if (!take(torch, given.inputs[kC0], c) || !has_shape(c, kind, {s.D, s.B, s.H})) return false;
    call.c0 = c.data();
  } else if (given.inputs[kC0] != Py_None) {
    return false;
  }
  return is_small(s);
}

// (y, hn, cn, gates, cells), None where there is none; null where it is the operator's.
PyObject* ordinary_forward(const LayerImpl& layer, const Given& given) {
  const Torch& torch = Torch::get();
  const int64_t mode = read_mode(given.options[kMode], static_cast<int64_t>(Save::kRecompute));
  // A pass that saves is the autograd.Function's, which has not seen that nobody looks on.
  if (mode < 0 || torch.watched() || (mode != 0 && !torch.ordinary())) return nullptr;
  ForwardParams call;
  DLDataType kind;
  if (!read(torch, given, call, kind)) return nullptr;
  const LayerShape& s = call.shape;
  const bool has_cell = facts_of(s.cell).has_cell;
  call.save = static_cast<Save>(mode);
  // Of the half types what is saved is of two dtypes.
  if (call.save != Save::kNothing && size_of(s.dtype) < sizeof(float)) return nullptr;
  const int saved = saved_of(s);
  Results results(torch, given.inputs[kX]);
  call.y = results.add(true, {s.T, s.B, s.D * s.H});
  call.hn = results.add(true, {s.D, s.B, s.H});
  call.cn = results.add(has_cell, {s.D, s.B, s.H});
  call.gates = results.add(call.save == Save::kGates && saved > 0, {s.D, s.rows(), saved * s.H});
  call.cells = results.add(call.save != Save::kNothing && has_cell, {s.D, s.rows(), s.H});
  return results.whole() && run(layer.entry->forward, call) ? results.tuple(0, 5) : nullptr;
}

// Something saved that may be absent; false where it is not ordinary, or does not fit.
bool take_saved(const Torch& torch, PyObject* object, bool there_is, const DLDataType& kind,
                std::initializer_list<int64_t> sizes, const void*& out) {
  if (object == Py_None) return true;
  Argument found;
  if (!there_is || !take(torch, object, found) || !has_shape(found, kind, sizes)) return false;
  out = found.data();
  return true;
}

// Copies of gradients that do not lie as the kernels read them: those of sums and means are expanded.
class Copies {
 public:
  ~Copies() {
    for (int i = 0; i < count_; ++i) Py_DECREF(made_[i]);
  }
  // Makes `found` that of a copy.
  bool add(const Torch& torch, PyObject* object, Argument& found) {
    PyObject* const made = PyObject_CallMethodNoArgs(object, torch.contiguous);
    if (!made) return false;
    made_[count_++] = made;
    return take(torch, made, found);
  }

 private:
  PyObject* made_[kGradients];
  int count_ = 0;
};

// A gradient, which may be absent.
bool take_gradient(const Torch& torch, PyObject* object, bool there_is, const DLDataType& kind,
                   std::initializer_list<int64_t> sizes, Copies& copies, const void*& out) {
  if (object == Py_None) return true;
  Argument found;
  if (!there_is || !take(torch, object, found) || !has_sizes(found, kind, sizes)) return false;
  if (!found.contiguous() && !copies.add(torch, object, found)) return false;
  out = found.data();
  return true;
}

// The gradient of y, whose rows may lie apart.
bool take_rows(const Torch& torch, PyObject* object, const DLDataType& kind, std::initializer_list<int64_t> sizes,
               Copies& copies, TensorRows& out) {
  if (object == Py_None) return true;
  Argument found;
  if (!take(torch, object, found) || !has_sizes(found, kind, sizes)) return false;
  if (found.size(2) > 1 && found.stride(2) != 1 && !copies.add(torch, object, found)) return false;
  out = {found.data(), found.stride(0), found.stride(1)};
  return true;
}

// (grad_x, grad_h0, grad_c0, those of the weights as a tuple), None where not wanted; null where it is the
// operator's.
PyObject* ordinary_backward(const LayerImpl& layer, const Given& given, PyObject* const* grads,
                            PyObject* const* saved) {
  const Torch& torch = Torch::get();
  const int64_t needs = read_mode(given.options[kMode], Needs::kAll);
  if (needs <= 0 || grads[kGradCells] != Py_None || torch.watched() || !torch.ordinary()) return nullptr;
  BackwardParams call;
  DLDataType kind;
  // Of two directions x has two gradients to be added up, and those of the half types are made in float.
  if (!read(torch, given, call, kind) || call.shape.D != 1 || size_of(call.shape.dtype) < sizeof(float))
    return nullptr;
  const LayerShape& s = call.shape;
  const int64_t T = s.T, B = s.B, H = s.H, rows = gates_of(s.cell) * H;
  if (rows * std::max(s.I, H) * static_cast<int64_t>(size_of(s.dtype)) >= kMostGradientBytes) return nullptr;
  const bool has_cell = facts_of(s.cell).has_cell, has_gates = saved_of(s) > 0;
  // What there is not is None, also of a cell that has no such thing. Without gates they are computed again; an empty
  // tensor, the operator's way to say so, is left to it.
  Copies copies;
  if (!take_saved(torch, saved[kSavedY], true, kind, {T, B, H}, call.y) || !call.y ||
      !take_saved(torch, saved[kSavedGates], has_gates, kind, {1, T * B, saved_of(s) * H}, call.gates) ||
      !take_saved(torch, saved[kSavedCells], has_cell, kind, {1, T * B, H}, call.cells) ||
      (has_cell && !call.cells) || !take_rows(torch, grads[kGradY], kind, {T, B, H}, copies, call.grad_y) ||
      !take_gradient(torch, grads[kGradHn], true, kind, {1, B, H}, copies, call.grad_hn) ||
      !take_gradient(torch, grads[kGradCn], has_cell, kind, {1, B, H}, copies, call.grad_cn)) {
    return nullptr;
  }
  Results results(torch, given.inputs[kX]);
  call.grad_x[0] = results.add(needs & Needs::kX, {T, B, s.I});
  call.grad_h0 = results.add(needs & Needs::kH0, {1, B, H});
  call.grad_c0 = results.add(has_cell && (needs & Needs::kC0), {1, B, H});
  call.need_weights = needs & Needs::kWeights;
  const int weights = !call.need_weights ? 0 : s.bias ? 4 : 2;
  WeightGradients& of_weights = call.grad_weights[0];
  if (weights) {
    of_weights.w_ih = results.add(true, {rows, s.I});
    of_weights.w_hh = results.add(true, {rows, H});
  }
  if (weights == 4) {
    of_weights.b_ih = results.add(true, {rows});
    of_weights.b_hh = results.add(true, {rows});
  }
  if (!results.whole() || !run(layer.entry->backward, call)) return nullptr;
  PyObject* const list = results.tuple(3, weights);
  PyObject* const found = list ? results.tuple(0, 3, list) : nullptr;
  Py_XDECREF(list);
  return found;
}

// compute(given), of arguments whose inputs begin at `inputs`; null, without an error, where it is the operator's.
template <class Compute>
PyObject* ordinary(PyObject* const* arguments, Py_ssize_t count, Py_ssize_t expected, int inputs, Compute compute) {
  if (count != expected || !PyList_CheckExact(arguments[inputs + kWeights])) return nullptr;
  // Held from before they are looked at: other threads may run meanwhile, and put others into the list.
  PyObject* const weights = PyList_AsTuple(arguments[inputs + kWeights]);
  PyObject* const found =
      weights ? compute(Given{arguments + inputs, arguments + count - kOptions, weights}) : nullptr;
  Py_XDECREF(weights);
  if (!found) PyErr_Clear();
  return found;
}

PyObject* forward(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  const LayerImpl& layer = impl_of<LayerImpl>(self);
  PyObject* const found = ordinary(arguments, count, kForwardArguments, 0,
                                   [&](const Given& given) { return ordinary_forward(layer, given); });
  return found ? found : PyObject_Vectorcall(layer.forward.ptr(), arguments, count, nullptr);
}

// The operator takes tensors for what was saved: an empty one stands for what was not.
PyObject* call_backward(const LayerImpl& layer, PyObject* const* given) {
  PyObject* arguments[kBackwardArguments];
  std::copy_n(given, kBackwardArguments, arguments);
  PyObject* made[kSaved] = {};
  for (const int i : {kSavedGates, kSavedCells}) {
    PyObject*& saved = arguments[kSavedAt + i];
    if (saved != Py_None) continue;
    made[i] = PyObject_CallMethod(arguments[kGradients + kX], "new_empty", "(i)", 0);
    if (!made[i]) PyErr_Clear();  // of what is no tensor the operator says it
    saved = made[i] ? made[i] : Py_None;
  }
  PyObject* const found = PyObject_Vectorcall(layer.backward.ptr(), arguments, kBackwardArguments, nullptr);
  for (PyObject* const own : made) Py_XDECREF(own);
  return found;
}

PyObject* backward(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  const LayerImpl& layer = impl_of<LayerImpl>(self);
  PyObject* const found = ordinary(arguments, count, kBackwardArguments, kGradients, [&](const Given& given) {
    return ordinary_backward(layer, given, arguments, arguments + kSavedAt);
  });
  if (found) return found;
  if (count == kBackwardArguments) return call_backward(layer, arguments);
  return PyObject_Vectorcall(layer.backward.ptr(), arguments, count, nullptr);
}

PyObject* of_module(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 3) {
    return PyErr_Format(PyExc_TypeError, "module: expected a module's fields, its input and its state");
  }
  if (!PyDict_CheckExact(arguments[0])) Py_RETURN_NONE;
  return module_call(impl_of<LayerImpl>(self), arguments[0], arguments[1], arguments[2]);
}

PyObject* new_layer(PyTypeObject* type, PyObject* arguments, PyObject*) {
  PyObject *forward, *backward, *cells, *fused;
  long long entry;
  if (!PyArg_ParseTuple(arguments, "OOLO!O", &forward, &backward, &entry, &PyDict_Type, &cells, &fused))
    return nullptr;
  return new_object<LayerImpl>(type, [&] {
    Torch::get().find();
    auto impl = std::make_unique<LayerImpl>();
    impl->entry = reinterpret_cast<const LayerEntry*>(static_cast<intptr_t>(entry));
    if (!impl->entry || impl->entry->bytes != kLayerEntryBytes) throw py::type_error("entry: of another version");
    Torch::get().observed = impl->entry->observed;
    impl->forward = py::reinterpret_borrow<py::object>(forward);
    impl->backward = py::reinterpret_borrow<py::object>(backward);
    impl->cells = py::reinterpret_borrow<py::object>(cells);
    impl->fused = py::reinterpret_borrow<py::object>(fused);
    return impl;
  });
}

PyMethodDef methods[] = {
    fast_method("forward", &forward,
                "The operator's arguments and results, of which those that there are not are None."),
    fast_method("backward", &backward,
                "The operator's arguments and results, of which those that are not wanted are None."),
    fast_method("module", &of_module,
                "(output, h_n, c_n) of a module of one layer in inference, of its fields, its input and hx; None for "
                "whatever is out of the ordinary."),
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_layer_type(py::module_& module) { add_type<LayerImpl>(module, "Layer", &new_layer, methods); }

}  // namespace fastrnn
