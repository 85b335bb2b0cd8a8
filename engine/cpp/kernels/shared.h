// The kernels that all instruction sets share, written on f16: a vector of sixteen floats. The file of an
// instruction set defines f16 and its operations in its own unnamed namespace, and then includes this file.
// So everything here is compiled for that instruction set alone, and nothing is visible outside.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../kernels.h"
#include "epilogue.h"
#include "normalise.h"

namespace bnew {
namespace {

// ------------------------------------------------------------------------------------- convolutions

template <class View>
inline auto window_at(const Window& w, const View& in, const Pixels& pixel) {
    return pixel_at(in, pixel.y * w.stride_y, pixel.x * w.stride_x);
}

// Finds the windows and the places of the N output pixels from `first` on.
template <int N, class View, class Data>
inline __attribute__((always_inline)) void locate(const Window& w, const View& in, const Epilogue& e,
                                                  int64_t first, Data* (&window)[N], Place (&at)[N]) {
    Pixels pixel(w.width, first);
    if (pixel.x + N <= w.width) {  // all in one row, as nearly always: this is much faster
        Data* const from = window_at(w, in, pixel);
        const int64_t step = w.stride_x * in.pixel;
        const Place place = pixel.place(e);
#pragma GCC unroll 16
        for (int p = 0; p < N; ++p) {
            window[p] = from + p * step;
            at[p] = {place.real + p * e.real.pixel, place.bits + p * e.bits.pixel,
                     place.other + p * e.other.pixel, nullptr};
        }
        return;
    }
    for (int p = 0; p < N; ++p, pixel.next()) {
        window[p] = window_at(w, in, pixel);
        at[p] = pixel.place(e);
    }
}

// Splits the pixels first to last - 1 into tiles of P, and the rest into tiles of 8, 4, 2 and 1.
template <int P, class Tile>
inline void tiles(int64_t first, int64_t last, Tile tile) {
    for (; last - first >= P; first += P) tile.template operator()<P>(first);
    if constexpr (P > 8) {
        if (last - first >= 8) tile.template operator()<8>(first), first += 8;
    }
    if constexpr (P > 4) {
        if (last - first >= 4) tile.template operator()<4>(first), first += 4;
    }
    if (last - first >= 2) tile.template operator()<2>(first), first += 2;
    if (last - first >= 1) tile.template operator()<1>(first);
}

// Copies the taps of one window close together, word by word, because a word that was stored as a whole can
// be loaded again without delay. Reads only the window: another thread may be writing the memory after it.
class Words {
public:
    explicit Words(uint8_t* to) : to_(to) {}

    inline __attribute__((always_inline)) void append(const uint8_t* from, int64_t bytes) {
        for (; bytes >= 8; from += 8, bytes -= 8) append_word(from, 8);
        if (bytes > 0) append_word(from, static_cast<int>(bytes));
    }
    inline __attribute__((always_inline)) void finish() {
        if (filled_ > 0) store();
    }

private:
    inline __attribute__((always_inline)) void append_word(const uint8_t* from, int bytes) {
        const uint64_t word = load_word(from, bytes);
        word_ |= word << 8 * filled_;
        filled_ += bytes;
        if (filled_ < 8) return;
        store();
        filled_ -= 8;
        word_ = filled_ > 0 ? word >> 8 * (bytes - filled_) : 0;
    }
    // `bytes` is 2, 4, 6 or 8.
    static inline __attribute__((always_inline)) uint64_t load_word(const uint8_t* from, int bytes) {
        uint64_t word = 0;
        if (bytes == 8) {
            std::memcpy(&word, from, 8);
            return word;
        }
        uint32_t four = 0;
        uint16_t two = 0;
        if (bytes & 4) std::memcpy(&four, from, 4);
        if (bytes & 2) std::memcpy(&two, from + (bytes & 4), 2);
        return four | uint64_t{two} << 8 * (bytes & 4);
    }
    inline __attribute__((always_inline)) void store() {
        std::memcpy(to_, &word_, 8);
        to_ += 8;
    }

    uint8_t* to_;
    uint64_t word_ = 0;
    int filled_ = 0;  // bytes of word_
};

inline void gather(const BinaryConv& conv, const BitsView& in, const uint8_t* window, uint8_t* out) {
    const Window& w = conv.window;
    Words words(out);
    const auto rows = [&](int count, int64_t run) __attribute__((always_inline)) {
#pragma GCC unroll 3
        for (int ky = 0; ky < count; ++ky) words.append(window + ky * w.dilation_y * in.row, run);
    };
    const bool three = w.kernel_y == 3 && w.kernel_x == 3 && w.dilation_x == 1;
    if (three && conv.unit == 2) {  // the usual sizes, unrolled
        rows(3, 6);
    } else if (three && conv.unit == 4) {
        rows(3, 12);
    } else if (w.dilation_x == 1) {  // taps of a row are contiguous
        for (int ky = 0; ky < w.kernel_y; ++ky)
            words.append(window + ky * w.dilation_y * in.row, w.kernel_x * conv.unit);
    } else {
        for (int ky = 0; ky < w.kernel_y; ++ky)
            for (int kx = 0; kx < w.kernel_x; ++kx)
                words.append(window + ky * w.dilation_y * in.row + kx * w.dilation_x * in.pixel, conv.unit);
    }
    words.finish();
}

// locate() for a binary convolution. Also sets the bases, and gathers windows into the scratch memory if taps
// do not fill whole words.
template <int N>
inline __attribute__((always_inline)) void locate(const BinaryConv& conv, const BitsView& in,
                                                  const Epilogue& e, int64_t first,
                                                  const uint8_t* (&window)[N], Place (&at)[N]) {
    locate(conv.window, in, e, first, window, at);
    const int64_t channels = round_up(conv.channels_out, kGroup);
    Pixels pixel(conv.window.width, first);
    for (int p = 0; p < N; ++p, pixel.next()) {
        const int border = conv.row_class[pixel.y] * conv.column_classes + conv.column_class[pixel.x];
        at[p].base = conv.base + border * channels;
    }
    if (conv.unit % 8 == 0) return;
    for (int p = 0; p < N; ++p) {
        uint8_t* close = conv.scratch + p * window_words(conv) * 8;
        gather(conv, in, window[p], close);
        window[p] = close;
    }
}

template <int P, int V>
inline void real_tile(const RealConv& conv, const RealView& in, const float* const (&window)[P],
                      const float* weights, int64_t stride, const Epilogue& e, int c, const Place (&at)[P]) {
    const Window& w = conv.window;
    f16 sum[P][V];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[p][v] = all(0);
    // If channels lie close together, the taps of a row are contiguous: one run.
    const bool close = w.dilation_x == 1 && in.pixel == conv.channels_in;
    const int columns = close ? 1 : w.kernel_x;
    const int64_t run = close ? int64_t{w.kernel_x} * conv.channels_in : conv.channels_in;
    for (int ky = 0; ky < w.kernel_y; ++ky) {
        for (int kx = 0; kx < columns; ++kx) {
            const int64_t tap = ky * w.dilation_y * in.row + kx * w.dilation_x * in.pixel;
            for (int64_t k = tap; k < tap + run; ++k, weights += kGroup) {
                f16 row[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) row[v] = load(weights + v * stride);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) {
                    const f16 x = all(window[p][k]);
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) sum[p][v] = fma(x, row[v], sum[p][v]);
                }
            }
        }
    }
    finish(sum, e, c, at);
}

// Computes groups first to last - 1 of output channels, V at a time, for all pixels of the part.
template <int P, int V>
void real_groups(const RealConv& conv, const RealView& in, const Epilogue& e, const Part& part, int first,
                 int last) {
    const int64_t stride = int64_t{conv.window.kernel_y} * conv.window.kernel_x * conv.channels_in * kGroup;
    const int groups_out = static_cast<int>(round_up(conv.channels_out, kGroup)) / kGroup;
    tiles<P>(part.first_pixel, part.last_pixel, [&]<int N>(int64_t first_pixel) {
        const float* window[N];
        Place at[N];
        locate(conv.window, in, e, first_pixel, window, at);
        for (int g = first; g < last; g += V) {
            const float* shifted[N];
            for (int p = 0; p < N; ++p) shifted[p] = window[p] + int64_t{g} / groups_out * conv.channels_in;
            real_tile<N, V>(conv, in, shifted, conv.weights + g * stride, stride, e, g * kGroup, at);
        }
    });
}

void depthwise(const RealConv& conv, const RealView& in, const Epilogue& e, const Part& part) {
    const Window& w = conv.window;
    Pixels pixel(w.width, part.first_pixel);
    for (int64_t n = part.first_pixel; n < part.last_pixel; ++n, pixel.next()) {
        const float* window = window_at(w, in, pixel);
        const Place at = pixel.place(e);
        for (int g = part.first_group; g < part.last_group; ++g) {
            const float* weights = conv.weights + int64_t{g} * w.kernel_y * w.kernel_x * kGroup;
            f16 sum = all(0);
            for (int ky = 0; ky < w.kernel_y; ++ky)
                for (int kx = 0; kx < w.kernel_x; ++kx, weights += kGroup)
                    sum = fma(
                        load(window + ky * w.dilation_y * in.row + kx * w.dilation_x * in.pixel + g * kGroup),
                        load(weights), sum);
            finish(sum, e, g * kGroup, at);
        }
    }
}

// The including file chooses kPixels and kVectors so that a tile fits into the registers.
void real_conv(const RealConv& conv, const RealView& in, const Epilogue& e, const Part& part) {
    if (conv.depthwise) return depthwise(conv, in, e, part);
    int first = part.first_group;
    const int per_group = static_cast<int>(round_up(conv.channels_out, kGroup)) / kGroup;
    // A tile must not cover two groups of the convolution.
    const auto whole = [&](int v) {
        return conv.groups > 1 && per_group % v != 0 ? first : first + (part.last_group - first) / v * v;
    };
    if constexpr (kVectors >= 4) {
        const int last = whole(4);
        real_groups<kPixels, 4>(conv, in, e, part, first, last);
        first = last;
    }
    if constexpr (kVectors >= 2) {
        const int last = whole(2);
        real_groups<kPixels, 2>(conv, in, e, part, first, last);
        first = last;
    }
    real_groups<kVectors >= 2 ? 2 * kPixels : kPixels, 1>(conv, in, e, part, first, part.last_group);
}

// --------------------------------------------------------------------------------------------- pools

void pool(const Pool& pool, const RealView& in, const Epilogue& e, const Part& part) {
    Pixels pixel(pool.width, part.first_pixel);
    for (int64_t n = part.first_pixel; n < part.last_pixel; ++n, pixel.next()) {
        const int y0 = pool.row_first[pixel.y], y1 = pool.row_last[pixel.y];
        const int x0 = pool.column_first[pixel.x], x1 = pool.column_last[pixel.x];
        const f16 places =
            all(pool.kind == Pooling::average ? pool.row_places[pixel.y] * pool.column_places[pixel.x] : 1);
        const Place at = pixel.place(e);
        for (int c = part.first_group * kGroup; c < part.last_group * kGroup; c += kGroup) {
            f16 v = all(pool.kind == Pooling::max ? -INFINITY : 0);
            for (int y = y0; y < y1; y += pool.dilation_y) {
                for (int x = x0; x < x1; x += pool.dilation_x) {
                    const f16 value = load(in.data + y * in.row + x * in.pixel + c);
                    v = pool.kind == Pooling::max ? max(v, value) : add(v, value);
                }
            }
            finish(pool.kind == Pooling::max ? v : div(v, places), e, c, at);
        }
    }
}

// ------------------------------------------------------------------------------------ interpolation

// a + w (b - a), as a (1 - w) + b w.
inline f16 between(f16 a, f16 b, f16 rest, f16 weight) { return fma(b, weight, mul(a, rest)); }

void bilinear(const Bilinear& resize, const RealView& in, const Epilogue& epilogue, const Part& part) {
    const Epilogue e = epilogue;
    Pixels pixel(resize.width, part.first_pixel);
    for (int64_t n = part.first_pixel; n < part.last_pixel; ++n, pixel.next()) {
        const float* const upper = in.data + resize.row_lower[pixel.y] * in.row;
        const float* const lower = in.data + resize.row_upper[pixel.y] * in.row;
        const int64_t left = resize.column_lower[pixel.x] * in.pixel;
        const int64_t right = resize.column_upper[pixel.x] * in.pixel;
        const f16 down = all(resize.row_weight[pixel.y]), up = all(1 - resize.row_weight[pixel.y]);
        const f16 to_right = all(resize.column_weight[pixel.x]);
        const f16 to_left = all(1 - resize.column_weight[pixel.x]);
        const Place at = pixel.place(e);
        for (int c = part.first_group * kGroup; c < part.last_group * kGroup; c += kGroup) {
            const f16 above = between(load(upper + left + c), load(upper + right + c), to_left, to_right);
            const f16 below = between(load(lower + left + c), load(lower + right + c), to_left, to_right);
            finish(between(above, below, up, down), e, c, at);
        }
    }
}

// ------------------------------------------------------------------------------------ single values

// Signs of G groups of `count` pixels. The bounds stay in registers.
template <int G>
inline void sign_groups(const float* from, int64_t pixel, uint8_t* to, int64_t bits_pixel, int64_t count,
                        const float* bounds) {
    f16 bound[G];
    for (int g = 0; g < G; ++g) bound[g] = load(bounds + g * kGroup);
    for (; count > 0; --count, from += pixel, to += bits_pixel) {
        uint64_t bits = 0;
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g)
            bits |= uint64_t{at_least(load(from + g * kGroup), bound[g])} << g * kGroup;
        std::memcpy(to, &bits, G * kGroup / 8);
    }
}

inline bool gives_signs_alone(const Epilogue& e) {
    return !e.scale && e.join == Join::none && !e.slope && e.activation == kNoActivation && !e.scale_out &&
           !e.shift_out && !e.real.data && e.bits.data && !e.sign_scale;
}

// Computes the signs of the part, row by row.
void signs(int width, const RealView& in, const Epilogue& e, const Part& part) {
    for (int64_t first = part.first_pixel; first < part.last_pixel;) {
        const int y = static_cast<int>(first / width), x = static_cast<int>(first % width);
        const int64_t count = std::min<int64_t>(width - x, part.last_pixel - first);
        const float* from = pixel_at(in, y, x);
        uint8_t* to = pixel_at(e.bits, y, x);
        int g = part.first_group;
        const auto groups = [&]<int G>() {
            for (; part.last_group - g >= G; g += G)
                sign_groups<G>(from + g * kGroup, in.pixel, to + g * kGroup / 8, e.bits.pixel, count,
                               e.sign_shift + g * kGroup);
        };
        groups.template operator()<4>();
        groups.template operator()<1>();
        first += count;
    }
}

void pointwise(int width, const RealView& in, const Epilogue& epilogue, const Part& part) {
    const Epilogue e = epilogue;
    if (gives_signs_alone(e)) return signs(width, in, e, part);
    Pixels pixel(width, part.first_pixel);
    for (int64_t n = part.first_pixel; n < part.last_pixel; ++n, pixel.next()) {
        each_group(pixel_at(in, pixel.y, pixel.x), part, e, pixel.place(e), [](f16 v, int) { return v; });
    }
}

}  // namespace
}  // namespace bnew
