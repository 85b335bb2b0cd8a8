// Normalisation and softmax. Written on f16, like shared.h.

#pragma once

#include <algorithm>
#include <cmath>

#include "../kernels.h"
#include "epilogue.h"

namespace bnew {
namespace {

// Combines sixteen lanes in pairs: the upper half with the lower.
template <class F>
inline float lanes_of(f16 v, F f) {
    float lanes[kGroup];
    store(lanes, v);
    for (int half = kGroup / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = f(lanes[i], lanes[i + half]);
    return lanes[0];
}

inline float sum_of(f16 v) {
    return lanes_of(v, [](float a, float b) { return a + b; });
}

// Reduces a pixel's channels, sixteen at a time: result = f(channels, result). `filling` takes the place of
// the channels that fill up the last group.
template <class F>
inline f16 reduce(const float* values, int channels, float start, float filling, F f) {
    f16 result = all(start);
    const int whole = channels / kGroup * kGroup;
    for (int c = 0; c < whole; c += kGroup) result = f(load(values + c), result);
    if (whole < channels) {
        float last[kGroup];
        std::fill_n(last, kGroup, filling);
        std::copy(values + whole, values + channels, last);
        result = f(load(last), result);
    }
    return result;
}

void layer_norm(const LayerNorm& norm, const RealView& in, const Epilogue& epilogue, const Part& part) {
    const Epilogue e = epilogue;
    const float channels = static_cast<float>(norm.channels);
    Pixels pixel(norm.width, part.first_pixel);
    for (int64_t n = part.first_pixel; n < part.last_pixel; ++n, pixel.next()) {
        const float* values = pixel_at(in, pixel.y, pixel.x);
        float mean = 0;
        if (norm.kind == Norm::layer)
            mean = sum_of(reduce(values, norm.channels, 0, 0, [](f16 v, f16 sum) { return add(sum, v); })) /
                   channels;
        const f16 less = all(-mean);
        const float squares = sum_of(reduce(values, norm.channels, 0, mean, [&](f16 v, f16 sum) {
            const f16 difference = add(v, less);
            return fma(difference, difference, sum);
        }));
        const float size = norm.kind == Norm::l2 ? std::max(std::sqrt(squares), norm.eps)
                                                 : std::sqrt(squares / channels + norm.eps);
        const f16 scale = all(1 / size);
        each_group(values, part, e, pixel.place(e), [&](f16 v, int) { return mul(add(v, less), scale); });
    }
}

// The sums of v - origin and of its square over all pixels, for channels first to last - 1. The origin is the
// channel's number at the first pixel, so that a mean far from 0 leaves the squares their digits.
inline void add_up(const GroupNorm& norm, const RealView& in, int first, int last, double* sums,
                   double* squares) {
    std::fill(sums + first, sums + last, 0);
    std::fill(squares + first, squares + last, 0);
    for (int y = 0; y < norm.height; ++y) {
        for (int c = first; c < last; c += kGroup) {
            const f16 less = mul(load(in.data + c), all(-1));
            f16 sum = all(0), square = all(0);
            for (int x = 0; x < norm.width; ++x) {
                const f16 difference = add(load(in.data + y * in.row + x * in.pixel + c), less);
                sum = add(sum, difference);
                square = fma(difference, difference, square);
            }
            float lanes[2][kGroup];
            store(lanes[0], sum);
            store(lanes[1], square);
            for (int i = 0; i < kGroup; ++i) {
                sums[c + i] += static_cast<double>(lanes[0][i]);
                squares[c + i] += static_cast<double>(lanes[1][i]);
            }
        }
    }
}

void group_norm(const GroupNorm& norm, const RealView& in, const Epilogue& epilogue, const Part& part) {
    const Epilogue e = epilogue;
    const int channels = static_cast<int>(round_up(norm.channels, kGroup));
    auto* const sums = reinterpret_cast<double*>(norm.scratch);
    double* const squares = sums + channels;
    auto* const scale = reinterpret_cast<float*>(squares + channels);
    float* const shift = scale + channels;
    // The channels of all groups of which the part has any.
    const int size = norm.channels / norm.groups;
    const int first = part.first_group * kGroup / size * size;
    const int last = static_cast<int>(round_up(std::min(norm.channels, part.last_group * kGroup), size));
    add_up(norm, in, first / kGroup * kGroup, static_cast<int>(round_up(last, kGroup)), sums, squares);
    std::fill(scale, shift + channels, 0.0f);
    const double pixels = 1.0 * norm.height * norm.width;
    for (int begin = first; begin < last; begin += size) {
        double mean = 0, variance = 0;
        for (int c = begin; c < begin + size; ++c) mean += static_cast<double>(in.data[c]) + sums[c] / pixels;
        mean /= size;
        // The sum of (v - mean)² is that of (v - origin)² + 2 (origin - mean) (v - origin) + (origin -
        // mean)².
        for (int c = begin; c < begin + size; ++c) {
            const double further = static_cast<double>(in.data[c]) - mean;
            variance += squares[c] / pixels + further * (2 * sums[c] / pixels + further);
        }
        variance = std::max(0.0, variance / size);
        const double factor = 1 / std::sqrt(variance + static_cast<double>(norm.eps));
        std::fill_n(scale + begin, size, static_cast<float>(factor));
        std::fill_n(shift + begin, size, static_cast<float>(-mean * factor));
    }
    Pixels pixel(norm.width, part.first_pixel);
    for (int64_t n = part.first_pixel; n < part.last_pixel; ++n, pixel.next())
        each_group(pixel_at(in, pixel.y, pixel.x), part, e, pixel.place(e),
                   [&](f16 v, int c) { return fma(v, load(scale + c), load(shift + c)); });
}

void softmax(const Softmax& softmax, const RealView& in, const Epilogue& epilogue, const Part& part) {
    const Epilogue e = epilogue;
    auto* const exponentials = reinterpret_cast<float*>(softmax.scratch);
    Pixels pixel(softmax.width, part.first_pixel);
    for (int64_t n = part.first_pixel; n < part.last_pixel; ++n, pixel.next()) {
        const float* values = pixel_at(in, pixel.y, pixel.x);
        const float most = lanes_of(
            reduce(values, softmax.channels, -INFINITY, -INFINITY, [](f16 v, f16 m) { return max(v, m); }),
            [](float a, float b) { return b > a ? b : a; });
        const f16 less = all(-most);
        float* to = exponentials;
        const float sum = sum_of(reduce(values, softmax.channels, 0, -INFINITY, [&](f16 v, f16 sum) {
            const f16 exponential = exp(add(v, less));
            store(to, exponential);
            to += kGroup;
            return add(sum, exponential);
        }));
        const Place at = pixel.place(e);
        if (softmax.log) {
            const f16 log_of_sum = mul(log(all(sum)), all(-1));
            each_group(values, part, e, at, [&](f16 v, int) { return add(add(v, less), log_of_sum); });
        } else {
            const f16 share = all(1 / sum);
            each_group(exponentials, part, e, at, [&](f16 v, int) { return mul(v, share); });
        }
    }
}

}  // namespace
}  // namespace bnew
