// CRC-32 as in zip, PNG and zlib: polynomial 0x04C11DB7, reflected, all ones before and after.

#pragma once

#include <cstddef>
#include <cstdint>

namespace bnew {

// Continues the checksum `before` of the preceding bytes; 0 at the beginning.
uint32_t crc32(uint32_t before, const uint8_t* data, size_t size);

}  // namespace bnew
