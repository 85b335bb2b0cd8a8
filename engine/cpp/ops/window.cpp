#include "window.h"

#include "families.h"

namespace bnew {
namespace {

constexpr int kLargestWindow = 4096;  // the largest kernel, stride, dilation and padding

}  // namespace

void read_window(Fields& fields, WindowArguments& window, bool dilated) {
    const auto kernel = fields.integers("kernel", 2, 1, kLargestWindow);
    const auto stride = fields.integers("stride", 2, 1, kLargestWindow);
    const auto padding = fields.integers("padding", 4, 0, kLargestWindow);
    window.kernel_y = kernel[0], window.kernel_x = kernel[1];
    window.stride_y = stride[0], window.stride_x = stride[1];
    window.padding = {padding[0], padding[1], padding[2], padding[3]};
    if (dilated) {
        const auto dilation = fields.integers("dilation", 2, 1, kLargestWindow);
        window.dilation_y = dilation[0], window.dilation_x = dilation[1];
    }
}

void set_rows(Windowed& prepared, const WindowArguments& window) {
    prepared.stride_y = window.stride_y;
    prepared.top = window.padding.top;
    prepared.reach_y = (window.kernel_y - 1) * window.dilation_y + 1;
}

// The rows of the whole window. A pool skips those outside of the image.
Rows window_rows(const Stage& stage, int y) {
    const auto& window = static_cast<const Windowed&>(*stage.prepared);
    const int first = y * window.stride_y - window.top;
    return {first, first + window.reach_y};
}

}  // namespace bnew
