// The buffers of values: their sizes and strides. Their offsets follow later.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "graph.h"
#include "kernels.h"

namespace bnew {

struct Plan;

// The number of rows and columns around an image.
struct Border {
    int top = 0, left = 0, bottom = 0, right = 0;
    bool empty() const { return !(top || left || bottom || right); }
};

// The view moved up and left by the border, to where the first window of a convolution begins.
template <class View>
View with_border(View view, const Border& border) {
    view.data -= border.top * view.row + border.left * view.pixel;
    return view;
}

// The bytes that hold a pixel's bits.
inline int64_t unit_of(int channels) {
    return channels <= 16 ? 2 : channels <= 32 ? 4 : round_up(channels, 64) / 8;
}

// Where a value lies in the arena of a run.
struct Buffer {
    Shape shape;
    bool bits = false;
    Border border;               // for the padding of the value's readers
    int rows = 0;                // of the buffer: the image's and the border's, or those of a strip
    int64_t pixel = 0, row = 0;  // floats, or bytes of bits
    // Written and read within one segment: each of its bands has a buffer of its own, the first at `offset`.
    bool in_strips = false;
    int bands = 1;
    size_t offset = 0, bytes = 0;

    int64_t row_bytes() const { return row * (bits ? 1 : static_cast<int64_t>(sizeof(float))); }
    // The size of the whole image, without the border.
    size_t image_bytes() const {
        return static_cast<size_t>(row_bytes()) * static_cast<size_t>(shape.height);
    }
};

// Buffers for whole values.
std::vector<Buffer> make_buffers(const Plan& plan);

// The stages that read and write each value.
struct Uses {
    explicit Uses(const Plan& plan);

    std::vector<std::vector<int>> readers;
    std::vector<int> makers;  // -1: an input
};

}  // namespace bnew
