// Binary convolution for instruction sets without a population count of 64-bit lanes: each 8-bit lane is an
// output channel. In addition to f16, the including file defines
//
//     kTilePixels            pixels of a tile
//     class Counter<P>       counts for kBlock output channels of P pixels in 8-bit lanes:
//         Counter()                        sets all counts to zero
//         step(in, weights)                adds the differing bits of eight input channels:
//                                          in[p] points to the pixel's byte, weights to kStepBytes
//         flush(uint16_t (&)[P][kBlock])   adds the counts to 16-bit counts and sets them to zero
//
// Weights lie as [block of kBlock channels][byte of the window][kStepBytes], made by
//     void pack_step(const uint8_t* bytes, uint8_t* to): the byte of each of kBlock channels → kStepBytes.
//
// A step adds at most 8 to a lane, so lanes are flushed after 31 steps. Windows of more than 65,535 bits
// could overflow the 16-bit counts: the scalar kernel computes them.

#pragma once

#include <algorithm>
#include <vector>

#include "shared.h"

namespace bnew {
namespace {

constexpr int kSteps = 31;
constexpr int64_t kMostBits = 65535;

bool fits(const BinaryConv& conv) { return window_words(conv) * 64 <= kMostBits; }

size_t binary_bytes(const BinaryConv& conv) {
    if (!fits(conv)) return scalar_kernels.binary_bytes(conv);
    return round_up(conv.channels_out, kBlock) / kBlock * window_words(conv) * 8 * kStepBytes;
}

void pack_binary(const BinaryConv& conv, const uint64_t* windows, void* out) {
    if (!fits(conv)) return scalar_kernels.pack_binary(conv, windows, out);
    const int64_t bytes = window_words(conv) * 8;
    const auto* from = reinterpret_cast<const uint8_t*>(windows);
    auto* to = static_cast<uint8_t*>(out);
    for (int block = 0; block < conv.channels_out; block += kBlock) {
        for (int64_t k = 0; k < bytes; ++k, to += kStepBytes) {
            uint8_t lanes[kBlock] = {};
            for (int i = 0; i < kBlock && block + i < conv.channels_out; ++i)
                lanes[i] = from[(block + i) * bytes + k];
            pack_step(lanes, to);
        }
    }
}

template <int P>
void count_window(const BinaryConv& conv, const BitsView& in, const uint8_t* const (&window)[P],
                  const uint8_t* weights, uint16_t (&count)[P][kBlock]) {
    const Window& w = conv.window;
    // A run is contiguous: a gathered window, or a row of its taps, or a single tap.
    const bool gathered = conv.unit % 8 != 0, side_by_side = w.dilation_x == 1;
    const int rows = gathered ? 1 : w.kernel_y, columns = gathered || side_by_side ? 1 : w.kernel_x;
    const int64_t run = gathered ? window_words(conv) * 8 : side_by_side ? w.kernel_x * conv.unit : conv.unit;
    Counter<P> counter;
    int steps = 0;
    for (int y = 0; y < rows; ++y) {
        for (int x = 0; x < columns; ++x) {
            const uint8_t* at[P];
            for (int p = 0; p < P; ++p)
                at[p] = window[p] + y * w.dilation_y * in.row + x * w.dilation_x * in.pixel;
            for (int64_t done = 0; done < run;) {
                const int64_t until = std::min(run, done + kSteps - steps);
                steps += static_cast<int>(until - done);
                for (; done < until; ++done, weights += kStepBytes) {
                    counter.step(at, weights);
                    for (int p = 0; p < P; ++p) ++at[p];
                }
                if (steps == kSteps) {
                    counter.flush(count);
                    steps = 0;
                }
            }
        }
    }
    counter.flush(count);
}

void binary_conv(const BinaryConv& conv, const BitsView& in, const Epilogue& epilogue, const Part& part) {
    if (!fits(conv)) return scalar_kernels.binary_conv(conv, in, epilogue, part);
    const Epilogue e = epilogue;
    const int64_t words = window_words(conv);
    static_assert(kTilePixels <= kMostPixels);
    tiles<kTilePixels>(part.first_pixel, part.last_pixel, [&]<int P>(int64_t first) {
        const uint8_t* window[P];
        Place at[P];
        locate(conv, in, e, first, window, at);
        // A part may begin or end within a block. The block's other channels are counted but not stored.
        const int last = part.last_group * kGroup;
        for (int block = part.first_group * kGroup / kBlock * kBlock; block < last; block += kBlock) {
            alignas(64) uint16_t count[P][kBlock] = {};
            count_window<P>(
                conv, in, window,
                static_cast<const uint8_t*>(conv.weights) + block * words * 8 * kStepBytes / kBlock, count);
            for (int c = std::max(block, part.first_group * kGroup); c < std::min(last, block + kBlock);
                 c += kGroup) {
                f16 dot[P][1];
                for (int p = 0; p < P; ++p)
                    dot[p][0] = fma(widen(count[p] + c - block), all(-2), load(at[p].base + c));
                finish(dot, e, c, at);
            }
        }
    });
}

}  // namespace
}  // namespace bnew
