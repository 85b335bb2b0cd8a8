// What real and binary convolutions have in common.

#pragma once

#include "window.h"

namespace bnew {

struct ConvArguments : WindowArguments {
    int groups = 1;
    std::vector<float> weights;  // of a real convolution, as in the file
    // Of a binary convolution: for each output channel, the bits of a window, tap by tap.
    std::vector<uint32_t> words;
    int pad_value = 0;  // of the bits in the padding: 1, -1, or 0 if they add nothing
};

// Reads all fields except for the weights, finds the tensor `weight`, and returns the result's shape.
Shape read_conv(GraphReader& reader, Fields& fields, Node& node, ConvArguments& conv, const Tensor*& weight);

Window window_of(const ConvArguments& conv, const Shape& result);

// Prepares a real convolution. Binary weights become real ±1.
void prepare_real(Planner& planner, Stage& stage, const ConvArguments& arguments);

}  // namespace bnew
