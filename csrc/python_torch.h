// What the calls of C in python_stream.cpp ask of torch: who looks on, and what a tensor is, by DLPack's exchange
// interface, which torch has from 2.10 on and which is some nanoseconds a tensor.
#pragma once
#include <ATen/dlpack.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>

namespace fastrnn {

namespace py = pybind11;

// From so many bytes of weights on, times the rows that they serve, other Python threads may run meanwhile.
inline constexpr int64_t kLongCall = 1 << 19;

// What is asked of torch, looked up once.
struct Torch {
  PyTypeObject* tensor = nullptr;
  PyObject *parameter, *empty, *empty_like, *forward_ad, *increment_version;
  PyObject* quiet[4];  // functions that are all false, or 0, or None in an ordinary call
  PyObject* profiling;
  bool (*observed)() = nullptr;  // see cpu/ops/observers.h; null: `profiling` is asked
  PyObject *gradients, *any_autocast;
  PyObject *level, *requires_grad, *version, *is_neg, *contiguous, *dtype_attribute, *dtype_name;
  const DLPackExchangeAPI* api = nullptr;

  static Torch& get() {
    static Torch torch;
    return torch;
  }

  // Throws where torch has not what is needed.
  void find() {
    if (api) return;
    const auto own = [](const py::object& o) { return py::object(o).release().ptr(); };
    const py::module_ torch = py::module_::import("torch"), internal = py::module_::import("torch._C");
    tensor = reinterpret_cast<PyTypeObject*>(own(torch.attr("Tensor")));
    parameter = own(torch.attr("nn").attr("Parameter"));
    empty = own(torch.attr("_C").attr("_VariableFunctions").attr("empty"));
    empty_like = own(torch.attr("_C").attr("_VariableFunctions").attr("empty_like"));
    forward_ad = own(py::module_::import("torch.autograd.forward_ad"));
    increment_version = own(internal.attr("_increment_version"));
    quiet[0] = own(internal.attr("_get_tracing_state"));
    quiet[1] = own(internal.attr("_are_functorch_transforms_active"));
    quiet[2] = own(internal.attr("_len_torch_dispatch_stack"));
    quiet[3] = own(internal.attr("_len_torch_function_stack"));
    profiling = own(internal.attr("_autograd").attr("_profiler_enabled"));
    gradients = own(torch.attr("is_grad_enabled"));
    any_autocast = own(internal.attr("_is_any_autocast_enabled"));
    level = own(py::str("_current_level"));
    requires_grad = own(py::str("requires_grad"));
    version = own(py::str("_version"));
    is_neg = own(py::str("is_neg"));
    contiguous = own(py::str("contiguous"));
    dtype_attribute = own(py::str("dtype"));
    dtype_name = own(py::make_tuple("dtype"));
    const py::object capsule = torch.attr("Tensor").attr("__dlpack_c_exchange_api__");
    const auto* found =
        static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!found) throw py::error_already_set();
    if (found->header.version.major != DLPACK_MAJOR_VERSION || !found->dltensor_from_py_object_no_sync) {
      throw py::type_error("torch's DLPack is of another version");
    }
    api = found;
  }

  // What cannot be asked, an error, is out of the ordinary too.
  static bool truth(PyObject* value) {
    const bool is = !value || (value != Py_None && PyObject_IsTrue(value) != 0);
    Py_XDECREF(value);
    return is;
  }
  static bool ask(PyObject* function) { return truth(PyObject_CallNoArgs(function)); }

  // Whether somebody is told of every operator that is called.
  bool watched() const { return observed ? observed() : ask(profiling); }
  // Whether nothing else looks on that a call of an operator would tell of itself.
  bool ordinary() const {
    for (PyObject* question : quiet) {
      if (ask(question)) return false;
    }
    PyObject* const now = PyObject_GetAttr(forward_ad, level);
    const bool none = now && PyLong_Check(now) && PyLong_AsLong(now) < 0;
    Py_XDECREF(now);
    return none;
  }

  bool read(PyObject* object, DLTensor* out) const {
    if (api->dltensor_from_py_object_no_sync(object, out) == 0) return true;
    PyErr_Clear();
    return false;
  }

  // The sizes one by one: as a tuple they take torch half as long again.
  PyObject* new_tensor(PyObject* dtype, std::initializer_list<int64_t> sizes) const {
    PyObject* arguments[4];
    size_t count = 0;
    for (const int64_t size : sizes) {
      arguments[count] = PyLong_FromLongLong(size);
      if (!arguments[count++]) return nullptr;  // of memory there is none left: what was made of it does not matter
    }
    arguments[count] = dtype;
    PyObject* const made = PyObject_Vectorcall(empty, arguments, count, dtype_name);
    while (count) Py_DECREF(arguments[--count]);
    return made;
  }
  // Where the data of a result lies that torch has just made, if it made one; null where that is not the CPU: of a
  // default device that set_default_tensor_type() left behind no question above tells.
  void* address_of_new(PyObject* made) const {
    DLTensor t;
    if (!made || !read(made, &t) || t.device.device_type != kDLCPU) return nullptr;
    return static_cast<char*>(t.data) + t.byte_offset;
  }
};

// What computes: where it is long, other Python threads run meanwhile.
template <class Compute>
void compute_apart(bool is_long, Compute compute) {
  if (!is_long) return compute();
  // Not pybind11's guard: at the end of the interpreter Python ends a thread that comes back, by unwinding its
  // stack, which neither a destructor nor catch (...) may be in the way of: the process would abort.
  PyThreadState* const thread = PyEval_SaveThread();
  compute();
  PyEval_RestoreThread(thread);
}

// An argument: what DLPack says of it, as sizes.
struct Argument {
  DLTensor tensor;
  char* data() const { return static_cast<char*>(tensor.data) + tensor.byte_offset; }
  int64_t size(int i) const { return tensor.shape[i]; }
  int64_t stride(int i) const { return tensor.strides[i]; }
  bool contiguous() const {
    int64_t expected = 1;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
      if (size(i) != 1 && stride(i) != expected) return false;
      expected *= size(i);
    }
    return true;
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < tensor.ndim; ++i) n *= size(i);
    return n;
  }
  bool overlaps(const Argument& other, int64_t element) const {
    return data() < other.data() + other.numel() * element && other.data() < data() + numel() * element;
  }
};

}  // namespace fastrnn
