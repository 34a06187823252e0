// The type fastrnn._C.Layer, see python_layer.cpp.
#pragma once
#include <pybind11/pybind11.h>

namespace fastrnn {

void add_layer_type(pybind11::module_& module);

}  // namespace fastrnn
