#include "stream/json.h"

#include <unordered_set>

#include "stream/error.h"

namespace fastrnn::stream {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = parse(0);
    blanks();
    expect(at_ == text_.size(), where(), "expected the end, got ", next());
    return value;
  }

 private:
  std::string where() const { return "JSON, byte " + std::to_string(at_) + ": "; }
  std::string next() const {
    if (at_ >= text_.size()) return "the end of the text";
    std::string shown = "'";
    return shown.append(printable(text_.substr(at_, 1))).append("'");
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void blanks() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }
  void take(char c) {
    expect(at_ < text_.size() && text_[at_] == c, where(), "expected '", c, "', got ", next());
    ++at_;
  }
  bool took(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  Json parse(int depth) {
    expect(depth <= kMostDepth, where(), "expected at most ", kMostDepth, " levels");
    blanks();
    Json value;
    switch (peek()) {
      case '{':
        object(value, depth);
        break;
      case '[':
        array(value, depth);
        break;
      case '"':
        value.kind = Json::Kind::kString;
        value.text = string();
        break;
      case 't':
      case 'f':
      case 'n':
        word(value);
        break;
      default:
        number(value);
    }
    return value;
  }

  void object(Json& value, int depth) {
    value.kind = Json::Kind::kObject;
    std::unordered_set<std::string> names;
    take('{');
    blanks();
    if (took('}')) return;
    do {
      blanks();
      std::string name = string();
      expect(names.insert(name).second, where(), "expected no name twice, got '", printable(name), "' again");
      blanks();
      take(':');
      // By itself: of a pair that is made in the call, g++ 11 never frees the name where parse() throws.
      Json member = parse(depth + 1);
      value.members.push_back({std::move(name), std::move(member)});
      blanks();
    } while (took(','));
    take('}');
  }

  void array(Json& value, int depth) {
    value.kind = Json::Kind::kArray;
    take('[');
    blanks();
    if (took(']')) return;
    do {
      value.items.push_back(parse(depth + 1));
      blanks();
    } while (took(','));
    take(']');
  }

  void word(Json& value) {
    const auto is = [&](std::string_view wanted) {
      if (text_.substr(at_, wanted.size()) != wanted) return false;
      at_ += wanted.size();
      return true;
    };
    if (is("null")) return;
    const bool yes = is("true");
    expect(yes || is("false"), where(), "expected a value, got ", next());
    value.kind = Json::Kind::kBool;
    value.boolean = yes;
  }

  // Four digits of \u.
  uint32_t code_unit() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      expect(digit >= 0, where(), "expected four hexadecimal digits after \\u, got ", next());
      code = code * 16 + static_cast<uint32_t>(digit);
    }
    return code;
  }

  std::string string() {
    std::string result;
    take('"');
    for (;;) {
      expect(at_ < text_.size(), where(), "expected the end of a string, got the end of the text");
      const char c = text_[at_];
      expect(static_cast<unsigned char>(c) >= ' ', where(), "expected no control character in a string");
      ++at_;
      if (c == '"') return result;
      if (c != '\\') {
        result += c;
        continue;
      }
      constexpr std::string_view kEscapes = "\"\\/bfnrtu", kMeant = "\"\\/\b\f\n\r\t";
      const size_t escape = at_ < text_.size() ? kEscapes.find(text_[at_]) : std::string_view::npos;
      expect(escape != std::string_view::npos, where(), "expected an escape, got ", next());
      ++at_;
      if (escape < kMeant.size()) {
        result += kMeant[escape];
      } else {
        unicode(result);
      }
    }
  }

  void unicode(std::string& result) {
    uint32_t code = code_unit();
    expect(code < 0xdc00 || code > 0xdfff, where(), "expected the first half of a surrogate pair before the second");
    if (code >= 0xd800 && code <= 0xdbff) {
      take('\\');
      take('u');
      const uint32_t low = code_unit();
      expect(low >= 0xdc00 && low <= 0xdfff, where(), "expected the second half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    const auto put = [&](uint32_t byte) { result += static_cast<char>(byte); };
    if (code < 0x80) return put(code);
    if (code < 0x800) {
      put(0xc0 | code >> 6);
    } else {
      if (code < 0x10000) {
        put(0xe0 | code >> 12);
      } else {
        put(0xf0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3f));
      }
      put(0x80 | (code >> 6 & 0x3f));
    }
    put(0x80 | (code & 0x3f));
  }

  // By hand, as the C library's functions follow the program's locale. Exact where the digits fit a double and the
  // power of ten is small, which numbers of a model are.
  void number(Json& value) {
    value.kind = Json::Kind::kNumber;
    const bool negative = took('-');
    expect(peek() >= '0' && peek() <= '9', where(), "expected a value, got ", next());
    const bool zero = peek() == '0';
    double digits = 0;
    uint64_t integer = 0;
    bool fits = true;
    int count = 0, exponent = 0;
    const auto digit = [&] {
      const auto d = static_cast<unsigned>(peek() - '0');
      fits = fits && integer <= (uint64_t{INT64_MAX} - d) / 10;
      if (fits) integer = integer * 10 + d;
      digits = digits * 10 + d;
      ++at_;
      ++count;
    };
    while (peek() >= '0' && peek() <= '9') digit();
    expect(!zero || count == 1, where(), "expected no 0 before a number");
    bool whole = true;
    if (took('.')) {
      whole = false;
      expect(peek() >= '0' && peek() <= '9', where(), "expected a digit, got ", next());
      while (peek() >= '0' && peek() <= '9') {
        digit();
        --exponent;
      }
    }
    if (took('e') || took('E')) {
      whole = false;
      const bool minus = took('-');
      if (!minus) took('+');
      expect(peek() >= '0' && peek() <= '9', where(), "expected a digit, got ", next());
      int power = 0;
      for (; peek() >= '0' && peek() <= '9'; ++at_) {
        if (power < 10000) power = power * 10 + (peek() - '0');
      }
      exponent += minus ? -power : power;
    }
    value.integral = whole && fits;
    value.integer = negative ? -static_cast<int64_t>(integer) : static_cast<int64_t>(integer);
    double scale = 1;
    for (int i = 0; i < (exponent < 0 ? -exponent : exponent) && i < 700; ++i) scale *= 10;
    value.number = (exponent < 0 ? digits / scale : digits * scale) * (negative ? -1 : 1);
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Json::Json() = default;
Json::Json(Json&&) noexcept = default;
Json::~Json() = default;

const Json* Json::find(std::string_view name) const {
  for (const auto& [member, value] : members) {
    if (member == name) return &value;
  }
  return nullptr;
}

const char* name_of(Json::Kind kind) {
  constexpr const char* kNames[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};
  return kNames[static_cast<int>(kind)];
}

Json parse_json(std::string_view text) { return Parser(text).whole(); }

}  // namespace fastrnn::stream
