// The specification of all kernels, without intrinsics.

#include <algorithm>
#include <bit>
#include <cmath>

#include "../kernels.h"

namespace bnew {
namespace {

struct f16 {
    float lane[kGroup];
};

template <class F>
f16 lanes(F f) {
    f16 result;
    for (int i = 0; i < kGroup; ++i) result.lane[i] = f(i);
    return result;
}

f16 load(const float* from) {
    return lanes([=](int i) { return from[i]; });
}
void store(float* to, const f16& v) { std::copy_n(v.lane, kGroup, to); }
f16 all(float x) {
    return lanes([=](int) { return x; });
}
f16 add(const f16& a, const f16& b) {
    return lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
f16 mul(const f16& a, const f16& b) {
    return lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
f16 div(const f16& a, const f16& b) {
    return lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
f16 fma(const f16& a, const f16& b, const f16& c) {
    return lanes([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
f16 max(const f16& a, const f16& b) {
    return lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
f16 min(const f16& a, const f16& b) {
    return lanes([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
f16 prelu(const f16& v, const f16& slope) {
    return lanes([&](int i) { return v.lane[i] >= 0 ? v.lane[i] : v.lane[i] * slope.lane[i]; });
}
f16 sqrt(const f16& v) {
    return lanes([&](int i) { return std::sqrt(v.lane[i]); });
}
// v >= bound ? yes : no.
f16 choose(const f16& v, const f16& bound, const f16& yes, const f16& no) {
    return lanes([&](int i) { return v.lane[i] >= bound.lane[i] ? yes.lane[i] : no.lane[i]; });
}
// The bits of v, moved up into the exponent: see power() in activations.h.
f16 as_exponent(const f16& v) {
    return lanes([&](int i) { return std::bit_cast<float>(std::bit_cast<uint32_t>(v.lane[i]) << 23); });
}
// e and m with v = 2^e m and m from √½ to √2, for a positive normal v.
f16 exponent(const f16& v) {
    return lanes(
        [&](int i) { return static_cast<float>((std::bit_cast<int32_t>(v.lane[i]) - kRootHalf) >> 23); });
}
f16 mantissa(const f16& v) {
    return lanes([&](int i) {
        const auto bits = std::bit_cast<int32_t>(v.lane[i]);
        return std::bit_cast<float>(bits - ((bits - kRootHalf) & kExponentBits));
    });
}
uint16_t at_least(const f16& v, const f16& bound) {
    uint16_t bits = 0;
    for (int i = 0; i < kGroup; ++i) bits |= static_cast<uint16_t>((v.lane[i] >= bound.lane[i]) << i);
    return bits;
}

constexpr int kPixels = 1, kVectors = 1;

}  // namespace
}  // namespace bnew

#include "shared.h"

namespace bnew {
namespace {

size_t binary_bytes(const BinaryConv& conv) { return conv.channels_out * window_words(conv) * 8; }

void pack_binary(const BinaryConv& conv, const uint64_t* windows, void* out) {
    std::memcpy(out, windows, binary_bytes(conv));
}

void binary_conv(const BinaryConv& conv, const BitsView& in, const Epilogue& e, const Part& part) {
    const Window& w = conv.window;
    const int64_t words = window_words(conv);
    const int64_t channels = round_up(conv.channels_out, kGroup);
    const auto* weights = static_cast<const uint64_t*>(conv.weights);
    const auto* window = reinterpret_cast<const uint64_t*>(conv.scratch);
    Pixels pixel(w.width, part.first_pixel);
    for (int64_t n = part.first_pixel; n < part.last_pixel; ++n, pixel.next()) {
        gather(conv, in, window_at(w, in, pixel), conv.scratch);
        const int border = conv.row_class[pixel.y] * conv.column_classes + conv.column_class[pixel.x];
        const float* base = conv.base + border * channels;
        const Place at = pixel.place(e);
        for (int c = part.first_group * kGroup; c < part.last_group * kGroup; c += kGroup) {
            finish(lanes([&](int i) {
                       if (c + i >= conv.channels_out) return 0.0f;
                       int64_t differing = 0;
                       for (int64_t k = 0; k < words; ++k)
                           differing += std::popcount(window[k] ^ weights[(c + i) * words + k]);
                       return base[c + i] - 2.0f * static_cast<float>(differing);
                   }),
                   e, c, at);
        }
    }
}

int64_t peak(int64_t rounds) {
    uint64_t x = 0x9e3779b97f4a7c15;
    int64_t count = 0;
    for (int64_t i = 0; i < rounds; ++i) {
        asm volatile("" : "+r"(x));
        count += std::popcount(x ^ static_cast<uint64_t>(count));
    }
    asm volatile("" : "+r"(count));
    return rounds * 64;
}

bool supported() { return true; }

}  // namespace

const Kernels scalar_kernels = {"scalar",  supported, binary_bytes,    pack_binary, binary_conv,
                                real_conv, pool,      layer_norm,      group_norm,  softmax,
                                bilinear,  pointwise, activation_name, peak};

}  // namespace bnew
