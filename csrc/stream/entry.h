// A layer as the file describes it: its options one by one, each asked for by its name. What nobody asked for is an
// error, since it would be ignored: an option of a later version changes the numbers.
#pragma once
#include <set>
#include <string>

#include "stream/error.h"
#include "stream/json.h"
#include "stream/safetensors.h"

namespace fastrnn::stream {

constexpr int64_t kMostUnits = 1 << 20;

class Entry {
 public:
  Entry(const Json& value, size_t number, const Safetensors& file) : value_(value), file_(file) {
    what_ = "layer " + std::to_string(number);
    expect(value.kind == Json::Kind::kObject, what_, ": expected an object, got ", name_of(value.kind));
    type_ = text("type");
    name_ = text("name");
    what_ += " ('" + printable(name_) + "', " + printable(type_) + ")";
  }

  const std::string& type() const { return type_; }
  const std::string& what() const { return what_; }

  const std::string& text(const char* option) { return get(option, Json::Kind::kString).text; }
  bool flag(const char* option) { return get(option, Json::Kind::kBool).boolean; }
  float number(const char* option) {
    const double value = get(option, Json::Kind::kNumber).number;
    expect(value > -3e38 && value < 3e38, what_, ": expected '", option, "' within float32's range");
    return static_cast<float>(value);
  }
  int64_t size(const char* option, int64_t least = 1, int64_t most = kMostUnits) {
    const Json& value = get(option, Json::Kind::kNumber);
    expect(value.integral && value.integer >= least && value.integer <= most, what_, ": expected '", option,
           "' to be an integer from ", least, " to ", most, ", got ", value.number);
    return value.integer;
  }
  // Which weights the layer has; so far there is one kind.
  void float32_weights() {
    const std::string& kind = text("weights");
    expect(kind == "float32", what_, ": expected weights 'float32', which this version has, got '", printable(kind),
           "'");
  }

  // A tensor of the layer, float32 of this shape and finite; its elements have no alignment.
  const unsigned char* tensor(const std::string& role, const std::vector<int64_t>& shape) {
    const std::string name = name_ + "." + role, shown = what_ + ": tensor '" + printable(name) + "'";
    const auto found = file_.tensors.find(name);
    expect(found != file_.tensors.end(), shown, " is missing");
    const StoredTensor& tensor = found->second;
    expect(tensor.dtype == "F32", shown, ": expected F32, got ", tensor.dtype);
    expect(tensor.shape == shape, shown, ": expected shape ", shape_text(shape), ", got ", shape_text(tensor.shape));
    check_finite(tensor, shown);
    used_.insert(name);
    return tensor.data;
  }

  // Once everything was asked for. Adds the names of the tensors that the layer took.
  void done(std::set<std::string>& used_tensors) const {
    for (const auto& [option, value] : value_.members) {
      expect(asked_.count(option), what_, ": option '", printable(option), "' is not known to this version");
    }
    used_tensors.insert(used_.begin(), used_.end());
  }

 private:
  const Json& get(const char* option, Json::Kind kind) {
    const Json* found = value_.find(option);
    expect(found && found->kind == kind, what_, ": expected '", option, "', ", name_of(kind), ", got ",
           found ? name_of(found->kind) : "none");
    asked_.insert(option);
    return *found;
  }

  static void check_finite(const StoredTensor& tensor, const std::string& shown);

  const Json& value_;
  const Safetensors& file_;
  std::string what_, type_, name_;
  std::set<std::string, std::less<>> asked_;
  std::set<std::string> used_;
};

}  // namespace fastrnn::stream
