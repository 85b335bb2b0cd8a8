// NEON has a population count of bytes. Each 8-bit lane is an output channel. The pixel's byte is broadcast,
// so one exclusive or, one population count and one addition process sixteen channels.

#include <arm_neon.h>

#include <cstring>

#include "../kernels.h"

namespace bnew {
namespace {

struct f16 {
    float32x4_t a, b, c, d;
};

// Applies f to each quarter of the arguments.
template <class F, class... Sixteen>
inline f16 quarters(F f, Sixteen... of) {
    return {f(of.a...), f(of.b...), f(of.c...), f(of.d...)};
}

inline f16 load(const float* from) {
    return {vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)};
}
inline void store(float* to, f16 v) {
    vst1q_f32(to, v.a);
    vst1q_f32(to + 4, v.b);
    vst1q_f32(to + 8, v.c);
    vst1q_f32(to + 12, v.d);
}
inline f16 all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline f16 add(f16 x, f16 y) {
    return quarters([](auto a, auto b) { return vaddq_f32(a, b); }, x, y);
}
inline f16 mul(f16 x, f16 y) {
    return quarters([](auto a, auto b) { return vmulq_f32(a, b); }, x, y);
}
inline f16 div(f16 x, f16 y) {
    return quarters([](auto a, auto b) { return vdivq_f32(a, b); }, x, y);
}
inline f16 fma(f16 x, f16 y, f16 z) {
    return quarters([](auto a, auto b, auto c) { return vfmaq_f32(c, a, b); }, x, y, z);
}
// Not vmaxq_f32: it returns NaN if either number is NaN, and +0 for +0 and -0. The specification returns y.
inline f16 max(f16 x, f16 y) {
    return quarters([](auto a, auto b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }, x, y);
}
inline f16 min(f16 x, f16 y) {
    return quarters([](auto a, auto b) { return vbslq_f32(vcltq_f32(a, b), a, b); }, x, y);
}
inline f16 prelu(f16 v, f16 slope) {
    return quarters([](auto a, auto s) { return vbslq_f32(vcgezq_f32(a), a, vmulq_f32(a, s)); }, v, slope);
}
inline f16 sqrt(f16 v) {
    return quarters([](auto a) { return vsqrtq_f32(a); }, v);
}
inline f16 choose(f16 v, f16 bound, f16 yes, f16 no) {
    return quarters([](auto a, auto b, auto y, auto n) { return vbslq_f32(vcgeq_f32(a, b), y, n); }, v, bound,
                    yes, no);
}
inline f16 as_exponent(f16 v) {
    return quarters([](auto a) { return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(a), 23)); },
                    v);
}
inline int32x4_t above_root(float32x4_t v) {
    return vsubq_s32(vreinterpretq_s32_f32(v), vdupq_n_s32(kRootHalf));
}
inline f16 exponent(f16 v) {
    return quarters([](auto a) { return vcvtq_f32_s32(vshrq_n_s32(above_root(a), 23)); }, v);
}
inline f16 mantissa(f16 v) {
    const auto four = [](float32x4_t a) {
        const int32x4_t whole = vandq_s32(above_root(a), vdupq_n_s32(kExponentBits));
        return vreinterpretq_f32_s32(vsubq_s32(vreinterpretq_s32_f32(a), whole));
    };
    return quarters(four, v);
}
inline uint16_t at_least(f16 v, f16 bound) {
    const auto eight = [](auto x, auto y, auto x_bound, auto y_bound) {
        const uint16x8_t both =
            vcombine_u16(vmovn_u32(vcgeq_f32(x, x_bound)), vmovn_u32(vcgeq_f32(y, y_bound)));
        return vaddv_u8(vand_u8(vmovn_u16(both), vcreate_u8(0x8040201008040201)));
    };
    return static_cast<uint16_t>(eight(v.a, v.b, bound.a, bound.b) | eight(v.c, v.d, bound.c, bound.d) << 8);
}
inline f16 widen(const uint16_t* from) {
    const auto four = [](const uint16_t* at) { return vcvtq_f32_u32(vmovl_u16(vld1_u16(at))); };
    return {four(from), four(from + 4), four(from + 8), four(from + 12)};
}

constexpr int kPixels = 6, kVectors = 1;

constexpr int kTilePixels = 4, kBlock = 64, kStepBytes = kBlock;

constexpr int kVectorBytes = 16, kBlockVectors = kBlock / kVectorBytes;

template <int P>
class Counter {
public:
    Counter() { clear(); }

    inline __attribute__((always_inline)) void step(const uint8_t* const (&in)[P], const uint8_t* weights) {
        uint8x16_t w[kBlockVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kBlockVectors; ++v) w[v] = vld1q_u8(weights + v * kVectorBytes);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const uint8x16_t x = vld1q_dup_u8(in[p]);
#pragma GCC unroll 4
            for (int v = 0; v < kBlockVectors; ++v)
                count_[p][v] = vaddq_u8(count_[p][v], vcntq_u8(veorq_u8(x, w[v])));
        }
    }

    inline __attribute__((always_inline)) void flush(uint16_t (&count)[P][kBlock]) {
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int v = 0; v < kBlockVectors; ++v) {
                uint16_t* to = count[p] + v * kVectorBytes;
                vst1q_u16(to, vaddw_u8(vld1q_u16(to), vget_low_u8(count_[p][v])));
                vst1q_u16(to + 8, vaddw_high_u8(vld1q_u16(to + 8), count_[p][v]));
            }
        }
        clear();
    }

private:
    inline __attribute__((always_inline)) void clear() {
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int v = 0; v < kBlockVectors; ++v) count_[p][v] = vdupq_n_u8(0);
        }
    }

    uint8x16_t count_[P][kBlockVectors];
};

void pack_step(const uint8_t* bytes, uint8_t* to) { std::memcpy(to, bytes, kBlock); }

}  // namespace
}  // namespace bnew

#include "bytewise.h"

namespace bnew {
namespace {

int64_t peak(int64_t rounds) {
    constexpr int kX = 4, kY = 4;
    uint8x16_t sum[kX][kY] = {}, x[kX], y[kY];
    for (int i = 0; i < kX; ++i) x[i] = vdupq_n_u8(static_cast<uint8_t>(i));
    for (int j = 0; j < kY; ++j) y[j] = vdupq_n_u8(static_cast<uint8_t>(~j));
    for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 4
        for (int i = 0; i < kX; ++i) {
            asm volatile("" : "+w"(x[i]));  // the compiler must assume a new value
#pragma GCC unroll 4
            for (int j = 0; j < kY; ++j) sum[i][j] = vaddq_u8(sum[i][j], vcntq_u8(veorq_u8(x[i], y[j])));
        }
    }
    for (auto& row : sum)
        for (auto& s : row) asm volatile("" : : "w"(s));
    return rounds * kX * kY * 128;
}

bool supported() { return true; }  // every 64-bit ARM has it

}  // namespace

const Kernels neon_kernels = {"neon",    supported, binary_bytes,    pack_binary, binary_conv,
                              real_conv, pool,      layer_norm,      group_norm,  softmax,
                              bilinear,  pointwise, activation_name, peak};

}  // namespace bnew
