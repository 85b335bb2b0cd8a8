#include <algorithm>
#include <bit>
#include <cstring>

#include "conv.h"
#include "families.h"
#include "pad.h"
#include "pixels.h"

namespace bnew {
namespace {

constexpr double kNanosecondsPerWord = 0.03;

struct BinaryConvolution : Windowed {
    BinaryConv conv;
    Aligned<uint8_t> weights;
    Aligned<float> base;
    std::vector<int32_t> row_classes, column_classes;
};

// Taps first to last - 1 along an axis of a window.
struct Taps {
    int first, last;
    bool operator==(const Taps&) const = default;
};

// Finds the taps inside the image for each output row (or column). Rows with the same taps form a class:
// returns the taps of each class, and sets `class_of` for each row.
std::vector<Taps> classify(int outputs, int64_t size, int64_t before, int64_t kernel, int64_t stride,
                           int64_t dilation, std::vector<int32_t>& class_of) {
    // The first tap at or after place `to` of a window that begins at `from`.
    const auto tap = [&](int64_t from, int64_t to) {
        return static_cast<int>(std::clamp((to - from + dilation - 1) / dilation, int64_t{0}, kernel));
    };
    std::vector<Taps> classes;
    for (int64_t i = 0; i < outputs; ++i) {
        const int64_t from = i * stride - before;
        const Taps inside{tap(from, 0), tap(from, size)};
        // Both taps never increase with i, so rows with the same taps are neighbours.
        if (classes.empty() || classes.back() != inside) classes.push_back(inside);
        class_of.push_back(static_cast<int32_t>(classes.size()) - 1);
    }
    return classes;
}

// Let v be the taps inside the image and b the taps in the border, where the input's bits are clear. bits is
// the number of bits, count the number of bits that differ, and ones the number of set bits in the weights:
//     dot = bits(v) - 2 count(v) = bits(v) - 2 (count(v + b) - ones(b)) = base - 2 count(v + b)
//     base = bits(v) + 2 ones(b)
// With a pad value p, a tap in the border is p in each channel, and its weights add 2 ones(b) - bits(b) times
// p.
void set_base(Planner& planner, const Stage& stage, const ConvArguments& arguments, int channels_in,
              const std::vector<int32_t>& ones, BinaryConvolution& made) {
    const Shape &in = planner.shape_of(stage.inputs[0]), &out = stage.shape;
    BinaryConv& conv = made.conv;
    planner.keep(4.0 * (out.height + out.width), stage.name);
    const auto rows = classify(out.height, in.height, arguments.padding.top, arguments.kernel_y,
                               arguments.stride_y, arguments.dilation_y, made.row_classes);
    const auto columns = classify(out.width, in.width, arguments.padding.left, arguments.kernel_x,
                                  arguments.stride_x, arguments.dilation_x, made.column_classes);
    const size_t channels = static_cast<size_t>(round_up(conv.channels_out, kGroup));
    planner.keep(4.0 * static_cast<double>(rows.size()) * static_cast<double>(columns.size()) *
                     static_cast<double>(channels),
                 stage.name);
    made.base.resize(rows.size() * columns.size() * channels);
    // sums[y][x]: the ones of all taps above y and left of x, for one output channel.
    const size_t width = static_cast<size_t>(arguments.kernel_x) + 1;
    std::vector<int32_t> sums((static_cast<size_t>(arguments.kernel_y) + 1) * width);
    const auto sum = [&](int y, int x) -> int32_t& {
        return sums[static_cast<size_t>(y) * width + static_cast<size_t>(x)];
    };
    for (size_t o = 0; o < static_cast<size_t>(conv.channels_out); ++o) {
        const int32_t* of = ones.data() + o * static_cast<size_t>(conv.taps);
        for (int y = 0; y < arguments.kernel_y; ++y)
            for (int x = 0; x < arguments.kernel_x; ++x)
                sum(y + 1, x + 1) = *of++ + sum(y, x + 1) + sum(y + 1, x) - sum(y, x);
        const int32_t all = sum(arguments.kernel_y, arguments.kernel_x);
        float* at = made.base.data() + o;
        for (const Taps& r : rows) {
            for (const Taps& k : columns) {
                const int32_t bits = channels_in * (r.last - r.first) * (k.last - k.first);
                const int32_t inside =
                    sum(r.last, k.last) - sum(r.first, k.last) - sum(r.last, k.first) + sum(r.first, k.first);
                const int32_t outside = channels_in * conv.taps - bits;
                *at = static_cast<float>(bits + 2 * (all - inside) +
                                         arguments.pad_value * (2 * (all - inside) - outside));
                at += channels;
            }
        }
    }
    conv.base = made.base.data();
    conv.row_class = made.row_classes.data();
    conv.column_class = made.column_classes.data();
    conv.column_classes = static_cast<int>(columns.size());
}

// Writes the bits of an output channel's weights to `to`, in the layout of an image, and the number of set
// bits of each tap to `ones`.
void lay_window(const uint32_t* from, int channels_in, int taps, int64_t unit, uint8_t* to, int32_t* ones) {
    for (int64_t tap = 0; tap < taps; ++tap) {
        int32_t count = 0;
        if (channels_in % 32 == 0) {
            const uint32_t* begin = from + tap * channels_in / 32;
            std::memcpy(to + tap * unit, begin, static_cast<size_t>(channels_in / 8));
            for (int i = 0; i < channels_in / 32; ++i) count += std::popcount(begin[i]);
        } else {
            for (int64_t c = 0; c < channels_in; ++c) {
                const int64_t i = tap * channels_in + c;
                const uint32_t bit = from[i / 32] >> i % 32 & 1;
                to[tap * unit + c / 8] |= static_cast<uint8_t>(bit << c % 8);
                count += static_cast<int32_t>(bit);
            }
        }
        ones[tap] = count;
    }
}

void prepare_binary(Planner& planner, Stage& stage, const ConvArguments& arguments) {
    const int channels_in = planner.shape_of(stage.inputs[0]).channels;
    auto made = std::make_unique<BinaryConvolution>();
    set_rows(*made, arguments);
    BinaryConv& conv = made->conv;
    conv.window = window_of(arguments, stage.shape);
    conv.channels_out = stage.shape.channels;
    conv.taps = arguments.kernel_y * arguments.kernel_x;
    conv.unit = unit_of(channels_in);
    const Shape lanes{static_cast<int>(round_up(conv.channels_out, kGroup)), stage.shape.height,
                      stage.shape.width};
    // 64 binary multiply-accumulates count as one real one.
    planner.work(lanes, static_cast<double>(window_words(conv)), stage.name);
    planner.keep(static_cast<double>(planner.kernels().binary_bytes(conv)), stage.name);
    const double while_made =
        (8.0 * static_cast<double>(window_words(conv)) + 4.0 * conv.taps) * conv.channels_out;
    planner.keep(while_made, stage.name);

    const int64_t words = window_words(conv);
    const int64_t row = static_cast<int64_t>(arguments.words.size()) / conv.channels_out;
    std::vector<uint64_t> windows(static_cast<size_t>(words * conv.channels_out));
    std::vector<int32_t> ones(static_cast<size_t>(conv.taps) * static_cast<size_t>(conv.channels_out));
    for (int64_t o = 0; o < conv.channels_out; ++o)
        lay_window(arguments.words.data() + o * row, channels_in, conv.taps, conv.unit,
                   reinterpret_cast<uint8_t*>(windows.data() + o * words), ones.data() + o * conv.taps);
    made->weights.resize(planner.kernels().binary_bytes(conv) + kSlack);
    planner.kernels().pack_binary(conv, windows.data(), made->weights.data());
    conv.weights = made->weights.data();
    set_base(planner, stage, arguments, channels_in, ones, *made);
    planner.give_back(while_made);

    stage.border = arguments.padding;
    stage.scratch_bytes = static_cast<size_t>(scratch_bytes(conv));
    stage.nanoseconds += kNanosecondsPerWord * static_cast<double>(words);
    stage.prepared = std::move(made);
}

}  // namespace

Shape read_binary_conv(GraphReader& reader, Fields& fields, Node& node) {
    const auto conv = std::make_shared<ConvArguments>();
    node.arguments = conv;
    const Tensor* weight = nullptr;
    const Shape result = read_conv(reader, fields, node, *conv, weight);
    const int64_t bits =
        int64_t{conv->kernel_y} * conv->kernel_x * (reader.input(node).channels / conv->groups);
    const int64_t words = (bits + 31) / 32;
    if (fields.optional("pad_value")) {
        conv->pad_value = fields.integer("pad_value", -1, 1);
        expect(conv->pad_value != 0, fields.what("pad_value") + " must be 1 or -1");
    }
    // The base is at most three times that, and twice without a pad value. So is the count: both are exact in
    // a float.
    expect(bits <= (conv->pad_value == 0 ? 1 << 23 : 1 << 22),
           fields.where() + " has too large a kernel for exact counts");
    expect(weight->shape == std::vector<int64_t>{result.channels, words},
           fields.what("weight") + " has another shape than the node says");
    conv->words = to_words(*weight, fields.what("weight"));
    if (bits % 32 != 0)
        for (int64_t o = 0; o < result.channels; ++o)
            expect(conv->words[static_cast<size_t>((o + 1) * words - 1)] >> bits % 32 == 0,
                   fields.what("weight") + " has bits set behind its end");
    return result;
}

void prepare_binary_conv(Planner& planner, Stage& stage, Node& node) {
    const auto& conv = static_cast<const ConvArguments&>(*node.arguments);
    if (conv.groups == 1) return prepare_binary(planner, stage, conv);
    // With groups, a word of the input belongs to several groups. So the sums are computed with real ±1,
    // which is exact too.
    stage.op = find_operator("conv");
    stage.inputs = {planner.to_real(stage.inputs[0], stage.name)};
    if (conv.pad_value == 0 || conv.padding.empty()) return prepare_real(planner, stage, conv);
    Stage pad;
    pad.op = find_operator("pad");
    pad.name = stage.name;
    pad.inputs = stage.inputs;
    pad.shape = planner.shape_of(stage.inputs[0]);
    pad.shape.height += conv.padding.top + conv.padding.bottom;
    pad.shape.width += conv.padding.left + conv.padding.right;
    set_pad(planner, pad, conv.padding, PadMode::constant, static_cast<float>(conv.pad_value));
    stage.inputs = {planner.insert(std::move(pad))};
    ConvArguments inside = conv;
    inside.padding = {};
    prepare_real(planner, stage, inside);
}

void run_binary_conv(const Call& call) {
    BinaryConv conv = static_cast<const BinaryConvolution&>(*call.stage.prepared).conv;
    conv.scratch = call.scratch;
    call.kernels.binary_conv(conv, with_border(call.bits(), call.stage.border), call.epilogue, call.part);
}

void run_to_real(const Call& call) {
    const BitsView in = call.bits();
    each_pixel(call.stage.shape, [&](int y, int x) {
        const uint8_t* from = pixel(in, y, x);
        float* to = pixel(call.epilogue.real, y, x);
        for (int c = 0; c < call.stage.shape.channels; ++c) to[c] = from[c / 8] >> c % 8 & 1 ? 1.0f : -1.0f;
    });
}

}  // namespace bnew
