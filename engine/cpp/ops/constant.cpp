// The same numbers for every image.

#include "families.h"

namespace bnew {
namespace {

struct ConstantArguments : Arguments {
    std::vector<float> numbers;  // one, one per channel, or (C, H, W)
};

struct Constant : Prepared {
    Aligned<float> numbers;
    RealView view;
};

}  // namespace

Shape read_constant(GraphReader& reader, Fields& fields, Node& node) {
    const auto made = std::make_shared<ConstantArguments>();
    node.arguments = made;
    const auto shape = fields.integers("shape", 3, 1);
    const Tensor& weight = reader.file().tensor(fields.string("weight"));
    const bool whole = weight.shape == std::vector<int64_t>(shape.begin(), shape.end());
    const bool few = weight.shape.size() == 1 && (weight.count == 1 || weight.count == shape[0]);
    expect(whole || few,
           fields.what("weight") + " must have the numbers of 'shape', or one for each channel, or 1");
    reader.keep(weight.count, fields.where());
    made->numbers = to_floats(weight, fields.what("weight"));
    return {shape[0], shape[1], shape[2]};
}

void prepare_constant(Planner& planner, Stage& stage, Node& node) {
    auto& numbers = static_cast<ConstantArguments&>(*node.arguments).numbers;
    const Shape& shape = stage.shape;
    const int64_t count = static_cast<int64_t>(numbers.size()), filled = round_up(shape.channels, kGroup);
    const int64_t places = int64_t{shape.height} * shape.width;
    const bool whole = count > shape.channels;
    planner.keep(4.0 * static_cast<double>(filled) * (whole ? static_cast<double>(places) : 1), stage.name);
    auto made = std::make_unique<Constant>();
    made->numbers.resize(static_cast<size_t>(filled * (whole ? places : 1)));
    for (int64_t c = 0; c < shape.channels; ++c) {
        float* to = made->numbers.data() + c;
        if (whole) {
            const float* from = numbers.data() + c * places;
            for (int64_t i = 0; i < places; ++i) to[i * filled] = from[i];
        } else {
            *to = numbers[static_cast<size_t>(count == 1 ? 0 : c)];
        }
    }
    numbers = {};  // the stage has its own copy
    made->view.data = made->numbers.data();
    if (whole) made->view.pixel = filled, made->view.row = shape.width * filled;
    stage.prepared = std::move(made);
}

void run_constant(const Call& call) {
    call.kernels.pointwise(call.stage.shape.width, static_cast<const Constant&>(*call.stage.prepared).view,
                           call.epilogue, call.part);
}

}  // namespace bnew
