// The product of two values, row by row of the image. In a row, the columns of a value are the rows of a
// matrix, and its channels are the matrix' columns. The second matrix becomes the weights of a 1×1
// convolution of the first value.

#include <algorithm>
#include <cstring>

#include "families.h"
#include "pixels.h"

namespace bnew {
namespace {

constexpr double kNanosecondsPerProduct = 0.015;
constexpr double kMacsPerRow = 512;  // for a row of few numbers

struct MatmulArguments : Arguments {
    bool transposed = false;
};

struct Product : Prepared {
    RealConv conv;
    bool transposed = false;
};

// Lays row y of the second value as the weights of groups first to last - 1 of output channels:
// [group][input channel][16].
void lay(const Product& product, const RealView& value, int y, int first, int last, float* weights) {
    const int64_t depth = product.conv.channels_in;
    if (!product.transposed) {  // weight (o, k) is channel o of column k
        for (int g = first; g < last; ++g)
            for (int64_t k = 0; k < depth; ++k)
                std::memcpy(weights + (g * depth + k) * kGroup,
                            pixel(value, y, static_cast<int>(k)) + g * kGroup, kGroup * sizeof(float));
        return;
    }
    for (int g = first; g < last; ++g) {  // weight (o, k) is channel k of column o
        float* const to = weights + g * depth * kGroup;
        const int count = std::min(kGroup, product.conv.channels_out - g * kGroup);
        const float* from[kGroup];
        for (int o = 0; o < kGroup; ++o) from[o] = pixel(value, y, g * kGroup + std::min(o, count - 1));
        for (int64_t k = 0; k < depth; ++k)
            for (int o = 0; o < kGroup; ++o) to[k * kGroup + o] = from[o][k];
    }
}

}  // namespace

Shape read_matmul(GraphReader& reader, Fields& fields, Node& node) {
    const auto made = std::make_shared<MatmulArguments>();
    node.arguments = made;
    expect(node.inputs.size() == 2, fields.what("inputs") + " must name two values");
    made->transposed = fields.at("transposed").boolean(fields.what("transposed"));
    const Shape &a = reader.value(node.inputs[0]).shape, &b = reader.value(node.inputs[1]).shape;
    expect(a.height == b.height && a.channels == (made->transposed ? b.channels : b.width),
           fields.where() + " multiplies " + to_string(a) + " by " + to_string(b) + ", which does not fit");
    return {made->transposed ? b.width : b.channels, a.height, a.width};
}

void prepare_matmul(Planner& planner, Stage& stage, Node& node) {
    auto made = std::make_unique<Product>();
    made->transposed = static_cast<const MatmulArguments&>(*node.arguments).transposed;
    RealConv& conv = made->conv;
    conv.window.height = stage.shape.height;
    conv.window.width = stage.shape.width;
    conv.channels_in = planner.shape_of(stage.inputs[0]).channels;
    conv.channels_out = stage.shape.channels;
    const int64_t lanes = round_up(conv.channels_out, kGroup);
    // A product takes one, and a weight that is laid takes one.
    planner.work({static_cast<int>(lanes), stage.shape.height, stage.shape.width}, conv.channels_in,
                 stage.name);
    planner.work({static_cast<int>(lanes), stage.shape.height, 1}, conv.channels_in, stage.name);
    planner.work({1, stage.shape.height, 1}, kMacsPerRow, stage.name);
    stage.scratch_bytes = static_cast<size_t>(lanes * conv.channels_in) * sizeof(float) + kSlack;
    stage.nanoseconds += kNanosecondsPerProduct * conv.channels_in;
    stage.prepared = std::move(made);
}

void run_matmul(const Call& call) {
    const auto& product = static_cast<const Product&>(*call.stage.prepared);
    const Part& part = call.part;
    const RealView first = call.real(0), second = call.real(1);
    auto* const weights = reinterpret_cast<float*>(call.scratch);
    RealConv conv = product.conv;
    conv.weights = weights;
    const int64_t width = conv.window.width;
    for (int64_t y = part.first_pixel / width; y * width < part.last_pixel; ++y) {
        lay(product, second, static_cast<int>(y), part.first_group, part.last_group, weights);
        const Part row{std::max(part.first_pixel, y * width), std::min(part.last_pixel, (y + 1) * width),
                       part.first_group, part.last_group};
        call.kernels.real_conv(conv, first, call.epilogue, row);
    }
}

}  // namespace bnew
