// The windows of convolutions and pools, which slide over an image.

#pragma once

#include "operator.h"

namespace bnew {

struct WindowArguments : Arguments {
    int kernel_y = 1, kernel_x = 1, stride_y = 1, stride_x = 1, dilation_y = 1, dilation_x = 1;
    Border padding;
};

// The prepared data that stages with a window share.
struct Windowed : Prepared {
    int stride_y = 1, top = 0, reach_y = 1;  // the rows from a window's first to its last
};

// Reads the window's fields. Only a `dilated` window has the field `dilation`.
void read_window(Fields& fields, WindowArguments& window, bool dilated);

// Sets the numbers that window_rows() uses.
void set_rows(Windowed& prepared, const WindowArguments& window);

}  // namespace bnew
