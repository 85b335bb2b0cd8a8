#include "json.h"

#include <charconv>
#include <cmath>
#include <set>

#include "include/bnew_error.h"
#include "text.h"

namespace bnew {

class JsonParser {
public:
    explicit JsonParser(std::string_view text) : text_(text) {}

    Json document() {
        Json value = parse(0);
        space();
        if (at_ != text_.size()) fail("more after its end");
        return value;
    }

private:
    static constexpr int kDeepest = 32;
    static constexpr int kMostValues = 1 << 20;  // each takes a hundred bytes; ten thousand layers have fewer

    [[noreturn]] void fail(const std::string& what) const {
        throw Error("its JSON has " + what + " at character " + std::to_string(at_));
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void space() {
        while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos)
            ++at_;
    }

    bool take(char c) {
        if (peek() != c || at_ == text_.size()) return false;
        ++at_;
        return true;
    }

    void word(std::string_view expected) {
        if (text_.substr(at_, expected.size()) != expected) fail("an unknown word");
        at_ += expected.size();
    }

    Json parse(int depth) {
        if (depth > kDeepest) fail("too deep a nesting");
        if (++values_ > kMostValues) fail("more than " + std::to_string(kMostValues) + " values");
        space();
        Json value;
        switch (peek()) {
            case '{': read_object(value, depth); break;
            case '[': read_array(value, depth); break;
            case '"':
                value.kind_ = Json::Kind::string;
                value.string_ = read_string();
                break;
            case 't':
                word("true");
                value.kind_ = Json::Kind::boolean;
                value.boolean_ = true;
                break;
            case 'f':
                word("false");
                value.kind_ = Json::Kind::boolean;
                break;
            case 'n': word("null"); break;
            default: read_number(value);
        }
        return value;
    }

    void read_object(Json& value, int depth) {
        value.kind_ = Json::Kind::object;
        std::set<std::string> names;
        ++at_;
        space();
        if (take('}')) return;
        do {
            space();
            std::string name = read_string();
            if (!names.insert(name).second) fail("the name " + quote(name) + " twice in an object");
            space();
            if (!take(':')) fail("a name without a value");
            value.object_.emplace_back(std::move(name), parse(depth + 1));
            space();
        } while (take(','));
        if (!take('}')) fail("an object without an end");
    }

    void read_array(Json& value, int depth) {
        value.kind_ = Json::Kind::array;
        ++at_;
        space();
        if (take(']')) return;
        do {
            value.array_.push_back(parse(depth + 1));
            space();
        } while (take(','));
        if (!take(']')) fail("an array without an end");
    }

    void read_number(Json& value) {
        // Checked here: from_chars also accepts "inf", "nan", "01" and "1.", which are not JSON.
        const size_t begin = at_;
        take('-');
        if (take('0')) {
        } else if (!digits()) {
            fail("an unknown value");
        }
        if (take('.') && !digits()) fail("a number without digits after its point");
        if (peek() == 'e' || peek() == 'E') {
            ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            if (!digits()) fail("a number without an exponent after its e");
        }
        value.kind_ = Json::Kind::number;
        const auto result = std::from_chars(text_.data() + begin, text_.data() + at_, value.number_);
        if (result.ec != std::errc() || !std::isfinite(value.number_)) fail("a number that is too large");
    }

    bool digits() {
        const size_t begin = at_;
        while (peek() >= '0' && peek() <= '9') ++at_;
        return at_ > begin;
    }

    unsigned hex4() {
        unsigned code = 0;
        if (text_.size() - at_ < 4) fail("a broken escape");
        const auto result = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, code, 16);
        if (result.ptr != text_.data() + at_ + 4) fail("a broken escape");
        at_ += 4;
        return code;
    }

    std::string read_string() {
        if (!take('"')) fail("no name where one must be");
        std::string out;
        while (true) {
            if (at_ == text_.size()) fail("a string without an end");
            const char c = text_[at_++];
            if (c == '"') {
                check_utf8(out);
                return out;
            }
            if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
            if (c != '\\') {
                out += c;
                continue;
            }
            if (at_ == text_.size()) fail("a string without an end");
            const char escape = text_[at_++];
            constexpr std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
            if (const size_t i = from.find(escape); i != std::string_view::npos) {
                out += to[i];
            } else if (escape == 'u') {
                append_utf8(out);
            } else {
                fail("an unknown escape");
            }
        }
    }

    // Python accepts only UTF-8.
    void check_utf8(std::string_view text) const {
        for (; !text.empty(); text.remove_prefix(utf8_length(text)))
            if (utf8_length(text) == 0) fail("a string that is not UTF-8");
    }

    void append_utf8(std::string& out) {
        unsigned code = hex4();
        if (code >= 0xD800 && code < 0xDC00) {
            if (!take('\\') || !take('u')) fail("half a surrogate pair");
            const unsigned low = hex4();
            if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        } else if (code >= 0xDC00 && code < 0xE000) {
            fail("half a surrogate pair");
        }
        if (code < 0x80) {
            out += static_cast<char>(code);
        } else if (code < 0x800) {
            out += static_cast<char>(0xC0 | code >> 6);
            out += static_cast<char>(0x80 | (code & 0x3F));
        } else if (code < 0x10000) {
            out += static_cast<char>(0xE0 | code >> 12);
            out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
            out += static_cast<char>(0x80 | (code & 0x3F));
        } else {
            out += static_cast<char>(0xF0 | code >> 18);
            out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
            out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
            out += static_cast<char>(0x80 | (code & 0x3F));
        }
    }

    std::string_view text_;
    size_t at_ = 0;
    int values_ = 0;
};

Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

namespace {

void expect(bool right, const std::string& what, const char* kind) {
    if (!right) throw Error(what + " is not " + kind);
}

}  // namespace

bool Json::boolean(const std::string& what) const {
    expect(is(Kind::boolean), what, "true or false");
    return boolean_;
}

double Json::number(const std::string& what) const {
    expect(is(Kind::number), what, "a number");
    return number_;
}

int64_t Json::integer(const std::string& what, int64_t least, int64_t most) const {
    const double value = number(what);
    if (value != std::floor(value) || value < static_cast<double>(least) || value > static_cast<double>(most))
        throw Error(what + " must be a whole number from " + std::to_string(least) + " to " +
                    std::to_string(most));
    return static_cast<int64_t>(value);
}

const std::string& Json::string(const std::string& what) const {
    expect(is(Kind::string), what, "a string");
    return string_;
}

const std::vector<Json>& Json::array(const std::string& what) const {
    expect(is(Kind::array), what, "a list");
    return array_;
}

const std::vector<std::pair<std::string, Json>>& Json::object(const std::string& what) const {
    expect(is(Kind::object), what, "an object");
    return object_;
}

const Json* Json::find(std::string_view name) const {
    for (const auto& [key, value] : object_)
        if (key == name) return &value;
    return nullptr;
}

}  // namespace bnew
