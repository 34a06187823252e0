// What the calls of fastrnn._C.Layer have in common: reading a layer's tensors, new ones for its results, and running
// the kernels. python_layer.cpp has the operators' arguments, python_module.cpp a module's.
#pragma once
#include <initializer_list>

#include "params/layer_call.h"
#include "python_torch.h"
#include "python_type.h"

namespace fastrnn::python_layer {

// Results from so many bytes on are the operator's, which maps large ones in huge pages, and to which a call is
// little.
inline constexpr int64_t kMostBytes = 1 << 20;

struct LayerImpl {
  const LayerEntry* entry = nullptr;
  py::object forward, backward;  // the operators
  py::object cells;              // the kernels' names of the modules' modes
  py::object fused;              // backends and dtypes whose ordinary layers the kernels take
};

inline bool read_dtype(const DLDataType& type, Dtype& out) {
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
inline bool take(const Torch& torch, PyObject* object, Argument& out) {
  auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != reinterpret_cast<PyObject*>(torch.tensor) && type != torch.parameter) return false;
  if (!torch.read(object, &out.tensor) || !out.tensor.data || out.tensor.device.device_type != kDLCPU) return false;
  return !Torch::truth(PyObject_CallMethodNoArgs(object, torch.is_neg));
}

inline bool has_sizes(const Argument& a, const DLDataType& kind, std::initializer_list<int64_t> sizes) {
  const DLTensor& t = a.tensor;
  if (t.dtype.code != kind.code || t.dtype.bits != kind.bits || t.ndim != static_cast<int>(sizes.size()))
    return false;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] != sizes.begin()[i]) return false;
  }
  return true;
}
inline bool has_shape(const Argument& a, const DLDataType& kind, std::initializer_list<int64_t> sizes) {
  return has_sizes(a, kind, sizes) && a.contiguous();
}

inline bool read_cell(PyObject* name, CellKind& out) {
  if (!PyUnicode_Check(name)) return false;
  int kind = 0;
  for (const CellFacts& cell : kCells) {
    if (PyUnicode_CompareWithASCIIString(name, cell.name) == 0) return out = static_cast<CellKind>(kind), true;
    ++kind;
  }
  return false;  // a variant's
}

// x, whose steps and rows are the other way round where its batch comes first.
template <class Params>
bool read_x(const Argument& x, bool batch_first, Params& call) {
  LayerShape& s = call.shape;
  if (!read_dtype(x.tensor.dtype, s.dtype) || x.tensor.ndim != 3) return false;
  const int step = batch_first ? 1 : 0, row = 1 - step;
  s.T = x.size(step);
  s.B = x.size(row);
  s.I = x.size(2);
  if (s.T < 1 || s.B < 1 || s.I < 1 || (s.I > 1 && x.stride(2) != 1)) return false;
  call.x = {x.data(), x.stride(step), x.stride(row)};
  return true;
}

// The weights, a tuple, of a layer whose cell, directions, biases and inputs are known, and with them its units.
// kind: of every tensor.
template <class Params>
bool read_weights(const Torch& torch, PyObject* weights, const DLDataType& kind, Params& call) {
  LayerShape& s = call.shape;
  const CellFacts& facts = facts_of(s.cell);
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
  return true;
}

// No sizes, as of an expanded x, are too large to be multiplied.
inline bool is_small(const LayerShape& s) {
  if (s.T > kMostBytes || s.B > kMostBytes || s.H > kMostBytes || s.T * s.B > kMostBytes) return false;
  return s.T * s.B * s.D * s.H * static_cast<int64_t>(size_of(s.dtype)) < kMostBytes;
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

// (y, hn, cn) of an ordinary call of a module in inference, see python_module.cpp; None for whatever else.
PyObject* module_call(const LayerImpl& layer, PyObject* fields, PyObject* x, PyObject* state);

}  // namespace fastrnn::python_layer
