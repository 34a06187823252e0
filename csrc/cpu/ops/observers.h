// Whether somebody is told of every operator that the dispatcher calls: torch's profilers, of this thread or of all,
// and its observers (ExecutionTraceObserver, tracing on demand). A layer's calls past the dispatcher ask, and call
// the operator then (a streamer's do not: in place they have none). torch has no other function that says it of all
// of them, and this one is not of its stable ABI; so it is looked up by name, and whoever does not find it asks
// Python's for the profiler of this thread.
#pragma once

#ifndef _WIN32
#include <dlfcn.h>
#endif

namespace fastrnn {

using Observed = bool (*)();

// at::hasCallbacks, or null.
inline Observed observed() {
#ifdef _WIN32
  return nullptr;
#else
  static const Observed found = reinterpret_cast<Observed>(dlsym(RTLD_DEFAULT, "_ZN2at12hasCallbacksEv"));
  return found;
#endif
}

}  // namespace fastrnn
