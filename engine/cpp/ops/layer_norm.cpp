#include <limits>

#include "families.h"

namespace bnew {
namespace {

struct LayerNormArguments : Arguments {
    float eps = 0;
};

struct Normalised : Prepared {
    LayerNorm norm;
};

}  // namespace

Shape read_layer_norm(GraphReader& reader, Fields& fields, Node& node) {
    const auto arguments = std::make_shared<LayerNormArguments>();
    arguments->eps = static_cast<float>(fields.at("eps").number(fields.what("eps")));
    expect(arguments->eps > 0 && arguments->eps <= std::numeric_limits<float>::max(),
           fields.what("eps") + " must be above 0");
    node.arguments = arguments;
    return reader.input(node);
}

void prepare_layer_norm(Planner& planner, Stage& stage, Node& node) {
    constexpr double kMacsPerNumber = 2;        // for the two sums
    constexpr double kNanosecondsOfSums = 0.1;  // per number
    planner.work(stage.shape, kMacsPerNumber, stage.name);
    auto made = std::make_unique<Normalised>();
    made->norm = {stage.shape.width, stage.shape.channels,
                  static_cast<const LayerNormArguments&>(*node.arguments).eps};
    stage.nanoseconds += kNanosecondsOfSums;
    stage.prepared = std::move(made);
}

void run_layer_norm(const Call& call) {
    call.kernels.layer_norm(static_cast<const Normalised&>(*call.stage.prepared).norm, call.real(),
                            call.epilogue, call.part);
}

}  // namespace bnew
