// The type fastrnn._C.Stream, see python_stream.cpp.
#pragma once
#include <pybind11/pybind11.h>

namespace fastrnn {

void add_stream_type(pybind11::module_& module);

}  // namespace fastrnn
