// What torch's stable ABI names differently from version to version: one line each, the older name last.
#pragma once
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.11
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif
