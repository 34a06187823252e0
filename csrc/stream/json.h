// A reader of JSON that trusts nothing: what a model file says about itself. UTF-8 is passed on as it is.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fastrnn::stream {

struct JsonMember;

// A value, or a part of one. Members keep their order; no two have one name.
struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;
  bool integral = false;  // whether the number is written as an integer that an int64_t holds
  int64_t integer = 0;
  std::string text;
  std::vector<Json> items;
  std::vector<JsonMember> members;

  Json();
  Json(Json&&) noexcept;
  ~Json();
  const Json* find(std::string_view name) const;  // a member, or null
};

struct JsonMember {
  std::string name;
  Json value;
};

const char* name_of(Json::Kind kind);

// Throws Error, with the place, for what is not one JSON value and blanks, or is nested deeper than kMostDepth.
constexpr int kMostDepth = 16;
Json parse_json(std::string_view text);

}  // namespace fastrnn::stream
