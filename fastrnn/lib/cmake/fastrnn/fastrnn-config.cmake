# fastrnn's runtime for C and C++:
#     find_package(fastrnn REQUIRED)
#     target_link_libraries(program PRIVATE fastrnn::stream)           # or fastrnn::stream_static
# where fastrnn_DIR is what `python -c "import fastrnn; print(fastrnn.get_cmake_dir())"` prints.

get_filename_component(_fastrnn_package "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

function(_fastrnn_add name kind file)
  if(TARGET fastrnn::${name} OR NOT EXISTS "${_fastrnn_package}/lib/${file}")
    return()
  endif()
  add_library(fastrnn::${name} ${kind} IMPORTED)
  set_target_properties(fastrnn::${name} PROPERTIES
    IMPORTED_LOCATION "${_fastrnn_package}/lib/${file}"
    INTERFACE_INCLUDE_DIRECTORIES "${_fastrnn_package}/include")
  if(kind STREQUAL STATIC)
    set_target_properties(fastrnn::${name} PROPERTIES IMPORTED_LINK_INTERFACE_LANGUAGES CXX)
  endif()
endfunction()

_fastrnn_add(stream SHARED libfastrnn_stream.so)
_fastrnn_add(stream_static STATIC libfastrnn_stream.a)

if(NOT TARGET fastrnn::stream)
  set(fastrnn_FOUND FALSE)
  set(fastrnn_NOT_FOUND_MESSAGE "${_fastrnn_package}/lib/libfastrnn_stream.so is not there: make stream builds it")
endif()
unset(_fastrnn_package)
