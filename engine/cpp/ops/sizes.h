// Sizes in a node that may follow from those of its input, so that a file runs for images of any size.
// All functions throw Error.

#pragma once

#include <vector>

#include "../fields.h"
#include "../graph_reader.h"

namespace bnew {

// A whole number, or [factor, i, j]: factor · Hⁱ · Wʲ of a value H × W, with i and j 0 or 1.
int64_t read_whole(const Json& json, const Shape& place, const std::string& what, int64_t least,
                   int64_t most);

// A pool's size along an axis. `up` rounds it up, but its last window begins in the image or before it.
int64_t windows_along(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t stride,
                      int64_t dilation, bool up);

struct Resize {
    Shape shape;
    std::vector<float> scale;  // input rows per output row, input columns per output column
};

// The fields `size` and `scale` of a node that resizes its input.
Resize read_resize(GraphReader& reader, Fields& fields, const Node& node, bool corners);

}  // namespace bnew
