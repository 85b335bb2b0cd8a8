// AVX-512 with VPOPCNTDQ (Ice Lake, Zen 4 and later): a vector has sixty-four bits of eight output channels.
//
// A tile is P pixels by 8 V output channels. For each word of the window, V vectors of weights stay in
// registers. The pixel's word is broadcast and combined with each of them: exclusive or, population count,
// add. The P V = 24 sums stay in registers too. So V loads and P broadcasts serve 3 P V operations. (With 28
// sums and V = 4, some sums are on the stack: measured slower on Zen 4.)

#include <immintrin.h>

#include "../kernels.h"

namespace bnew {
namespace {

struct f16 {
    __m512 v;
};

inline f16 load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, f16 a) { _mm512_storeu_ps(to, a.v); }
inline f16 all(float x) { return {_mm512_set1_ps(x)}; }
inline f16 add(f16 a, f16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline f16 mul(f16 a, f16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline f16 div(f16 a, f16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline f16 fma(f16 a, f16 b, f16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline f16 max(f16 a, f16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline f16 min(f16 a, f16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline f16 prelu(f16 a, f16 slope) {
    const __mmask16 negative = _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NGE_UQ);
    return {_mm512_mask_mul_ps(a.v, negative, a.v, slope.v)};
}
inline f16 sqrt(f16 a) { return {_mm512_sqrt_ps(a.v)}; }
inline f16 choose(f16 a, f16 bound, f16 yes, f16 no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, bound.v, _CMP_GE_OQ), no.v, yes.v)};
}
inline f16 as_exponent(f16 a) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))};
}
inline __m512i above_root(f16 a) {
    return _mm512_sub_epi32(_mm512_castps_si512(a.v), _mm512_set1_epi32(kRootHalf));
}
inline f16 exponent(f16 a) { return {_mm512_cvtepi32_ps(_mm512_srai_epi32(above_root(a), 23))}; }
inline f16 mantissa(f16 a) {
    const __m512i whole = _mm512_and_si512(above_root(a), _mm512_set1_epi32(kExponentBits));
    return {_mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(a.v), whole))};
}
inline uint16_t at_least(f16 a, f16 bound) { return _mm512_cmp_ps_mask(a.v, bound.v, _CMP_GE_OQ); }

constexpr int kPixels = 6, kVectors = 4;

}  // namespace
}  // namespace bnew

#include "shared.h"

namespace bnew {
namespace {

constexpr int64_t kOuterBytes = 512 << 10;  // larger weights are read only once: channels are the outer loop

// Blocks of 32 output channels, or 16 in the last one: [block][word][vector][8 channels]. Vectors 2 i and 2 i
// + 1 of a block hold the even and the odd channels of 16, so that their counts merge into sixteen 32-bit
// lanes in order.
size_t binary_bytes(const BinaryConv& conv) {
    return round_up(conv.channels_out, kGroup) * window_words(conv) * 8;
}

void pack_binary(const BinaryConv& conv, const uint64_t* windows, void* out) {
    const int64_t words = window_words(conv);
    const int channels = static_cast<int>(round_up(conv.channels_out, kGroup));
    auto* to = static_cast<uint64_t*>(out);
    for (int block = 0; block < channels; block += 32) {
        const int vectors = channels - block < 32 ? 2 : 4;
        for (int64_t k = 0; k < words; ++k)
            for (int v = 0; v < vectors; ++v)
                for (int lane = 0; lane < 8; ++lane) {
                    const int c = block + v / 2 * kGroup + 2 * lane + v % 2;
                    *to++ = c < conv.channels_out ? windows[c * words + k] : 0;
                }
    }
}

// The offset in bytes of each word of a window from its first word.
const int64_t* word_offsets(const BinaryConv& conv, const BitsView& in) {
    const Window& w = conv.window;
    const int64_t words = window_words(conv);
    auto* const offsets = reinterpret_cast<int64_t*>(conv.scratch + kMostPixels * words * 8);
    if (conv.unit % 8 != 0) {
        for (int64_t k = 0; k < words; ++k) offsets[k] = 8 * k;
        return offsets;
    }
    int64_t* to = offsets;
    for (int ky = 0; ky < w.kernel_y; ++ky)
        for (int kx = 0; kx < w.kernel_x; ++kx)
            for (int64_t k = 0; k < conv.unit; k += 8)
                *to++ = ky * w.dilation_y * in.row + kx * w.dilation_x * in.pixel + k;
    return offsets;
}

template <int P, int V>
inline __attribute__((always_inline)) void binary_tile(const int64_t* offsets, int64_t words,
                                                       const uint8_t* const (&window)[P],
                                                       const uint64_t* weights, const Epilogue& e, int c,
                                                       const Place (&at)[P]) {
    __m512i count[P][V];
    const auto meet = [&](int64_t k, auto combine) __attribute__((always_inline)) {
        const int64_t offset = offsets[k];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            int64_t word;
            std::memcpy(&word, window[p] + offset, 8);
            const __m512i x = _mm512_set1_epi64(word);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                combine(count[p][v],
                        _mm512_popcnt_epi64(_mm512_xor_si512(x, _mm512_load_si512(weights + v * 8))));
        }
        weights += V * 8;
    };
    meet(0, [](__m512i& sum, __m512i n) __attribute__((always_inline)) { sum = n; });
    for (int64_t k = 1; k < words; ++k)
        meet(k,
             [](__m512i& sum, __m512i n) __attribute__((always_inline)) { sum = _mm512_add_epi64(sum, n); });
    f16 dot[P][V / 2];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < V; v += 2) {
            // Counts fit 32 bits: those of odd channels move into the upper halves of those of even channels.
            const __m512 merged = _mm512_mask_moveldup_ps(_mm512_castsi512_ps(count[p][v]), 0xAAAA,
                                                          _mm512_castsi512_ps(count[p][v + 1]));
            const __m512 differing = _mm512_cvtepi32_ps(_mm512_castps_si512(merged));
            dot[p][v / 2].v =
                _mm512_fmadd_ps(differing, _mm512_set1_ps(-2), _mm512_loadu_ps(at[p].base + c + v * 8));
        }
    }
    finish(dot, e, c, at);
}

// Takes numbers, not a reference to a Part: its numbers would be read again after every store, 10 % slower.
template <int P, int V>
void binary_blocks(const BinaryConv& conv, const BitsView& in, const int64_t* offsets, const Epilogue& e,
                   int64_t first_pixel, int64_t last_pixel, int first_group, int last_group) {
    static_assert(P <= kMostPixels);
    const int64_t words = window_words(conv);
    tiles<P>(first_pixel, last_pixel, [&]<int N>(int64_t first) {
        const uint8_t* window[N];
        Place at[N];
        locate(conv, in, e, first, window, at);
        for (int g = first_group; g < last_group; g += V / 2) {
            const auto* weights = static_cast<const uint64_t*>(conv.weights) + g * words * kGroup;
            binary_tile<N, V>(offsets, words, window, weights, e, g * kGroup, at);
        }
    });
}

void binary_conv(const BinaryConv& conv, const BitsView& in, const Epilogue& epilogue, const Part& part) {
    const Epilogue e = epilogue;
    const int pairs = part.first_group + (part.last_group - part.first_group) / 2 * 2;
    const bool channels_first = static_cast<int64_t>(binary_bytes(conv)) > kOuterBytes;
    const int step = channels_first ? 2 : pairs - part.first_group;
    const int64_t* const offsets = word_offsets(conv, in);
    for (int g = part.first_group; g < pairs; g += step)
        binary_blocks<6, 4>(conv, in, offsets, e, part.first_pixel, part.last_pixel, g, g + step);
    if (pairs < part.last_group)
        binary_blocks<12, 2>(conv, in, offsets, e, part.first_pixel, part.last_pixel, pairs, part.last_group);
}

int64_t peak(int64_t rounds) {
    constexpr int kX = 4, kY = 5;
    __m512i sum[kX][kY] = {}, x[kX], y[kY];
    for (int i = 0; i < kX; ++i) x[i] = _mm512_set1_epi64(i);
    for (int j = 0; j < kY; ++j) y[j] = _mm512_set1_epi64(~j);
    for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 8
        for (int i = 0; i < kX; ++i) {
            asm volatile("" : "+v"(x[i]));  // the compiler must assume a new value
#pragma GCC unroll 8
            for (int j = 0; j < kY; ++j)
                sum[i][j] = _mm512_add_epi64(sum[i][j], _mm512_popcnt_epi64(_mm512_xor_si512(x[i], y[j])));
        }
    }
    for (auto& row : sum)
        for (auto& s : row) asm volatile("" : : "v"(s));
    return rounds * kX * kY * 512;
}

bool supported() { return __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512dq"); }

}  // namespace

const Kernels avx512_kernels = {"avx512_vpopcntdq", supported, binary_bytes,    pack_binary, binary_conv,
                                real_conv,          pool,      layer_norm,      group_norm,  softmax,
                                bilinear,           pointwise, activation_name, peak};

}  // namespace bnew
