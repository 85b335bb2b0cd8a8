// Functions for checks and benchmarks of the engine. Running networks does not need them.

#pragma once

#include "bnew_engine.h"

namespace bnew {

struct Checks {
    // The integers that the binary convolution `name` computes from an input of -1 and +1, NCHW.
    static NamedValue convolve(const Model& model, const std::string& name, const float* signs,
                               const Dimensions& size);

    // Binary multiply-accumulates per second of the instruction set in registers, without memory: the limit
    // of its kernels. Takes about `seconds`.
    static double register_peak(const std::string& instruction_set, double seconds);
};

}  // namespace bnew
