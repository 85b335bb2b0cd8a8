// The number of the largest channel of each place.

#include <cmath>

#include "families.h"
#include "pixels.h"

namespace bnew {

Shape read_argmax(GraphReader& reader, Fields&, Node& node) {
    const Shape& in = reader.input(node);
    return {1, in.height, in.width};
}

void prepare_argmax(Planner& planner, Stage& stage, Node&) {
    planner.work(stage.shape, planner.shape_of(stage.inputs[0]).channels, stage.name);
}

void run_argmax(const Call& call) {
    const RealView in = call.real();
    const RealView& out = call.epilogue.real;
    const int channels = call.shape().channels;
    each_pixel(call.stage.shape, [&](int y, int x) {
        const float* numbers = pixel(in, y, x);
        int best = 0;
        // The first of equal ones, and the first NaN.
        for (int c = 1; c < channels && !std::isnan(numbers[best]); ++c)
            if (numbers[c] > numbers[best] || std::isnan(numbers[c])) best = c;
        *pixel(out, y, x) = static_cast<float>(best);
    });
}

}  // namespace bnew
