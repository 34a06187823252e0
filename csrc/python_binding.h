// What python.cpp needs to make functions of C++ functions of Python, on Python's limited API alone: the module is
// one file for every CPython from 3.10 on, and needs no headers but Python's own, of any of these versions.
//
// Owned references (object), dicts that are made and read, functions with named arguments and defaults, and C++
// exceptions as Python's. Values are bool, integers, double, strings, None, dicts, and from Python also sequences of
// those. A value of another type is a TypeError that names the argument.
#pragma once
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <concepts>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace fastrnn::binding {

// A Python error that is set already.
struct error_set {};
struct value_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
struct type_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// An owned reference. Those of the module's own functions are let go when the process ends, without a call.
class object {
 public:
  object() = default;
  explicit object(PyObject* owned) : reference_(owned) {
    if (!owned) throw error_set{};
  }
  static object borrowed(PyObject* other) {
    Py_XINCREF(other);
    return object(other);
  }
  object(const object& other) : reference_(other.reference_) { Py_XINCREF(reference_); }
  object(object&& other) noexcept : reference_(std::exchange(other.reference_, nullptr)) {}
  object& operator=(object other) noexcept {
    std::swap(reference_, other.reference_);
    return *this;
  }
  ~object() { Py_XDECREF(reference_); }

  PyObject* get() const { return reference_; }
  PyObject* release() { return std::exchange(reference_, nullptr); }

  // Over a sequence.
  struct iterator {
    PyObject* sequence;
    Py_ssize_t at;
    object operator*() const { return object(PySequence_GetItem(sequence, at)); }
    iterator& operator++() { return ++at, *this; }
    bool operator!=(const iterator& other) const { return at != other.at; }
  };
  iterator begin() const { return {reference_, 0}; }
  iterator end() const {
    const Py_ssize_t size = PySequence_Size(reference_);
    if (size < 0) throw error_set{};
    return {reference_, size};
  }

 private:
  PyObject* reference_ = nullptr;
};
using handle = object;

inline object none() { return object::borrowed(Py_None); }

inline object to_python(const object& value) { return value; }
inline object to_python(const char* value) { return object(PyUnicode_FromString(value)); }
inline object to_python(const std::string& value) {
  return object(PyUnicode_FromStringAndSize(value.data(), static_cast<Py_ssize_t>(value.size())));
}
inline object to_python(std::floating_point auto value) { return object(PyFloat_FromDouble(value)); }
inline object to_python(std::integral auto value) {
  if constexpr (std::same_as<decltype(value), bool>) {
    return object(PyBool_FromLong(value));
  } else {
    return object(PyLong_FromLongLong(value));
  }
}

// An argument's name, and with = its default; in a dict a key and its value.
struct named {
  const char* name;
  object value;
};
struct arg {
  const char* name;
  explicit arg(const char* of) : name(of) {}
  template <class T>
  named operator=(const T& value) const {
    return {name, to_python(value)};
  }
};

class dict : public object {
 public:
  dict() : object(PyDict_New()) {}
  explicit dict(object other) : object(std::move(other)) {}
  template <std::same_as<named>... Items>
    requires(sizeof...(Items) > 0)
  explicit dict(const Items&... items) : dict() {
    (set(to_python(items.name), items.value), ...);
  }

  // What d[key] is: to be assigned to, or read.
  struct item {
    dict& of;
    object key;
    template <class T>
    void operator=(const T& value) {
      of.set(key, to_python(value));
    }
    operator object() const { return of.at(key); }
  };
  template <class K>
  item operator[](const K& key) {
    return {*this, to_python(key)};
  }
  template <class K>
  object operator[](const K& key) const {
    return at(to_python(key));
  }

  struct iterator {
    PyObject* of;
    Py_ssize_t place = 0;
    PyObject *key = nullptr, *value = nullptr;
    bool there = false;
    iterator& operator++() { return there = PyDict_Next(of, &place, &key, &value), *this; }
    std::pair<object, object> operator*() const { return {object::borrowed(key), object::borrowed(value)}; }
    bool operator!=(const iterator& other) const { return there != other.there; }
  };
  iterator begin() const { return ++iterator{get()}; }
  iterator end() const { return {get()}; }

  void set(const object& key, const object& value) {
    if (PyDict_SetItem(get(), key.get(), value.get()) != 0) throw error_set{};
  }
  object at(const object& key) const { return object(PyObject_GetItem(get(), key.get())); }
};

class list : public object {
 public:
  list() : object(PyList_New(0)) {}
  template <class T>
  void append(const T& value) {
    if (PyList_Append(get(), to_python(value).get()) != 0) throw error_set{};
  }
};

class tuple : public object {
 public:
  explicit tuple(const list& of) : object(PyList_AsTuple(of.get())) {}
};

namespace detail {

inline std::string type_of(const object& value) {
  const object type(PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(value.get())), "__name__"));
  const char* name = PyUnicode_AsUTF8AndSize(type.get(), nullptr);
  if (!name) throw error_set{};
  return name;
}
[[noreturn]] inline void wrong(const char* expected, const object& value) {
  PyErr_Clear();
  throw type_error(std::string("expected ") + expected + ", got " + type_of(value));
}

template <class T>
struct from_python;

template <>
struct from_python<bool> {
  static bool of(const object& value) {
    if (value.get() == Py_True) return true;
    if (value.get() != Py_False) wrong("bool", value);
    return false;
  }
};
template <std::integral T>
struct from_python<T> {
  static T of(const object& value) {
    PyObject* index = PyNumber_Index(value.get());
    if (!index) wrong("int", value);
    const object kept(index);
    const long long found = PyLong_AsLongLong(index);
    if ((found == -1 && PyErr_Occurred()) || !std::in_range<T>(found)) {
      PyErr_Clear();
      throw type_error("expected int within its range");
    }
    return static_cast<T>(found);
  }
};
template <>
struct from_python<double> {
  static double of(const object& value) {
    const double found = PyFloat_AsDouble(value.get());
    if (found == -1.0 && PyErr_Occurred()) wrong("float", value);
    return found;
  }
};
template <>
struct from_python<std::string> {
  static std::string of(const object& value) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_Check(value.get()) ? PyUnicode_AsUTF8AndSize(value.get(), &size) : nullptr;
    if (!text) wrong("str", value);
    return {text, static_cast<size_t>(size)};
  }
};
template <>
struct from_python<dict> {
  static dict of(const object& value) {
    if (!PyDict_Check(value.get())) wrong("dict", value);
    return dict(value);
  }
};
template <class T>
struct from_python<std::optional<T>> {
  static std::optional<T> of(const object& value) {
    if (value.get() == Py_None) return std::nullopt;
    return from_python<T>::of(value);
  }
};
template <class T>
struct from_python<std::vector<T>> {
  static std::vector<T> of(const object& value) {
    if (!PySequence_Check(value.get())) wrong("a sequence", value);
    std::vector<T> found;
    for (const object& element : value) found.push_back(from_python<T>::of(element));
    return found;
  }
};
template <class... T>
struct from_python<std::tuple<T...>> {
  static std::tuple<T...> of(const object& value) {
    if (!PySequence_Check(value.get()) || PySequence_Size(value.get()) != sizeof...(T)) {
      wrong("a sequence of as many values as there are fields", value);
    }
    return [&]<size_t... i>(std::index_sequence<i...>) {
      return std::tuple<T...>{from_python<T>::of(object(PySequence_GetItem(value.get(), i)))...};
    }(std::index_sequence_for<T...>{});
  }
};

// A function with its arguments' names, as Python calls it.
struct function {
  std::string name;
  std::vector<named> arguments;  // without a default: a null value
  std::function<object(const std::vector<object>&)> call;
  PyMethodDef definition{};

  // The values in the order of the names.
  std::vector<object> values(PyObject* positional, PyObject* keywords) const {
    std::vector<object> found;
    for (const named& argument : arguments) found.push_back(argument.value);
    std::vector<bool> given(arguments.size());
    const Py_ssize_t count = PyTuple_Size(positional);
    if (count > static_cast<Py_ssize_t>(arguments.size())) {
      throw type_error("takes " + std::to_string(arguments.size()) + " arguments, got " + std::to_string(count));
    }
    for (Py_ssize_t i = 0; i < count; ++i) {
      found[i] = object::borrowed(PyTuple_GetItem(positional, i));
      given[i] = true;
    }
    if (keywords) {
      for (const auto& [key, value] : dict(object::borrowed(keywords))) {
        const std::string word = from_python<std::string>::of(key);
        size_t i = 0;
        while (i < arguments.size() && word != arguments[i].name) ++i;
        if (i == arguments.size()) throw type_error("got an unexpected argument '" + word + "'");
        if (given[i]) throw type_error("got '" + word + "' twice");
        found[i] = value;
        given[i] = true;
      }
    }
    for (size_t i = 0; i < found.size(); ++i) {
      if (!found[i].get()) throw type_error(std::string("missing the argument '") + arguments[i].name + "'");
    }
    return found;
  }
};

template <class T>
T argument(const function& of, const std::vector<object>& values, size_t i) {
  try {
    return from_python<T>::of(values[i]);
  } catch (const type_error& error) {
    throw type_error(std::string(of.arguments[i].name) + ": " + error.what());
  }
}

// What Python calls: C++ exceptions end here.
inline PyObject* entry(PyObject* self, PyObject* positional, PyObject* keywords) {
  const auto* called = static_cast<const function*>(PyCapsule_GetPointer(self, nullptr));
  if (!called) return nullptr;
  try {
    return called->call(called->values(positional, keywords)).release();
  } catch (const error_set&) {
  } catch (const type_error& error) {
    PyErr_SetString(PyExc_TypeError, (called->name + "(): " + error.what()).c_str());
  } catch (const value_error& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace detail

// A value of Python's as one of C++; TypeError where it is none.
template <class T>
T cast(const object& value) {
  return detail::from_python<T>::of(value);
}

class module {
 public:
  explicit module(PyObject* of) : of_(object::borrowed(of)) {}

  void doc(const char* text) { set("__doc__", to_python(text)); }

  // def("name", function, arg("first"), arg("second") = 2): as many names as the function has arguments.
  template <class R, class... A, class... Names>
  void def(const char* name, R (*function)(A...), const Names&... names) {
    static_assert(sizeof...(A) == sizeof...(Names));
    auto made = std::make_unique<detail::function>();
    made->name = name;
    (made->arguments.push_back(named_of(names)), ...);
    made->call = [function, self = made.get()](const std::vector<object>& values) {
      return [&]<size_t... i>(std::index_sequence<i...>) {
        return to_python(function(detail::argument<std::remove_cvref_t<A>>(*self, values, i)...));
      }(std::index_sequence_for<A...>{});
    };
    made->definition = {made->name.c_str(),
                        reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(detail::entry)),
                        METH_VARARGS | METH_KEYWORDS, nullptr};
    const object capsule(PyCapsule_New(made.get(), nullptr, nullptr));
    set(name, object(PyCFunction_NewEx(&made->definition, capsule.get(), nullptr)));
    made.release();  // as long as the process lives
  }
  template <class F, class... Names>
  void def(const char* name, F lambda, const Names&... names) {
    def(name, +lambda, names...);
  }

 private:
  static named named_of(const arg& name) { return {name.name, object()}; }
  static named named_of(const named& name) { return name; }
  void set(const char* name, const object& value) {
    if (PyObject_SetAttrString(of_.get(), name, value.get()) != 0) throw error_set{};
  }
  object of_;
};

}  // namespace fastrnn::binding

// FASTRNN_PYTHON_MODULE(name, m) { m.def(...); }
#define FASTRNN_PYTHON_MODULE(name, variable)                                                      \
  static void fill_##name(fastrnn::binding::module& variable);                                     \
  PyMODINIT_FUNC PyInit_##name() {                                                                 \
    static PyModuleDef definition = {                                                              \
        PyModuleDef_HEAD_INIT, #name, nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};   \
    PyObject* made = PyModule_Create(&definition);                                                 \
    if (!made) return nullptr;                                                                     \
    try {                                                                                          \
      fastrnn::binding::module filled(made);                                                       \
      fill_##name(filled);                                                                         \
      return made;                                                                                 \
    } catch (...) {                                                                                \
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_ImportError, "fastrnn._C could not be filled"); \
    }                                                                                              \
    Py_DECREF(made);                                                                               \
    return nullptr;                                                                                \
  }                                                                                                \
  static void fill_##name(fastrnn::binding::module& variable)
