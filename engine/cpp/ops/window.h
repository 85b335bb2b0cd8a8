// Windows that slide over an image: of convolutions and pools.

#pragma once

#include "operator.h"

namespace bnew {

struct WindowArguments : Arguments {
    int kernel_y = 1, kernel_x = 1, stride_y = 1, stride_x = 1, dilation_y = 1, dilation_x = 1;
    Border padding;
};

// What a stage with a window is prepared to.
struct Windowed : Prepared {
    int stride_y = 1, top = 0, reach_y = 1;  // the rows from a window's first to its last
};

// Takes the fields; those without dilation have no such field.
void read_window(Fields& fields, WindowArguments& window, bool dilated);

// For window_rows().
void set_rows(Windowed& prepared, const WindowArguments& window);

}  // namespace bnew
