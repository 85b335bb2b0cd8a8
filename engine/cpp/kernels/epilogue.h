// The epilogue of a tile, and the addresses of its results. Written on f16, like shared.h.

#pragma once

#include <cstring>

#include "../kernels.h"
#include "activations.h"

namespace bnew {
namespace {

// The addresses of an output pixel: of its results, and of the values that these are joined with.
struct Place {
    float* real;
    uint8_t* bits;
    const float* other;
    const float* base;  // of a binary convolution
};

template <class View>
inline auto pixel_at(const View& view, int y, int x) {
    return view.data ? view.data + y * view.row + x * view.pixel : nullptr;
}

// Iterates over output pixels, row by row.
struct Pixels {
    int width, y, x;

    Pixels(int width, int64_t first)
        : width(width), y(static_cast<int>(first / width)), x(static_cast<int>(first % width)) {}

    Place place(const Epilogue& e) const {
        return {pixel_at(e.real, y, x), pixel_at(e.bits, y, x), pixel_at(e.other, y, x), nullptr};
    }
    void next() {
        if (++x == width) {
            x = 0;
            ++y;
        }
    }
};

// Applies the epilogue to P pixels and G groups of channels from channel c on. It processes the whole tile
// line by line, so that numbers per channel are loaded once and the values stay in registers.
template <int P, int G>
inline __attribute__((always_inline)) void finish(f16 (&v)[P][G], const Epilogue& e, int c, const Place* at) {
    const auto values = [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) f(v[p][g], c + g * kGroup, at[p]);
        }
    };
    if (e.scale) {
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
            const f16 scale = load(e.scale + c + g * kGroup), shift = load(e.shift + c + g * kGroup);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) v[p][g] = fma(v[p][g], scale, shift);
        }
    }
    if (e.join != Join::none) {
        int from[G];
        for (int g = 0; g < G; ++g) from[g] = (c + g * kGroup) % e.other_channels;
        switch (e.join) {  // generates no code, but a new join that is missing here is an error
            case Join::none:
            case Join::add:
            case Join::multiply: break;
        }
        if (e.join == Join::add) {
            values([&](f16& x, int channel, const Place& place) __attribute__((always_inline)) {
                x = add(x, load(place.other + from[(channel - c) / kGroup]));
            });
        } else {
            values([&](f16& x, int channel, const Place& place) __attribute__((always_inline)) {
                x = mul(x, load(place.other + from[(channel - c) / kGroup]));
            });
        }
    }
    if (e.slope) {
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
            const f16 slope = load(e.slope + c + g * kGroup);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) v[p][g] = prelu(v[p][g], slope);
        }
    } else if (e.activation != kNoActivation) [[unlikely]] {  // kept out of the way of the fast ones
        // On a copy: the call needs its values in memory, and the tile must stay in registers.
        f16 slow[P][G];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
            for (int g = 0; g < G; ++g) slow[p][g] = v[p][g];
        }
        kActivations[e.activation].apply(slow[0], P * G, e);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
            for (int g = 0; g < G; ++g) v[p][g] = slow[p][g];
        }
    }
    if (e.scale_out) {
        values([&](f16& x, int channel, const Place&) __attribute__((always_inline)) {
            x = fma(x, load(e.scale_out + channel), load(e.shift_out + channel));
        });
    } else if (e.shift_out) {
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
            const f16 shift = load(e.shift_out + c + g * kGroup);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) v[p][g] = add(v[p][g], shift);
        }
    }
    if (e.real.data) {
        values([&](f16& x, int channel, const Place& place)
                   __attribute__((always_inline)) { store(place.real + channel, x); });
    }
    if (e.bits.data) {
        values([&](f16& x, int channel, const Place& place) __attribute__((always_inline)) {
            const uint16_t bits =
                e.sign_scale
                    ? at_least(fma(x, load(e.sign_scale + channel), load(e.sign_shift + channel)), all(0))
                    : at_least(x, load(e.sign_shift + channel));
            std::memcpy(place.bits + channel / 8, &bits, sizeof bits);
        });
    }
}

inline void finish(f16 v, const Epilogue& e, int c, const Place& at) {
    f16 tile[1][1] = {{v}};
    finish(tile, e, c, &at);
}

// Applies f and then the epilogue to groups of one pixel, G at a time. Returns the first group that is left.
template <int G, class F>
inline int some_groups(const float* values, int first, int last, const Epilogue& e, const Place& at, F f) {
    for (; last - first >= G; first += G) {
        f16 v[1][G];
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) v[0][g] = f(load(values + (first + g) * kGroup), (first + g) * kGroup);
        finish(v, e, first * kGroup, &at);
    }
    return first;
}

// The same for all groups of the part. f takes sixteen numbers and the first one's channel.
template <class F>
inline void each_group(const float* values, const Part& part, const Epilogue& e, const Place& at, F f) {
    const int group = some_groups<4>(values, part.first_group, part.last_group, e, at, f);
    some_groups<1>(values, group, part.last_group, e, at, f);
}

}  // namespace
}  // namespace bnew
