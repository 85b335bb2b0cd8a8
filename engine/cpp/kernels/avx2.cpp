// AVX2 has no vector population count, but it has a shuffle that looks up thirty-two bytes in a table of
// sixteen. A lane holds four weights of an output channel, and the table holds the counts for four input
// channels of a pixel:
//
//     table[x][w] = number of bits set in x xor w,   x, w = 0 … 15
//
// One shuffle and one addition of bytes count four bits of thirty-two channels. This is twice as fast as the
// usual method, which shuffles the exclusive or of both: here, nibbles are masked and shifted only once, when
// the model is loaded.

#include <immintrin.h>

#include <array>

#include "../kernels.h"

namespace bnew {
namespace {

struct f16 {
    __m256 a, b;
};

inline f16 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, f16 v) {
    _mm256_storeu_ps(to, v.a);
    _mm256_storeu_ps(to + 8, v.b);
}
inline f16 all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline f16 add(f16 x, f16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline f16 mul(f16 x, f16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline f16 div(f16 x, f16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline f16 fma(f16 x, f16 y, f16 z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline f16 max(f16 x, f16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline f16 min(f16 x, f16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline __m256 prelu(__m256 v, __m256 slope) {
    const __m256 positive = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GE_OQ);
    return _mm256_blendv_ps(_mm256_mul_ps(v, slope), v, positive);
}
inline f16 prelu(f16 v, f16 slope) { return {prelu(v.a, slope.a), prelu(v.b, slope.b)}; }
inline f16 sqrt(f16 v) { return {_mm256_sqrt_ps(v.a), _mm256_sqrt_ps(v.b)}; }
inline __m256 choose(__m256 v, __m256 bound, __m256 yes, __m256 no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(v, bound, _CMP_GE_OQ));
}
inline f16 choose(f16 v, f16 bound, f16 yes, f16 no) {
    return {choose(v.a, bound.a, yes.a, no.a), choose(v.b, bound.b, yes.b, no.b)};
}
inline __m256 as_exponent(__m256 v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23));
}
inline f16 as_exponent(f16 v) { return {as_exponent(v.a), as_exponent(v.b)}; }
inline __m256i above_root(__m256 v) {
    return _mm256_sub_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(kRootHalf));
}
inline __m256 exponent(__m256 v) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(above_root(v), 23)); }
inline f16 exponent(f16 v) { return {exponent(v.a), exponent(v.b)}; }
inline __m256 mantissa(__m256 v) {
    const __m256i whole = _mm256_and_si256(above_root(v), _mm256_set1_epi32(kExponentBits));
    return _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(v), whole));
}
inline f16 mantissa(f16 v) { return {mantissa(v.a), mantissa(v.b)}; }
inline uint16_t at_least(f16 v, f16 bound) {
    return static_cast<uint16_t>(_mm256_movemask_ps(_mm256_cmp_ps(v.a, bound.a, _CMP_GE_OQ)) |
                                 _mm256_movemask_ps(_mm256_cmp_ps(v.b, bound.b, _CMP_GE_OQ)) << 8);
}
inline __m256 widen8(const uint16_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline f16 widen(const uint16_t* from) { return {widen8(from), widen8(from + 8)}; }

constexpr int kPixels = 6, kVectors = 1;

constexpr int kTilePixels = 4, kBlock = 64, kStepBytes = 2 * kBlock;

// For each byte x, the counts of its low and its high nibble against every nibble: 16 bytes each.
struct alignas(64) Tables {
    uint8_t low[256][16], high[256][16];
};

constexpr Tables make_tables() {
    constexpr uint8_t ones[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
    Tables tables{};
    for (int x = 0; x < 256; ++x) {
        for (int w = 0; w < 16; ++w) {
            tables.low[x][w] = ones[(x & 15) ^ w];
            tables.high[x][w] = ones[(x >> 4) ^ w];
        }
    }
    return tables;
}

constexpr Tables kTables = make_tables();

inline __m256i table(const uint8_t* entries) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(entries)));
}

template <int P>
class Counter {
public:
    Counter() { clear(); }

    inline __attribute__((always_inline)) void step(const uint8_t* const (&in)[P], const uint8_t* weights) {
        const auto* w = reinterpret_cast<const __m256i*>(weights);
        const __m256i low0 = _mm256_load_si256(w), low1 = _mm256_load_si256(w + 1);
        const __m256i high0 = _mm256_load_si256(w + 2), high1 = _mm256_load_si256(w + 3);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const __m256i low = table(kTables.low[*in[p]]), high = table(kTables.high[*in[p]]);
            count_[p][0] = _mm256_add_epi8(count_[p][0], _mm256_shuffle_epi8(low, low0));
            count_[p][1] = _mm256_add_epi8(count_[p][1], _mm256_shuffle_epi8(low, low1));
            count_[p][0] = _mm256_add_epi8(count_[p][0], _mm256_shuffle_epi8(high, high0));
            count_[p][1] = _mm256_add_epi8(count_[p][1], _mm256_shuffle_epi8(high, high1));
        }
    }

    inline __attribute__((always_inline)) void flush(uint16_t (&count)[P][kBlock]) {
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
                auto* to = reinterpret_cast<__m256i*>(count[p]) + 2 * v;
                const __m256i first = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(count_[p][v]));
                const __m256i second = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(count_[p][v], 1));
                _mm256_store_si256(to, _mm256_add_epi16(_mm256_load_si256(to), first));
                _mm256_store_si256(to + 1, _mm256_add_epi16(_mm256_load_si256(to + 1), second));
            }
        }
        clear();
    }

private:
    inline __attribute__((always_inline)) void clear() {
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) count_[p][0] = count_[p][1] = _mm256_setzero_si256();
    }

    __m256i count_[P][2];
};

void pack_step(const uint8_t* bytes, uint8_t* to) {
    for (int i = 0; i < kBlock; ++i) {
        to[i] = bytes[i] & 15;
        to[kBlock + i] = bytes[i] >> 4;
    }
}

}  // namespace
}  // namespace bnew

#include "bytewise.h"

namespace bnew {
namespace {

int64_t peak(int64_t rounds) {
    constexpr int kSums = 8;
    __m256i sum[kSums], table[2], weights[4];
    for (auto& s : sum) s = _mm256_setzero_si256();
    for (auto& t : table) t = _mm256_set1_epi8(3);
    for (auto& w : weights) w = _mm256_set1_epi8(5);
    for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 2
        for (int t = 0; t < 2; ++t) {
            asm volatile("" : "+x"(table[t]));  // the compiler must assume a new value
#pragma GCC unroll 4
            for (int w = 0; w < 4; ++w)
                sum[4 * t + w] = _mm256_add_epi8(sum[4 * t + w], _mm256_shuffle_epi8(table[t], weights[w]));
        }
    }
    for (auto& s : sum) asm volatile("" : : "x"(s));
    return rounds * kSums * 32 * 4;
}

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const Kernels avx2_kernels = {"avx2",    supported, binary_bytes,    pack_binary, binary_conv,
                              real_conv, pool,      layer_norm,      group_norm,  softmax,
                              bilinear,  pointwise, activation_name, peak};

}  // namespace bnew
