// The kernels of an instruction set: one table of functions, in one file per instruction set.
//
// Real values lie in memory as NHWC, with the channels of a pixel filled up to whole groups of 16. Bits lie
// as NHWC, with the channels of a pixel filled up to a unit of 2 or 4 bytes or a multiple of 8 bytes. A
// buffer that a padded operator reads has a border of zeros around the image (of -1 for bits). So no kernel
// has to test whether a tap lies inside. `base` subtracts the border's part of a binary convolution.
//
// The scalar functions are the specification. All others return the same integers, and the same floats to the
// last bit: every product that is added to something is a fused multiply-add, in the same order everywhere.

#pragma once

#include <cstddef>
#include <cstdint>

namespace bnew {

constexpr int kGroup = 16;  // channels that an epilogue processes together

// Bits of floats, for exponent() and mantissa() of an instruction set.
constexpr int32_t kRootHalf = 0x3f3504f3;  // of √½
constexpr int32_t kExponentBits = static_cast<int32_t>(0xff800000);

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Pixel (y, x) of a real value is at data + y * row + x * pixel, in floats.
struct RealView {
    float* data = nullptr;
    int64_t row = 0, pixel = 0;
};

// Pixel (y, x) of bits is at data + y * row + x * pixel, in bytes.
struct BitsView {
    uint8_t* data = nullptr;
    int64_t row = 0, pixel = 0;
};

enum class Join { none, add, multiply };

constexpr int kNoActivation = -1;

// The steps that are applied to each result v of an operator before it is stored. Each array has a number per
// channel, filled up to whole groups of 16. If its pointer is null, its line is left out.
//
//     v = fma(v, scale, shift)
//     v = v + other   or   v * other
//     v = v >= 0 ? v : v * slope   or   activation(v)
//     v = fma(v, scale_out, shift_out)            scale_out null: v + shift_out
//     bit = v >= threshold                        sign_scale not null: fma(v, sign_scale, sign_shift) >= 0
struct Epilogue {
    const float* scale = nullptr;
    const float* shift = nullptr;
    Join join = Join::none;
    RealView other;
    int other_channels = 0;          // channel c is joined with c mod other_channels, a multiple of 16
    const float* slope = nullptr;    // of prelu
    int activation = kNoActivation;  // else a row of the table in kernels/activations.h
    float low = 0, high = 0;         // of clamp
    const float* scale_out = nullptr;
    const float* shift_out = nullptr;
    const float* sign_scale = nullptr;
    const float* sign_shift = nullptr;  // with sign_scale; else the threshold
    RealView real;                      // data null: not stored
    BitsView bits;                      // data null: no bits
};

// A window that slides over an image.
struct Window {
    int height = 0, width = 0;  // of the result
    int kernel_y = 1, kernel_x = 1, stride_y = 1, stride_x = 1, dilation_y = 1, dilation_x = 1;
};

// The part of an operator's result that one call computes: a range of output pixels, counted row by row, and
// a range of groups of 16 output channels.
struct Part {
    int64_t first_pixel, last_pixel;
    int first_group, last_group;
};

// Binary convolution: dot = base - 2 * (number of set bits in input xor weights).
struct BinaryConv {
    Window window;
    int channels_out = 0;
    int taps = 0;
    int64_t unit = 0;               // bytes of a tap's channels: 2, 4 or a multiple of 8
    const void* weights = nullptr;  // in the layout that this kernel's pack_binary writes
    // base[(row class * column classes + column class) * channels filled up + c]: the number of bits of all
    // taps inside the image, plus the correction for the border's -1 (see set_base() in ops/binary_conv.cpp).
    const float* base = nullptr;
    const int32_t* row_class = nullptr;     // of each output row
    const int32_t* column_class = nullptr;  // of each output column
    int column_classes = 1;
    uint8_t* scratch = nullptr;  // scratch_bytes() for this thread
};

// Real convolution; or, with `depthwise`, one input channel for each output channel.
struct RealConv {
    Window window;
    int channels_in = 0, channels_out = 0;  // of one group
    int groups = 1;
    bool depthwise = false;
    // [group][output channels / 16][tap][input channel][16]; depthwise: [channels / 16][tap][16]
    const float* weights = nullptr;
};

enum class Pooling { max, average };

// Windows are cut at the image's edge: output row i covers rows row_first[i] to row_last[i] - 1 in steps of
// the dilation. Columns work in the same way.
struct Pool {
    Pooling kind = Pooling::max;
    int height = 0, width = 0, channels = 0;  // of the result
    int dilation_y = 1, dilation_x = 1;
    const int32_t* row_first = nullptr;
    const int32_t* row_last = nullptr;
    const int32_t* column_first = nullptr;
    const int32_t* column_last = nullptr;
    const float* row_places = nullptr;     // the divisor of a mean is the window's row_places
    const float* column_places = nullptr;  // times its column_places
};

enum class Norm { layer, rms, l2 };

// Each number v of a pixel becomes, with mean and variance over the pixel's channels,
//
//     layer: (v - mean) / √(variance + eps)      rms: v / √(mean of v² + eps)      l2: v / max(√(sum of v²),
//     eps)
//
// Sums have sixteen lanes. These are added at the end in pairs: the upper half to the lower.
struct LayerNorm {
    Norm kind = Norm::layer;
    int width = 0, channels = 0;  // of the image
    float eps = 0;
};

// Each number v becomes (v - mean) / √(variance + eps), with mean and variance over all pixels and a group of
// the channels. The sums of a row and a channel are floats, and those of the rows doubles.
struct GroupNorm {
    int height = 0, width = 0, channels = 0, groups = 1;
    float eps = 0;
    uint8_t* scratch = nullptr;  // scratch_bytes() for this thread
};

// Each number v of a pixel becomes exp(v - most) / sum, or v - most - log(sum): `most` is the largest number
// of the pixel's channels, and the sum is that of exp(v - most).
struct Softmax {
    int width = 0, channels = 0;  // of the image
    bool log = false;
    uint8_t* scratch = nullptr;  // scratch_bytes() for this thread
};

// Each place of the result lies between two rows and two columns of the input. The weights are those of the
// second ones.
struct Bilinear {
    int width = 0;  // of the result
    const int32_t* row_lower = nullptr;
    const int32_t* row_upper = nullptr;
    const float* row_weight = nullptr;
    const int32_t* column_lower = nullptr;
    const int32_t* column_upper = nullptr;
    const float* column_weight = nullptr;
};

struct Kernels {
    const char* name;
    bool (*supported)();
    // The size in bytes of a binary layer's weights in this kernel's layout, and the function that packs
    // them. `windows` has window_words() words per output channel: a window's bits as in an image, tap by
    // tap.
    size_t (*binary_bytes)(const BinaryConv&);
    void (*pack_binary)(const BinaryConv&, const uint64_t* windows, void* out);
    void (*binary_conv)(const BinaryConv&, const BitsView& in, const Epilogue&, const Part&);
    void (*real_conv)(const RealConv&, const RealView& in, const Epilogue&, const Part&);
    void (*pool)(const Pool&, const RealView& in, const Epilogue&, const Part&);
    void (*layer_norm)(const LayerNorm&, const RealView& in, const Epilogue&, const Part&);
    void (*group_norm)(const GroupNorm&, const RealView& in, const Epilogue&, const Part&);
    void (*softmax)(const Softmax&, const RealView& in, const Epilogue&, const Part&);
    void (*bilinear)(const Bilinear&, const RealView& in, const Epilogue&, const Part&);
    // The epilogue alone. `width` is the image's width.
    void (*pointwise)(int width, const RealView& in, const Epilogue&, const Part&);
    // The name of an activation, the same for every instruction set; null after the last one.
    const char* (*activation_name)(int);
    // Runs `rounds` rounds of xor, population count and add in registers. Returns the number of binary
    // multiply-accumulates.
    int64_t (*peak)(int64_t rounds);
};

extern const Kernels scalar_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#elif defined(__aarch64__)
extern const Kernels neon_kernels;
#endif

// The number of 64-bit words that the taps of a window fill if they lie close together.
inline int64_t window_words(const BinaryConv& conv) { return round_up(conv.taps * conv.unit, 8) / 8; }

constexpr int kMostPixels = 12;  // of a tile
constexpr int kSlack = 64;       // bytes after every buffer, which a kernel may read but does not use

// Scratch memory for the gathered windows of a tile, and for an offset per word of a window.
inline int64_t scratch_bytes(const BinaryConv& conv) {
    return (kMostPixels + 1) * window_words(conv) * 8 + kSlack;
}

// For each channel, two sums in double precision; then a scale and a shift.
inline int64_t scratch_bytes(const GroupNorm& norm) { return round_up(norm.channels, kGroup) * 24; }

// The exponentials of a pixel.
inline int64_t scratch_bytes(const Softmax& softmax) { return round_up(softmax.channels, kGroup) * 4; }

}  // namespace bnew
