// A call of a module of one layer in inference, as a call of C: what fastrnn/_run/quick.py asks in Python of a call
// that records gradients.
//
// Such a call of a small layer is over in a few microseconds, and of a larger one the weights push the interpreter's
// own code and tables out of the cache: around 256 units each of its lines costs several times what it does alone.
// Whatever is out of the ordinary, an error too, is left to Python, which finds out what it is.
#include "python_layer_call.h"

namespace fastrnn::python_layer {
namespace {

// States of zeros that a call begins with where none is given: nobody gets to see them but the kernels.
constexpr int64_t kMostZeros = 128 << 10;
alignas(64) const char kZeros[kMostZeros] = {};

// The fields of a module that are looked at.
struct Names {
  PyObject *weights, *parameters, *batch_first, *backend, *num_layers, *proj_size, *variant, *input_size,
      *hidden_size, *mode, *bidirectional, *bias, *transpose;

  static const Names& get() {
    static const Names names{of("_flat_weights"), of("_parameters"), of("batch_first"),   of("backend"),
                             of("num_layers"),    of("proj_size"),   of("variant"),       of("input_size"),
                             of("hidden_size"),   of("mode"),        of("bidirectional"), of("bias"),
                             of("transpose")};
    return names;
  }
  static PyObject* of(const char* name) { return PyUnicode_InternFromString(name); }
};

PyObject* field(PyObject* fields, PyObject* name) { return PyDict_GetItemWithError(fields, name); }

// False where it is no bool.
bool read_bool(PyObject* object, bool& out) {
  if (!object || !PyBool_Check(object)) return false;
  out = object == Py_True;
  return true;
}

bool is_integer(PyObject* object, int64_t value) {
  return object && PyLong_CheckExact(object) && PyLong_AsLongLong(object) == value;
}

// Whether the list of weights is that of the parameters, in their order: else it has to be made anew.
bool are_parameters(PyObject* weights, PyObject* parameters) {
  Py_ssize_t at = 0;
  PyObject *name, *parameter;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(weights); ++i) {
    if (!PyDict_Next(parameters, &at, &name, &parameter) || parameter != PyTuple_GET_ITEM(weights, i)) return false;
  }
  return true;
}

// One of the first states: (D, B, H), or of a single sequence (D, H).
bool read_state(const Torch& torch, PyObject* object, const DLDataType& kind, const LayerShape& s, bool batched,
                const void*& out) {
  Argument state;
  if (Py_TYPE(object) != torch.tensor || !take(torch, object, state)) return false;
  if (!(batched ? has_shape(state, kind, {s.D, s.B, s.H}) : has_shape(state, kind, {s.D, s.H}))) return false;
  out = state.data();
  return true;
}

bool read_states(const Torch& torch, PyObject* given, const DLDataType& kind, bool batched, ForwardParams& call) {
  const LayerShape& s = call.shape;
  const bool has_cell = facts_of(s.cell).has_cell;
  if (given == Py_None) {
    if (s.D * s.B * s.H * static_cast<int64_t>(size_of(s.dtype)) > kMostZeros) return false;
    call.h0 = kZeros;
    if (has_cell) call.c0 = kZeros;
    return true;
  }
  if (!has_cell) return read_state(torch, given, kind, s, batched, call.h0);
  return PyTuple_CheckExact(given) && PyTuple_GET_SIZE(given) == 2 &&
         read_state(torch, PyTuple_GET_ITEM(given, 0), kind, s, batched, call.h0) &&
         read_state(torch, PyTuple_GET_ITEM(given, 1), kind, s, batched, call.c0);
}

// Whether the kernels take a layer of this backend and of x's dtype.
bool fused(const LayerImpl& layer, const Torch& torch, PyObject* backend, PyObject* x) {
  Py_XINCREF(backend);
  PyObject* const dtype = backend ? PyObject_GetAttr(x, torch.dtype_attribute) : nullptr;
  PyObject* const both = dtype ? PyTuple_Pack(2, backend, dtype) : nullptr;
  const bool takes = both && PySet_Contains(layer.fused.ptr(), both) == 1;
  for (PyObject* const held : {backend, dtype, both}) Py_XDECREF(held);
  return takes;
}

// The results, or null where it is Python's. weights: a tuple of those of the module's list.
PyObject* ordinary(const LayerImpl& layer, PyObject* fields, PyObject* weights, PyObject* x, PyObject* given) {
  const Torch& torch = Torch::get();
  const Names& names = Names::get();
  ForwardParams call;
  LayerShape& s = call.shape;
  bool batch_first = false, both_directions = false;
  // Each is done with before anything is made, for which Python may collect what nobody holds.
  PyObject* const parameters = field(fields, names.parameters);
  PyObject* const mode = field(fields, names.mode);
  PyObject* const cell = mode ? field(layer.cells.ptr(), mode) : nullptr;
  if (!cell || !read_cell(cell, s.cell) || !parameters || !PyDict_CheckExact(parameters) ||
      !are_parameters(weights, parameters) || !is_integer(field(fields, names.num_layers), 1) ||
      !is_integer(field(fields, names.proj_size), 0) || field(fields, names.variant) ||
      !read_bool(field(fields, names.batch_first), batch_first) ||
      !read_bool(field(fields, names.bidirectional), both_directions) ||
      !read_bool(field(fields, names.bias), s.bias) || !fused(layer, torch, field(fields, names.backend), x)) {
    return nullptr;
  }
  Argument input;
  if (!take(torch, x, input)) return nullptr;
  const DLDataType kind = input.tensor.dtype;
  // A single sequence (T, I) is a batch of one.
  const bool batched = input.tensor.ndim == 3;
  int64_t shape[3], strides[3];
  if (!batched) {
    if (input.tensor.ndim != 2) return nullptr;
    batch_first = false;
    shape[0] = input.size(0), shape[1] = 1, shape[2] = input.size(1);
    strides[0] = input.stride(0), strides[1] = 0, strides[2] = input.stride(1);
    input.tensor.ndim = 3;
    input.tensor.shape = shape;
    input.tensor.strides = strides;
  }
  s.D = both_directions ? 2 : 1;
  if (!read_x(input, batch_first, call) || !is_integer(field(fields, names.input_size), s.I) ||
      !read_weights(torch, weights, kind, call) || !is_integer(field(fields, names.hidden_size), s.H) ||
      !is_small(s) || !read_states(torch, given, kind, batched, call)) {
    return nullptr;
  }
  const bool has_cell = facts_of(s.cell).has_cell;
  Results results(torch, x);
  if (batched) {
    call.y = results.add(true, {s.T, s.B, s.D * s.H});
    call.hn = results.add(true, {s.D, s.B, s.H});
    call.cn = results.add(has_cell, {s.D, s.B, s.H});
  } else {
    call.y = results.add(true, {s.T, s.D * s.H});
    call.hn = results.add(true, {s.D, s.H});
    call.cn = results.add(has_cell, {s.D, s.H});
  }
  if (!results.whole() || !run(layer.entry->forward, call)) return nullptr;
  PyObject* const found = results.tuple(0, 3);
  if (!found || !batch_first) return found;
  // Small integers are always there.
  PyObject* const dims[] = {PyTuple_GET_ITEM(found, 0), PyLong_FromLong(0), PyLong_FromLong(1)};
  PyObject* const y = PyObject_VectorcallMethod(names.transpose, dims, 3, nullptr);
  Py_DECREF(dims[1]);
  Py_DECREF(dims[2]);
  if (!y) {
    Py_DECREF(found);
    return nullptr;
  }
  Py_DECREF(dims[0]);
  PyTuple_SET_ITEM(found, 0, y);
  return found;
}

}  // namespace

PyObject* module_call(const LayerImpl& layer, PyObject* fields, PyObject* x, PyObject* given) {
  const Torch& torch = Torch::get();
  PyObject* found = nullptr;
  if (Py_TYPE(x) == torch.tensor && !torch.watched() && torch.ordinary() && !Torch::ask(torch.any_autocast)) {
    PyObject* const list = field(fields, Names::get().weights);
    // Held from before they are looked at: other threads may run meanwhile, and put others into the list.
    PyObject* const weights = list && PyList_CheckExact(list) ? PyList_AsTuple(list) : nullptr;
    found = weights ? ordinary(layer, fields, weights, x, given) : nullptr;
    Py_XDECREF(weights);
  }
  if (found) return found;
  PyErr_Clear();
  Py_RETURN_NONE;
}

}  // namespace fastrnn::python_layer
