// fastrnn._C.Layer: the operators rnn_forward and rnn_backward for whoever has seen that nobody looks on
// (fastrnn/_run/quick.py, fastrnn/_ops/autograd.py), as calls of C.
//
// A step of a small layer takes a microsecond or two, and the dispatcher with its boxes five, or ten where nothing of
// it is in the caches. Here the arguments are read by DLPack, as in python_stream.cpp, and where all of them are
// ordinary the kernel is called at once; every other call is the operator's, with the same arguments.
#include "python_layer.h"

#include <algorithm>
#include <memory>

#include "params/layer_call.h"
#include "python_torch.h"
#include "python_type.h"

namespace fastrnn {
namespace {

// Results from so many bytes on are the operator's, which maps large ones in huge pages, and to which a call is
// little.
constexpr int64_t kMostBytes = 1 << 20;
// Gradients of weights from so many bytes on are the operator's too.
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

struct LayerImpl {
  const LayerEntry* entry = nullptr;
  py::object forward, backward, profiling;  // the operators, and a question
};

// What both operators are given: where in a call's arguments it lies.
struct Given {
  PyObject* const* inputs;
  PyObject* const* options;
  PyObject* weights;  // a tuple
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

bool has_sizes(const Argument& a, const DLDataType& kind, std::initializer_list<int64_t> sizes) {
  const DLTensor& t = a.tensor;
  if (t.dtype.code != kind.code || t.dtype.bits != kind.bits || t.ndim != static_cast<int>(sizes.size()))
    return false;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] != sizes.begin()[i]) return false;
  }
  return true;
}
bool has_shape(const Argument& a, const DLDataType& kind, std::initializer_list<int64_t> sizes) {
  return has_sizes(a, kind, sizes) && a.contiguous();
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
  const CellFacts& facts = facts_of(s.cell);
  Argument x, h;
  if (!take(torch, given.inputs[kX], x) || !take(torch, given.inputs[kH0], h)) return false;
  kind = x.tensor.dtype;
  if (!read_dtype(kind, s.dtype) || x.tensor.ndim != 3 || h.tensor.ndim != 3) return false;
  s.T = x.size(0);
  s.B = x.size(1);
  s.I = x.size(2);
  if (s.T < 1 || s.B < 1 || s.I < 1 || (s.I > 1 && x.stride(2) != 1)) return false;
  call.x = {x.data(), x.stride(0), x.stride(1)};
  s.D = static_cast<int>(h.size(0));
  const int a_direction = s.bias ? 4 : 2;
  if ((s.D != 1 && s.D != 2) || PyTuple_GET_SIZE(given.weights) != s.D * a_direction)
    return false;  // or a projection
  const void* pieces[2][4] = {};
  for (int d = 0; d < s.D; ++d) {
    for (int i = 0; i < a_direction; ++i) {
      Argument w;
      if (!take(torch, PyTuple_GET_ITEM(given.weights, d * a_direction + i), w) || w.tensor.ndim < 1) return false;
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
    if (!take(torch, given.inputs[kC0], c) || !has_shape(c, kind, {s.D, s.B, s.H})) return false;
    call.c0 = c.data();
  } else if (given.inputs[kC0] != Py_None) {
    return false;
  }
  return s.rows() * s.D * s.H * static_cast<int64_t>(size_of(s.dtype)) < kMostBytes;
}

// Whether the kernel ran.
template <class Params>
bool run(bool (*kernel)(const Params&) noexcept, const Params& call) {
  const LayerShape& s = call.shape;
  const int64_t bytes = s.D * gates_of(s.cell) * s.H * (s.I + s.H) * static_cast<int64_t>(size_of(s.dtype));
  bool done = false;
  compute_apart(bytes * s.T * s.B >= kLongCall, [&] { done = kernel(call); });
  return done;
}

// The results of a pass, all of one dtype: new tensors, and where their memory is.
class Results {
 public:
  // like: a tensor of the dtype.
  Results(const Torch& torch, PyObject* like)
      : torch_(torch), dtype_(PyObject_GetAttr(like, torch.dtype_attribute)) {}
  ~Results() {
    Py_XDECREF(dtype_);
    for (int i = 0; i < count_; ++i) Py_XDECREF(made_[i]);
  }
  Results(const Results&) = delete;
  Results& operator=(const Results&) = delete;

  // One more; None, without memory, where it is not wanted.
  void* add(bool wanted, std::initializer_list<int64_t> sizes) {
    PyObject*& made = made_[count_++];
    if (!wanted) return made = Py_NewRef(Py_None), nullptr;
    made = dtype_ ? torch_.new_tensor(dtype_, sizes) : nullptr;
    void* const memory = torch_.address_of_new(made);
    whole_ = whole_ && memory;
    return memory;
  }
  bool whole() const { return whole_; }  // whether all that are wanted are there
  // So many of them, and what is to stand behind them.
  PyObject* tuple(int first, int count, PyObject* last = nullptr) const {
    PyObject* const found = PyTuple_New(count + (last != nullptr));
    if (!found) return nullptr;
    for (int i = 0; i < count; ++i) PyTuple_SET_ITEM(found, i, Py_NewRef(made_[first + i]));
    if (last) PyTuple_SET_ITEM(found, count, Py_NewRef(last));
    return found;
  }

 private:
  static constexpr int kMost = 3 + 4;  // of a backward pass of one direction
  const Torch& torch_;
  PyObject* dtype_;
  PyObject* made_[kMost] = {};
  int count_ = 0;
  bool whole_ = true;
};

// (y, hn, cn, gates, cells), None where there is none; null where it is the operator's.
PyObject* ordinary_forward(const LayerImpl& layer, const Given& given) {
  const Torch& torch = Torch::get();
  const int64_t mode = read_mode(given.options[kMode], static_cast<int64_t>(Save::kRecompute));
  if (mode < 0 || Torch::ask(layer.profiling.ptr())) return nullptr;
  ForwardParams call;
  DLDataType kind;
  if (!read(torch, given, call, kind)) return nullptr;
  const LayerShape& s = call.shape;
  const bool has_cell = facts_of(s.cell).has_cell;
  call.save = static_cast<Save>(mode);
  // A pass that saves is the autograd.Function's, which has not seen that nobody looks on; and of the half types what
  // is saved is of two dtypes.
  if (call.save != Save::kNothing && (size_of(s.dtype) < sizeof(float) || !torch.ordinary())) return nullptr;
  const int saved = saved_of(s);
  Results results(torch, given.inputs[kX]);
  call.y = results.add(true, {s.T, s.B, s.D * s.H});
  call.hn = results.add(true, {s.D, s.B, s.H});
  call.cn = results.add(has_cell, {s.D, s.B, s.H});
  call.gates = results.add(call.save == Save::kGates && saved > 0, {s.D, s.rows(), saved * s.H});
  call.cells = results.add(call.save != Save::kNothing && has_cell, {s.D, s.rows(), s.H});
  return results.whole() && run(layer.entry->forward, call) ? results.tuple(0, 5) : nullptr;
}

// A gradient, or something saved, that may be absent; false where it is not ordinary, or does not fit.
bool take_optional(const Torch& torch, PyObject* object, const DLDataType& kind, std::initializer_list<int64_t> sizes,
                   const void*& out) {
  if (object == Py_None) return true;
  Argument found;
  if (!take(torch, object, found) || !has_shape(found, kind, sizes)) return false;
  out = found.data();
  return true;
}

// The gradient of y, whose rows may lie apart.
bool take_rows(const Torch& torch, PyObject* object, const DLDataType& kind, std::initializer_list<int64_t> sizes,
               TensorRows& out) {
  if (object == Py_None) return true;
  Argument found;
  if (!take(torch, object, found) || !has_sizes(found, kind, sizes)) return false;
  if (found.size(2) > 1 && found.stride(2) != 1) return false;
  out = {found.data(), found.stride(0), found.stride(1)};
  return true;
}

// (grad_x, grad_h0, grad_c0, those of the weights as a tuple), None where not wanted; null where it is the
// operator's.
PyObject* ordinary_backward(const LayerImpl& layer, const Given& given, PyObject* const* grads,
                            PyObject* const* saved) {
  const Torch& torch = Torch::get();
  const int64_t needs = read_mode(given.options[kMode], Needs::kAll);
  if (needs <= 0 || grads[kGradCells] != Py_None || Torch::ask(layer.profiling.ptr()) || !torch.ordinary())
    return nullptr;
  BackwardParams call;
  DLDataType kind;
  // Of two directions x has two gradients to be added up, and those of the half types are made in float.
  if (!read(torch, given, call, kind) || call.shape.D != 1 || size_of(call.shape.dtype) < sizeof(float))
    return nullptr;
  const LayerShape& s = call.shape;
  const int64_t T = s.T, B = s.B, H = s.H, rows = gates_of(s.cell) * H;
  if (rows * std::max(s.I, H) * static_cast<int64_t>(size_of(s.dtype)) >= kMostGradientBytes) return nullptr;
  const bool has_cell = facts_of(s.cell).has_cell, has_gates = saved_of(s) > 0;
  const void* y = nullptr;
  if (!take_optional(torch, saved[kSavedY], kind, {T, B, H}, y) || !y) return nullptr;
  call.y = y;
  // Without gates they are computed again; an empty tensor, the operator's way to say so, is left to it.
  if (has_gates && !take_optional(torch, saved[kSavedGates], kind, {1, T * B, saved_of(s) * H}, call.gates))
    return nullptr;
  if (has_cell && (!take_optional(torch, saved[kSavedCells], kind, {1, T * B, H}, call.cells) || !call.cells))
    return nullptr;
  if (!take_rows(torch, grads[kGradY], kind, {T, B, H}, call.grad_y) ||
      !take_optional(torch, grads[kGradHn], kind, {1, B, H}, call.grad_hn) ||
      (has_cell && !take_optional(torch, grads[kGradCn], kind, {1, B, H}, call.grad_cn))) {
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

PyObject* new_layer(PyTypeObject* type, PyObject* arguments, PyObject*) {
  PyObject *forward, *backward, *profiling;
  long long entry;
  if (!PyArg_ParseTuple(arguments, "OOLO", &forward, &backward, &entry, &profiling)) return nullptr;
  return new_object<LayerImpl>(type, [&] {
    Torch::get().find();
    auto impl = std::make_unique<LayerImpl>();
    impl->entry = reinterpret_cast<const LayerEntry*>(static_cast<intptr_t>(entry));
    if (!impl->entry || impl->entry->bytes != kLayerEntryBytes) throw py::type_error("entry: of another version");
    impl->forward = py::reinterpret_borrow<py::object>(forward);
    impl->backward = py::reinterpret_borrow<py::object>(backward);
    impl->profiling = py::reinterpret_borrow<py::object>(profiling);
    return impl;
  });
}

PyMethodDef methods[] = {
    fast_method("forward", &forward,
                "The operator's arguments and results, of which those that there are not are None."),
    fast_method("backward", &backward,
                "The operator's arguments and results, of which those that are not wanted are None."),
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_layer_type(py::module_& module) { add_type<LayerImpl>(module, "Layer", &new_layer, methods); }

}  // namespace fastrnn
