// UTF-8, and text from files in messages.

#pragma once

#include <string>
#include <string_view>

namespace bnew {

// The length in bytes of the text's first character; 0 if it is not UTF-8, or if the text is empty.
size_t utf8_length(std::string_view text);

// Quotes a name from a file for a message, and shortens a long one.
std::string quote(std::string_view name);

}  // namespace bnew
