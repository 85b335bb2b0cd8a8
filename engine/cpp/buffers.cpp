#include "buffers.h"

#include <algorithm>

#include "plan.h"

namespace bnew {
namespace {

void widen(Border& border, const Border& by) {
    border.top = std::max(border.top, by.top);
    border.left = std::max(border.left, by.left);
    border.bottom = std::max(border.bottom, by.bottom);
    border.right = std::max(border.right, by.right);
}

void set_strides(Buffer& made, bool close) {
    const Shape& shape = made.shape;
    made.pixel = made.bits ? unit_of(shape.channels)
                 : close   ? shape.channels
                           : round_up(shape.channels, kGroup);
    made.row = (shape.width + made.border.left + made.border.right) * made.pixel;
    made.rows = shape.height + made.border.top + made.border.bottom;
}

}  // namespace

std::vector<Buffer> make_buffers(const Plan& plan) {
    std::vector<Buffer> buffers;
    for (const Value& value : plan.values) {
        Buffer& made = buffers.emplace_back();
        made.shape = value.shape;
        made.bits = value.bits;
    }
    // The channels of an input lie close together if all its readers can read that layout.
    std::vector<bool> close(buffers.size());
    for (size_t v = 0; v < plan.inputs; ++v) close[v] = !plan.is_output(static_cast<int>(v));
    for (const Stage& stage : plan.stages) {
        if (!stage.reads_close)
            for (int v : stage.inputs) close[static_cast<size_t>(v)] = false;
        if (stage.other >= 0) close[static_cast<size_t>(stage.other)] = false;
        if (!stage.inputs.empty()) widen(buffers[static_cast<size_t>(stage.inputs[0])].border, stage.border);
    }
    for (size_t v = 0; v < buffers.size(); ++v) set_strides(buffers[v], close[v]);
    return buffers;
}

Uses::Uses(const Plan& plan) : readers(plan.values.size()), makers(plan.values.size(), -1) {
    for (size_t s = 0; s < plan.stages.size(); ++s) {
        const Stage& stage = plan.stages[s];
        for (int v : stage.inputs) readers[static_cast<size_t>(v)].push_back(static_cast<int>(s));
        if (stage.other >= 0) readers[static_cast<size_t>(stage.other)].push_back(static_cast<int>(s));
        for (int v : {stage.real, stage.bits})
            if (v >= 0) makers[static_cast<size_t>(v)] = static_cast<int>(s);
    }
}

}  // namespace bnew
