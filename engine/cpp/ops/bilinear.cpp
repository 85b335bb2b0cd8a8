// An image of another size. A place of the result lies between two rows and two columns of the input.

#include <algorithm>
#include <cmath>
#include <limits>

#include "families.h"
#include "sizes.h"

namespace bnew {
namespace {

struct BilinearArguments : Arguments {
    std::vector<float> scale;  // input rows per output row, input columns per output column
    bool corners = false;
};

struct Axis {
    std::vector<int32_t> lower, upper;
    std::vector<float> weight;  // of the upper one
};

struct Resized : Prepared {
    Bilinear bilinear;
    Axis rows, columns;
};

// As in PyTorch, in float32.
Axis axis_of(int size, int count, float scale, bool corners) {
    Axis axis;
    for (int i = 0; i < count; ++i) {
        const float place = static_cast<float>(i);
        const float source = corners ? place * scale : std::max((place + 0.5f) * scale - 0.5f, 0.0f);
        const float lower = std::min(std::floor(source), static_cast<float>(size - 1));
        axis.lower.push_back(static_cast<int32_t>(lower));
        axis.upper.push_back(std::min(axis.lower.back() + 1, size - 1));
        axis.weight.push_back(std::min(source - lower, 1.0f));
    }
    return axis;
}

}  // namespace

Shape read_resize_bilinear(GraphReader& reader, Fields& fields, Node& node) {
    const auto resize = std::make_shared<BilinearArguments>();
    node.arguments = resize;
    resize->corners = fields.at("corners").boolean(fields.what("corners"));
    auto [result, scale] = read_resize(reader, fields, node, resize->corners);
    resize->scale = std::move(scale);
    for (float each : resize->scale)
        expect(each >= 0 && each <= std::numeric_limits<float>::max(),
               fields.what("scale") + " must be a number from 0 on");
    return result;
}

void prepare_resize_bilinear(Planner& planner, Stage& stage, Node& node) {
    constexpr double kPlaces = 4;
    constexpr double kNanosecondsOfSums = 0.1;  // per number
    const auto& arguments = static_cast<const BilinearArguments&>(*node.arguments);
    const Shape &in = planner.shape_of(stage.inputs[0]), &out = stage.shape;
    planner.keep(12.0 * (out.height + out.width), stage.name);
    planner.work(out, kPlaces, stage.name);
    auto made = std::make_unique<Resized>();
    made->rows = axis_of(in.height, out.height, arguments.scale[0], arguments.corners);
    made->columns = axis_of(in.width, out.width, arguments.scale[1], arguments.corners);
    made->bilinear = {out.width,
                      made->rows.lower.data(),
                      made->rows.upper.data(),
                      made->rows.weight.data(),
                      made->columns.lower.data(),
                      made->columns.upper.data(),
                      made->columns.weight.data()};
    stage.nanoseconds += kNanosecondsOfSums;
    stage.prepared = std::move(made);
}

Rows bilinear_rows(const Stage& stage, int y) {
    const Axis& rows = static_cast<const Resized&>(*stage.prepared).rows;
    return {rows.lower[static_cast<size_t>(y)], rows.upper[static_cast<size_t>(y)] + 1};
}

void run_resize_bilinear(const Call& call) {
    call.kernels.bilinear(static_cast<const Resized&>(*call.stage.prepared).bilinear, call.real(),
                          call.epilogue, call.part);
}

}  // namespace bnew
