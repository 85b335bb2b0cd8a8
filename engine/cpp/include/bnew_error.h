// What the engine throws.

#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace bnew {

// Text from anywhere, fit for a terminal, a log or a page: what is not UTF-8, moves the cursor, ends the line
// or turns the direction of writing becomes \x1b or \u202e.
std::string printable(std::string_view text);

// Whatever is wrong, in one sentence: what is wrong, where, and what to do.
class Error : public std::runtime_error {
public:
    explicit Error(const std::string& what) : std::runtime_error(printable(what)) {}
};

}  // namespace bnew
