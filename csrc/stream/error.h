// What is wrong with a model, as an exception inside the library: the C functions turn it into a text.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fastrnn::stream {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

template <class... Parts>
void expect(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

// What a file holds, for a message: no control characters, and not all of a megabyte.
inline std::string printable(std::string_view text) {
  constexpr size_t kMost = 64;
  std::string shown;
  for (const char c : text.substr(0, kMost)) shown += c >= ' ' && c <= '~' ? c : '?';
  return text.size() > kMost ? shown + "..." : shown;
}

}  // namespace fastrnn::stream
