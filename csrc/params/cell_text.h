// What a layer's `cell` may say: a cell's name, and behind it the options of a variant. Knows no torch, for operators
// and plans alike.
#pragma once
#include <charconv>
#include <string>
#include <string_view>

#include "cells/list.h"
#include "cells/variant.h"

namespace fastrnn {

// One option, "name" or "name=value", of the whole text. What is wrong with it, or nothing.
inline std::string read_cell_option(Variant& v, CellKind cell, std::string_view option, const std::string& whole) {
  const std::string got = ", got '" + whole + "'";
  const size_t equals = option.find('=');
  const std::string_view name = option.substr(0, equals);
  const std::string_view value = equals == std::string_view::npos ? std::string_view() : option.substr(equals + 1);
  const bool lstm = cell == CellKind::kLstm;
  const auto read = [&](auto& number) {
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    return error == std::errc() && end == value.data() + value.size();
  };
  struct Flag {
    std::string_view name;
    bool& flag;
    bool fits;
  };
  const Flag flags[] = {
      {"peephole", v.peephole, lstm},
      {"coupled", v.coupled, lstm},
      {"reset_before", v.reset_before, cell == CellKind::kGru},
      {"zoneout_h", v.zoneout_h, true},
      {"zoneout_c", v.zoneout_c, lstm},
      {"recurrent_mask", v.recurrent_mask, true},
      {"norm", v.norm, true},
  };
  for (const Flag& f : flags) {
    if (name != f.name || (f.name != "norm" && equals != std::string_view::npos)) continue;
    if (!f.fits) {
      return std::string("cell: '") + facts_of(cell).name + "' has no option '" + std::string(name) + "'" + got;
    }
    if (f.flag) return "cell: expected each option once" + got;
    f.flag = true;
    if (f.name == "norm" && !(read(v.eps) && v.eps >= 0)) {
      return "cell: expected norm=eps with a number of at least 0" + got;
    }
    return "";
  }
  if (name == "heads") {
    if (v.heads != 1) return "cell: expected each option once" + got;
    return read(v.heads) && v.heads >= 1 ? "" : "cell: expected heads=n with a positive number" + got;
  }
  return "cell: expected options peephole, coupled, reset_before, norm=eps, heads=n, zoneout_h, zoneout_c or "
         "recurrent_mask behind the name, each after a +" +
         got;
}

// The options behind the name, from the + at `plus` on. What is wrong with them, or nothing.
inline std::string read_cell_options(const std::string& whole, size_t plus, CellKind cell, Variant& variant) {
  const std::string_view all = whole;
  for (size_t at = plus; at != std::string::npos;) {
    const size_t next = all.find('+', at + 1);
    // An exponent may have a sign: norm=1e+2.
    size_t end = next;
    if (end != std::string::npos && all[end - 1] == 'e' && all.substr(at + 1, 5) == "norm=") {
      end = all.find('+', end + 1);
    }
    const size_t length = end == std::string::npos ? end : end - at - 1;
    const std::string wrong = read_cell_option(variant, cell, all.substr(at + 1, length), whole);
    if (!wrong.empty()) return wrong;
    at = end;
  }
  if (variant.norm && variant.reset_before) {
    return "cell: norm and reset_before do not go together, got '" + whole + "'";
  }
  return "";
}

}  // namespace fastrnn
