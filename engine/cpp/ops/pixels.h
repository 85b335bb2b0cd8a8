// Iterates over the pixels of a value.

#pragma once

#include "../graph.h"
#include "../kernels.h"

namespace bnew {

template <class View>
auto pixel(const View& view, int y, int x) {
    return view.data + y * view.row + x * view.pixel;
}

template <class F>
void each_pixel(const Shape& shape, F f) {
    for (int y = 0; y < shape.height; ++y)
        for (int x = 0; x < shape.width; ++x) f(y, x);
}

}  // namespace bnew
