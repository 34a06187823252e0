// fastrnn._C.Layer: the operator rnn_forward for whoever has seen that nobody looks on (fastrnn/_run/quick.py), as a
// call of C.
//
// A step of a small layer takes a microsecond or two, and the dispatcher with its boxes five. Here the arguments are
// read by DLPack, as in python_stream.cpp, and where all of them are ordinary the kernel is called at once; every
// other call is the operator's, with the same arguments.
#include "python_layer.h"

#include <memory>

#include "params/layer_call.h"
#include "python_torch.h"
#include "python_type.h"

namespace fastrnn {
namespace {

// Results from so many bytes on are the operator's, which maps large ones in huge pages, and to which a call is
// little.
constexpr int64_t kMostBytes = 1 << 20;
// Arguments of the operator, see schema.cpp.
enum : int { kX, kH0, kC0, kWeights, kBatchSizes, kLengths, kReset, kCell, kBias, kMode, kArguments };

struct LayerImpl {
  const LayerEntry* entry = nullptr;
  py::object own_operator, profiling;
};

bool read_dtype(const DLDataType& type, Dtype& out) {
  if (type.lanes != 1) return false;
  if (type.code == kDLBfloat && type.bits == 16) return out = Dtype::kBFloat16, true;
  if (type.code != kDLFloat) return false;
  switch (type.bits) {
    case 16:
      return out = Dtype::kHalf, true;
    case 32:
      return out = Dtype::kFloat, true;
    case 64:
      return out = Dtype::kDouble, true;
  }
  return false;
}

// A tensor on the CPU that is torch's own, or a parameter, with memory that says what its values are.
bool take(const Torch& torch, PyObject* object, Argument& out) {
  auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != reinterpret_cast<PyObject*>(torch.tensor) && type != torch.parameter) return false;
  if (!torch.read(object, &out.tensor) || !out.tensor.data || out.tensor.device.device_type != kDLCPU) return false;
  return !Torch::truth(PyObject_CallMethodNoArgs(object, torch.is_neg));
}

bool has_shape(const Argument& a, const DLDataType& kind, std::initializer_list<int64_t> sizes) {
  const DLTensor& t = a.tensor;
  if (t.dtype.code != kind.code || t.dtype.bits != kind.bits || t.ndim != static_cast<int>(sizes.size()))
    return false;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] != sizes.begin()[i]) return false;
  }
  return a.contiguous();
}

bool read_cell(PyObject* name, CellKind& out) {
  if (!PyUnicode_Check(name)) return false;
  int kind = 0;
  for (const CellFacts& cell : kCells) {
    if (PyUnicode_CompareWithASCIIString(name, cell.name) == 0) return out = static_cast<CellKind>(kind), true;
    ++kind;
  }
  return false;  // a variant's
}

// The layer and where its arguments lie; false where one of them is not ordinary, or does not fit. weights: a tuple.
bool read(const Torch& torch, PyObject* const* given, PyObject* weights, ForwardParams& call) {
  for (const int absent : {kBatchSizes, kLengths, kReset}) {
    if (given[absent] != Py_None) return false;
  }
  if (!PyLong_CheckExact(given[kMode]) || PyLong_AsLong(given[kMode]) != 0) return false;
  LayerShape& s = call.shape;
  if (!read_cell(given[kCell], s.cell) || !PyBool_Check(given[kBias])) return false;
  s.bias = given[kBias] == Py_True;
  const CellFacts& facts = facts_of(s.cell);
  Argument x, h;
  if (!take(torch, given[kX], x) || !take(torch, given[kH0], h)) return false;
  const DLDataType kind = x.tensor.dtype;
  if (!read_dtype(kind, s.dtype) || x.tensor.ndim != 3 || h.tensor.ndim != 3) return false;
  s.T = x.size(0);
  s.B = x.size(1);
  s.I = x.size(2);
  if (s.T < 1 || s.B < 1 || s.I < 1 || (s.I > 1 && x.stride(2) != 1)) return false;
  call.x = {x.data(), x.stride(0), x.stride(1)};
  s.D = static_cast<int>(h.size(0));
  const int a_direction = s.bias ? 4 : 2;
  if ((s.D != 1 && s.D != 2) || PyTuple_GET_SIZE(weights) != s.D * a_direction) return false;  // or a projection
  const void* pieces[2][4] = {};
  for (int d = 0; d < s.D; ++d) {
    for (int i = 0; i < a_direction; ++i) {
      Argument w;
      if (!take(torch, PyTuple_GET_ITEM(weights, d * a_direction + i), w) || w.tensor.ndim < 1) return false;
      if (d == 0 && i == 0) s.H = w.size(0) / facts.gates;
      const int64_t rows = facts.gates * s.H;
      if (s.H < 1 || !(i == 0   ? has_shape(w, kind, {rows, s.I})
                       : i == 1 ? has_shape(w, kind, {rows, s.H})
                                : has_shape(w, kind, {rows}))) {
        return false;
      }
      pieces[d][i] = w.data();
    }
    call.weights[d].w_ih = pieces[d][0];
    call.weights[d].w_hh = pieces[d][1];
    call.weights[d].b_ih = pieces[d][2];
    call.weights[d].b_hh = pieces[d][3];
  }
  if (!has_shape(h, kind, {s.D, s.B, s.H})) return false;
  call.h0 = h.data();
  if (facts.has_cell) {
    Argument c;
    if (!take(torch, given[kC0], c) || !has_shape(c, kind, {s.D, s.B, s.H})) return false;
    call.c0 = c.data();
  } else if (given[kC0] != Py_None) {
    return false;
  }
  return s.rows() * s.D * s.H * static_cast<int64_t>(size_of(s.dtype)) < kMostBytes;
}

// Whether the kernel ran.
bool run(const LayerEntry& entry, const ForwardParams& call) {
  const LayerShape& s = call.shape;
  const int64_t bytes = s.D * gates_of(s.cell) * s.H * (s.I + s.H) * static_cast<int64_t>(size_of(s.dtype));
  bool done = false;
  compute_apart(bytes * s.T * s.B >= kLongCall, [&] { done = entry.forward(call); });
  return done;
}

// (y, hn, cn or None, None, None); null where it is the operator's. weights: a tuple.
PyObject* ordinary(const LayerImpl& layer, PyObject* const* given, PyObject* weights) {
  const Torch& torch = Torch::get();
  ForwardParams call;
  if (Torch::ask(layer.profiling.ptr()) || !read(torch, given, weights, call)) return nullptr;
  const LayerShape& s = call.shape;
  PyObject* const dtype = PyObject_GetAttr(given[kX], torch.dtype_attribute);
  if (!dtype) return nullptr;
  const bool has_cell = facts_of(s.cell).has_cell;
  PyObject* const y = torch.new_tensor(dtype, {s.T, s.B, s.D * s.H});
  PyObject* const h = torch.new_tensor(dtype, {s.D, s.B, s.H});
  PyObject* const c = has_cell ? torch.new_tensor(dtype, {s.D, s.B, s.H}) : Py_NewRef(Py_None);
  call.y = torch.address_of_new(y);
  call.hn = torch.address_of_new(h);
  if (has_cell) call.cn = torch.address_of_new(c);
  PyObject* result = nullptr;
  if (call.y && call.hn && (!has_cell || call.cn) && run(*layer.entry, call)) {
    result = PyTuple_Pack(5, y, h, c, Py_None, Py_None);
  }
  for (PyObject* const own : {dtype, y, h, c}) Py_XDECREF(own);
  return result;
}

PyObject* forward(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  const LayerImpl& layer = impl_of<LayerImpl>(self);
  if (count == kArguments && PyList_CheckExact(arguments[kWeights])) {
    // Held from before they are looked at: other threads may run meanwhile, and put others into the list.
    PyObject* const weights = PyList_AsTuple(arguments[kWeights]);
    PyObject* const found = weights ? ordinary(layer, arguments, weights) : nullptr;
    Py_XDECREF(weights);
    if (found) return found;
    PyErr_Clear();
  }
  return PyObject_Vectorcall(layer.own_operator.ptr(), arguments, count, nullptr);
}

PyObject* new_layer(PyTypeObject* type, PyObject* arguments, PyObject*) {
  PyObject *own_operator, *profiling;
  long long entry;
  if (!PyArg_ParseTuple(arguments, "OLO", &own_operator, &entry, &profiling)) return nullptr;
  return new_object<LayerImpl>(type, [&] {
    Torch::get().find();
    auto impl = std::make_unique<LayerImpl>();
    impl->entry = reinterpret_cast<const LayerEntry*>(static_cast<intptr_t>(entry));
    if (!impl->entry || impl->entry->bytes != kLayerEntryBytes) throw py::type_error("entry: of another version");
    impl->own_operator = py::reinterpret_borrow<py::object>(own_operator);
    impl->profiling = py::reinterpret_borrow<py::object>(profiling);
    return impl;
  });
}

PyMethodDef methods[] = {
    fast_method("forward", &forward,
                "The operator's arguments and results, of which those that an inference has not are None."),
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_layer_type(py::module_& module) { add_type<LayerImpl>(module, "Layer", &new_layer, methods); }

}  // namespace fastrnn
