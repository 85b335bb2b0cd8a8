// UTF-8, and text of a file in messages about it.

#pragma once

#include <string>
#include <string_view>

namespace bnew {

// Bytes of the character that the text begins with; 0 if that is not UTF-8, or the text is empty.
size_t utf8_length(std::string_view text);

// A name from a file for a message: in quotes, and cut if it is long.
std::string quote(std::string_view name);

}  // namespace bnew
