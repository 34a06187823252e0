// Types of fastrnn._C whose calls are C's and not pybind11's, which take as long as a step of a small layer. An
// object is a pointer to what it is made of.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>

namespace fastrnn {

namespace py = pybind11;

template <class Impl>
struct ObjectOf {
  PyObject_HEAD Impl* impl;
};

template <class Impl>
Impl& impl_of(PyObject* self) {
  return *reinterpret_cast<ObjectOf<Impl>*>(self)->impl;
}

// make: gives the std::unique_ptr<Impl>, or throws, which becomes Python's own error or a TypeError.
template <class Impl, class Make>
PyObject* new_object(PyTypeObject* type, Make make) {
  try {
    std::unique_ptr<Impl> impl = make();
    PyObject* const self = type->tp_alloc(type, 0);
    if (self) reinterpret_cast<ObjectOf<Impl>*>(self)->impl = impl.release();
    return self;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  }
  return nullptr;
}

template <class Impl>
void delete_object(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  delete reinterpret_cast<ObjectOf<Impl>*>(self)->impl;
  type->tp_free(self);
  Py_DECREF(type);
}

using FastCall = PyObject* (*)(PyObject* self, PyObject* const* arguments, Py_ssize_t count);
inline PyMethodDef fast_method(const char* name, FastCall call, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL, doc};
}

// methods: static, with an entry of nulls behind them.
template <class Impl>
void add_type(py::module_& module, const char* name, newfunc make, PyMethodDef* methods) {
  PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(make)},
                         {Py_tp_dealloc, reinterpret_cast<void*>(&delete_object<Impl>)},
                         {Py_tp_methods, methods},
                         {0, nullptr}};
  // Static: before Python 3.12 a type keeps the name that it was given.
  static const std::string full = std::string("fastrnn._C.") + name;
  PyType_Spec spec = {full.c_str(), sizeof(ObjectOf<Impl>), 0, Py_TPFLAGS_DEFAULT, slots};
  PyObject* const type = PyType_FromSpec(&spec);
  if (!type) throw py::error_already_set();
  module.attr(name) = py::reinterpret_steal<py::object>(type);
}

}  // namespace fastrnn
