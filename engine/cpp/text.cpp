#include "text.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <utility>

#include "include/bnew_error.h"

namespace bnew {
namespace {

constexpr size_t kLongestName = 80;  // in bytes; longer names are cut

uint32_t code_of(std::string_view character) {
    if (character.size() == 1) return static_cast<unsigned char>(character[0]);
    uint32_t code = static_cast<unsigned char>(character[0]) & (0xFFu >> (character.size() + 1));
    for (const char c : character.substr(1)) code = code << 6 | (static_cast<unsigned char>(c) & 0x3Fu);
    return code;
}

// Control characters (C0, DEL, C1), line separators, changes of the writing direction, and the byte order
// mark, as in src/bnew/text.py. The joiners U+200C and U+200D stay: Persian, Hindi and emoji need them.
constexpr std::pair<uint32_t, uint32_t> kControls[] = {
    {0x0000, 0x001F}, {0x007F, 0x009F}, {0x061C, 0x061C}, {0x200E, 0x200F},
    {0x2028, 0x202E}, {0x2066, 0x2069}, {0xFEFF, 0xFEFF},
};

bool is_control(uint32_t code) {
    return std::any_of(std::begin(kControls), std::end(kControls),
                       [&](const auto& range) { return range.first <= code && code <= range.second; });
}

std::string escape(uint32_t code, bool is_byte) {
    char text[8];
    std::snprintf(text, sizeof text, is_byte ? "\\x%02x" : "\\u%04x", static_cast<unsigned>(code & 0xFFFF));
    return text;
}

}  // namespace

size_t utf8_length(std::string_view text) {
    const auto byte = [&](size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
    const unsigned first = byte(0);
    if (text.empty() || first > 0xF4 || (first >= 0x80 && first < 0xC2)) return 0;
    const size_t length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    // The second byte must not make a code too small for its length, a surrogate, or one too large.
    const unsigned least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (length > 1 && (byte(1) < least || byte(1) > most)) return 0;
    for (size_t k = 2; k < length; ++k)
        if ((byte(k) & 0xC0) != 0x80) return 0;
    return length;
}

std::string printable(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        const size_t length = utf8_length(text);
        const std::string_view character = text.substr(0, std::max<size_t>(length, 1));
        const uint32_t code = code_of(character);
        if (length > 0 && !is_control(code)) {
            out += character;
        } else {
            out += escape(code, length < 2);
        }
        text.remove_prefix(character.size());
    }
    return out;
}

std::string quote(std::string_view name) {
    if (name.size() <= kLongestName) return "'" + std::string(name) + "'";
    size_t end = kLongestName;
    while (end > 0 && (static_cast<unsigned char>(name[end]) & 0xC0) == 0x80) --end;  // whole characters
    return "'" + std::string(name.substr(0, end)) + "…'";
}

}  // namespace bnew
