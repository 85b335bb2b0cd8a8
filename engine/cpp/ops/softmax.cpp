#include <algorithm>
#include <cmath>

#include "families.h"
#include "pixels.h"

namespace bnew {

void run_softmax(const Call& call) {
    const Shape& shape = call.stage.shape;
    const RealView in = call.real();
    each_pixel(shape, [&](int y, int x) {
        const float* from = pixel(in, y, x);
        float* to = pixel(call.epilogue.real, y, x);
        const float largest = *std::max_element(from, from + shape.channels);
        float sum = 0;
        for (int c = 0; c < shape.channels; ++c) sum += to[c] = std::exp(from[c] - largest);
        for (int c = 0; c < shape.channels; ++c) to[c] /= sum;
    });
}

}  // namespace bnew
