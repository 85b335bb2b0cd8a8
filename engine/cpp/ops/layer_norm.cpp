// Normalisation of each pixel over its channels.

#include "families.h"

namespace bnew {
namespace {

struct Normalised : Prepared {
    LayerNorm norm;
};

void prepare(Planner& planner, Stage& stage, const Node& node, Norm kind) {
    constexpr double kMacsPerNumber = 2;        // for the two sums
    constexpr double kNanosecondsOfSums = 0.1;  // per number
    planner.work(stage.shape, kMacsPerNumber, stage.name);
    auto made = std::make_unique<Normalised>();
    made->norm = {kind, stage.shape.width, stage.shape.channels,
                  static_cast<const NormArguments&>(*node.arguments).eps};
    stage.nanoseconds += kNanosecondsOfSums;
    stage.prepared = std::move(made);
}

}  // namespace

Shape read_layer_norm(GraphReader& reader, Fields& fields, Node& node) {
    const auto arguments = std::make_shared<NormArguments>();
    arguments->eps = read_eps(fields);
    node.arguments = arguments;
    return reader.input(node);
}

void prepare_layer_norm(Planner& planner, Stage& stage, Node& node) {
    prepare(planner, stage, node, Norm::layer);
}

void prepare_rms_norm(Planner& planner, Stage& stage, Node& node) {
    prepare(planner, stage, node, Norm::rms);
}

void prepare_l2_norm(Planner& planner, Stage& stage, Node& node) { prepare(planner, stage, node, Norm::l2); }

void run_layer_norm(const Call& call) {
    call.kernels.layer_norm(static_cast<const Normalised&>(*call.stage.prepared).norm, call.real(),
                            call.epilogue, call.part);
}

}  // namespace bnew
