#include "families.h"

namespace bnew {
namespace {

struct Normalised : Prepared {
    Softmax softmax;
};

void prepare(Planner& planner, Stage& stage, bool log) {
    constexpr double kMacsPerNumber = 16;            // for an exponential
    constexpr double kNanosecondsOfExponential = 1;  // per number
    planner.work(stage.shape, kMacsPerNumber, stage.name);
    auto made = std::make_unique<Normalised>();
    made->softmax = {stage.shape.width, stage.shape.channels, log};
    stage.scratch_bytes = static_cast<size_t>(scratch_bytes(made->softmax));
    stage.nanoseconds += kNanosecondsOfExponential;
    stage.prepared = std::move(made);
}

}  // namespace

void prepare_softmax(Planner& planner, Stage& stage, Node&) { prepare(planner, stage, false); }

void prepare_log_softmax(Planner& planner, Stage& stage, Node&) { prepare(planner, stage, true); }

void run_softmax(const Call& call) {
    Softmax softmax = static_cast<const Normalised&>(*call.stage.prepared).softmax;
    softmax.scratch = call.scratch;
    call.kernels.softmax(softmax, call.real(), call.epilogue, call.part);
}

}  // namespace bnew
