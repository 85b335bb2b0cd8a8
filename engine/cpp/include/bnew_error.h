// The engine's exception.

#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace bnew {

// Makes any text safe for a terminal, a log or a page. Bytes that are not UTF-8, and characters that move the
// cursor, end the line or change the writing direction, are escaped, for example as \x1b or \u202e.
std::string printable(std::string_view text);

// An error in one sentence: what is wrong, where, and what to do.
class Error : public std::runtime_error {
public:
    explicit Error(const std::string& what) : std::runtime_error(printable(what)) {}
};

}  // namespace bnew
