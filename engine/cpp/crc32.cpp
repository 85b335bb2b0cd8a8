#include "crc32.h"

#include <array>
#include <cstring>

namespace bnew {
namespace {

constexpr size_t kAtOnce = 16;  // bytes

using Table = std::array<std::array<uint32_t, 256>, kAtOnce>;

// table[k][b]: the effect of byte b on the checksum if k more bytes follow.
constexpr Table kTable = [] {
    Table table{};
    for (uint32_t b = 0; b < 256; ++b) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0u);
        table[0][b] = crc;
    }
    for (size_t k = 1; k < kAtOnce; ++k)
        for (uint32_t b = 0; b < 256; ++b)
            table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 255];
    return table;
}();

}  // namespace

uint32_t crc32(uint32_t before, const uint8_t* data, size_t size) {
    uint32_t crc = ~before;
    for (; size >= kAtOnce; data += kAtOnce, size -= kAtOnce) {
        uint32_t words[kAtOnce / 4];
        std::memcpy(words, data, kAtOnce);  // little-endian, as file.cpp asserts
        words[0] ^= crc;
        crc = 0;
        for (size_t i = 0; i < kAtOnce; ++i) crc ^= kTable[kAtOnce - 1 - i][words[i / 4] >> i % 4 * 8 & 255];
    }
    for (; size > 0; ++data, --size) crc = crc >> 8 ^ kTable[0][(crc ^ *data) & 255];
    return ~crc;
}

}  // namespace bnew
