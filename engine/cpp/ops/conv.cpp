#include "conv.h"

#include <algorithm>

#include "families.h"

namespace bnew {
namespace {

constexpr double kNanosecondsPerProduct = 0.015;

struct RealConvolution : Windowed {
    RealConv conv;
    Aligned<float> weights;
};

int size_of(int64_t size, int64_t padding, int64_t kernel, int64_t stride, int64_t dilation,
            const std::string& where) {
    const int64_t room = size + padding - dilation * (kernel - 1) - 1;
    expect(room >= 0, where + " has a kernel larger than its padded input");
    expect(room / stride + 1 <= kLargestSize, where + " gives too large a result");
    return static_cast<int>(room / stride + 1);
}

}  // namespace

Shape read_conv(GraphReader& reader, Fields& fields, Node& node, ConvArguments& conv, const Tensor*& weight) {
    read_window(fields, conv, true);
    const std::string& where = fields.where();
    const Shape& in = reader.input(node);
    const auto channels = fields.integers("channels", 2, 1);
    expect(channels[0] == in.channels, where + " takes " + std::to_string(channels[0]) +
                                           " channels, but its input has " + std::to_string(in.channels));
    conv.groups = fields.integer("groups", 1, kLargestSize);
    expect(channels[0] % conv.groups == 0 && channels[1] % conv.groups == 0,
           where + " has channels that its groups do not divide");
    const Border& padding = conv.padding;
    const Shape result{channels[1],
                       size_of(in.height, padding.top + padding.bottom, conv.kernel_y, conv.stride_y,
                               conv.dilation_y, where),
                       size_of(in.width, padding.left + padding.right, conv.kernel_x, conv.stride_x,
                               conv.dilation_x, where)};
    const int64_t per_group = channels[0] / conv.groups;
    const int64_t taps = int64_t{conv.kernel_y} * conv.kernel_x;
    expect(taps <= kMostNumbers / per_group && taps * per_group <= kMostNumbers / channels[1],
           where + " has too large a kernel");
    weight = &reader.file().tensor(fields.string("weight"));
    reader.keep(weight->count, where);
    return result;
}

Window window_of(const ConvArguments& conv, const Shape& result) {
    return {result.height, result.width,  conv.kernel_y,   conv.kernel_x,
            conv.stride_y, conv.stride_x, conv.dilation_y, conv.dilation_x};
}

Shape read_conv(GraphReader& reader, Fields& fields, Node& node) {
    const auto conv = std::make_shared<ConvArguments>();
    node.arguments = conv;
    const Tensor* weight = nullptr;
    const Shape result = read_conv(reader, fields, node, *conv, weight);
    const std::vector<int64_t> wanted{result.channels, reader.input(node).channels / conv->groups,
                                      conv->kernel_y, conv->kernel_x};
    expect(weight->shape == wanted, fields.what("weight") + " has another shape than the node says");
    conv->weights = to_floats(*weight, fields.what("weight"));
    return result;
}

void prepare_conv(Planner& planner, Stage& stage, Node& node) {
    auto& conv = static_cast<ConvArguments&>(*node.arguments);
    prepare_real(planner, stage, conv);
    conv.weights = {};  // the stage has its own copy in the kernels' layout
}

void prepare_real(Planner& planner, Stage& stage, const ConvArguments& arguments) {
    const Shape& in = planner.shape_of(stage.inputs[0]);
    auto made = std::make_unique<RealConvolution>();
    set_rows(*made, arguments);
    RealConv& conv = made->conv;
    conv.window = window_of(arguments, stage.shape);
    const int64_t taps = int64_t{arguments.kernel_y} * arguments.kernel_x;
    const int64_t own_in = in.channels / arguments.groups, own_out = stage.shape.channels / arguments.groups;
    conv.depthwise = arguments.groups > 1 && own_in == 1 && own_out == 1;
    // Groups are merged until their outputs fill whole vectors. Weights between different groups are 0.
    int64_t together = 1;
    if (!conv.depthwise && arguments.groups > 1) {
        while (arguments.groups % together != 0 || own_out * together % kGroup != 0)
            if (++together >= arguments.groups) break;
    }
    conv.groups = conv.depthwise ? arguments.groups : static_cast<int>(arguments.groups / together);
    conv.channels_in = static_cast<int>(own_in * together);
    conv.channels_out = static_cast<int>(own_out * together);
    const int64_t lanes = conv.depthwise ? round_up(arguments.groups, kGroup)
                                         : round_up(conv.channels_out, kGroup) * conv.groups;
    planner.work({static_cast<int>(std::min<int64_t>(lanes, 1 << 30)), stage.shape.height, stage.shape.width},
                 1.0 * conv.channels_in * static_cast<double>(taps), stage.name);
    planner.keep(4.0 * static_cast<double>(lanes) * conv.channels_in * static_cast<double>(taps), stage.name);
    const int64_t row = static_cast<int64_t>(arguments.words.size()) / stage.shape.channels;
    const auto weight = [&](int64_t o, int64_t c, int64_t tap) {
        if (row == 0) return arguments.weights[static_cast<size_t>((o * own_in + c) * taps + tap)];
        const int64_t i = tap * own_in + c;
        return arguments.words[static_cast<size_t>(o * row + i / 32)] >> i % 32 & 1 ? 1.0f : -1.0f;
    };
    made->weights.resize(static_cast<size_t>(lanes * conv.channels_in * taps));
    for (int64_t o = 0; o < stage.shape.channels; ++o) {
        const int64_t group = conv.depthwise ? 0 : o / conv.channels_out;
        const int64_t within = conv.depthwise ? o : o % conv.channels_out;
        const int64_t vectors = round_up(conv.channels_out, kGroup) / kGroup;
        const int64_t vector = group * vectors + within / kGroup;
        const int64_t first = conv.depthwise ? 0 : o / own_out % together * own_in;
        for (int64_t c = 0; c < own_in; ++c)
            for (int64_t tap = 0; tap < taps; ++tap)
                made->weights[static_cast<size_t>(
                    ((vector * taps + tap) * conv.channels_in + first + c) * kGroup + within % kGroup)] =
                    weight(o, c, tap);
    }
    conv.weights = made->weights.data();
    stage.border = arguments.padding;
    stage.reads_close = !conv.depthwise;
    stage.nanoseconds +=
        kNanosecondsPerProduct * conv.channels_in * conv.window.kernel_y * conv.window.kernel_x;
    stage.prepared = std::move(made);
}

void run_conv(const Call& call) {
    const RealConv& conv = static_cast<const RealConvolution&>(*call.stage.prepared).conv;
    call.kernels.real_conv(conv, with_border(call.real(), call.stage.border), call.epilogue, call.part);
}

}  // namespace bnew
