// An image with more places around it.

#include "pad.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "../text.h"
#include "families.h"
#include "pixels.h"

namespace bnew {
namespace {

constexpr const char* kModes[] = {"constant", "reflect", "replicate", "circular"};  // as in PadMode

struct PadArguments : Arguments {
    Border padding;
    PadMode mode = PadMode::constant;
    float value = 0;
};

// Places first to last - 1 of the result: the first one is place `from` of the input, and the others follow
// in steps of 1, 0 or -1. Or all are the constant.
struct Run {
    int first, last, from, step;
    bool constant = false;
};

struct Padded : Prepared {
    std::vector<Run> rows, columns;
    std::vector<Rows> reads;  // of each row of the result: to the last row so far, from the first yet to come
    Aligned<float> value;     // of each channel
};

std::vector<Run> runs_of(int size, int before, int after, PadMode mode) {
    const int end = before + size, last = end + after;
    Run ahead{0, before, 0, 0}, behind{end, last, size - 1, 0};  // as replicate has them
    switch (mode) {
        case PadMode::constant: ahead.constant = behind.constant = true; break;
        case PadMode::reflect:
            ahead = {0, before, before, -1};
            behind = {end, last, size - 2, -1};
            break;
        case PadMode::replicate: break;
        case PadMode::circular:
            ahead = {0, before, size - before, 1};
            behind = {end, last, 0, 1};
            break;
    }
    std::vector<Run> runs{ahead, {before, end, 0, 1}, behind};
    std::erase_if(runs, [](const Run& run) { return run.first == run.last; });
    return runs;
}

const Run& run_at(const std::vector<Run>& runs, int place) {
    return *std::find_if(runs.begin(), runs.end(), [&](const Run& run) { return place < run.last; });
}

int source(const Run& run, int place) { return run.from + (place - run.first) * run.step; }

// The rows that must be there for each row of the result, so that neither end decreases.
std::vector<Rows> rows_read(const std::vector<Run>& runs, int height, int count) {
    std::vector<Rows> reads(static_cast<size_t>(count), Rows{height - 1, 1});
    for (int y = 0; y < count; ++y) {
        Rows& own = reads[static_cast<size_t>(y)];
        if (y > 0) own.last = reads[static_cast<size_t>(y) - 1].last;
        const Run& run = run_at(runs, y);
        if (!run.constant) own.last = std::max(own.last, source(run, y) + 1);
    }
    for (int y = count - 1; y >= 0; --y) {
        Rows& own = reads[static_cast<size_t>(y)];
        if (y < count - 1) own.first = reads[static_cast<size_t>(y) + 1].first;
        const Run& run = run_at(runs, y);
        if (!run.constant) own.first = std::min(own.first, source(run, y));
    }
    return reads;
}

}  // namespace

Shape read_pad(GraphReader& reader, Fields& fields, Node& node) {
    const auto made = std::make_shared<PadArguments>();
    node.arguments = made;
    const Shape& in = reader.input(node);
    const auto padding = fields.integers("padding", 4, 0);
    made->padding = {padding[0], padding[1], padding[2], padding[3]};
    const std::string mode = fields.string("mode");
    const auto* const found = std::find(std::begin(kModes), std::end(kModes), mode);
    expect(found != std::end(kModes), fields.what("mode") + " is " + quote(mode) + ", which is not known");
    made->mode = static_cast<PadMode>(found - std::begin(kModes));
    if (made->mode == PadMode::constant) {
        made->value = static_cast<float>(fields.at("value").number(fields.what("value")));
        expect(std::isfinite(made->value), fields.what("value") + " is too large");
    }
    const int spare = made->mode == PadMode::reflect ? 1 : 0;
    const bool fits = std::max(padding[0], padding[2]) <= in.height - spare &&
                      std::max(padding[1], padding[3]) <= in.width - spare;
    expect(fits || made->mode == PadMode::constant || made->mode == PadMode::replicate,
           fields.what("padding") + " is too large for " + quote(mode) + " of " + to_string(in));
    return {in.channels, padding[0] + in.height + padding[2], padding[1] + in.width + padding[3]};
}

void set_pad(Planner& planner, Stage& stage, const Border& padding, PadMode mode, float value) {
    const Shape &in = planner.shape_of(stage.inputs[0]), &out = stage.shape;
    const size_t filled = static_cast<size_t>(round_up(out.channels, kGroup));
    planner.keep(static_cast<double>(sizeof(Rows)) * out.height + sizeof(float) * static_cast<double>(filled),
                 stage.name);
    planner.work(out, 1, stage.name);
    auto made = std::make_unique<Padded>();
    made->rows = runs_of(in.height, padding.top, padding.bottom, mode);
    made->columns = runs_of(in.width, padding.left, padding.right, mode);
    made->reads = rows_read(made->rows, in.height, out.height);
    made->value.assign(filled, value);
    stage.prepared = std::move(made);
}

void prepare_pad(Planner& planner, Stage& stage, Node& node) {
    const auto& pad = static_cast<const PadArguments&>(*node.arguments);
    set_pad(planner, stage, pad.padding, pad.mode, pad.value);
}

Rows pad_rows(const Stage& stage, int y) {
    return static_cast<const Padded&>(*stage.prepared).reads[static_cast<size_t>(y)];
}

void run_pad(const Call& call) {
    const auto& made = static_cast<const Padded&>(*call.stage.prepared);
    const Part& part = call.part;
    const RealView in = call.real(), value{const_cast<float*>(made.value.data()), 0, 0};
    const int64_t width = call.stage.shape.width;
    for (int64_t n = part.first_pixel; n < part.last_pixel;) {
        const int y = static_cast<int>(n / width), x = static_cast<int>(n % width);
        const Run& row = run_at(made.rows, y);
        const Run& run = run_at(made.columns, x);
        const bool constant = row.constant || run.constant;
        const int last = row.constant ? static_cast<int>(width) : run.last;
        const int64_t until = std::min(part.last_pixel, y * width + last);
        RealView from = value;
        if (!constant) {
            from = {pixel(in, source(row, y), 0), 0, run.step * in.pixel};
            from.data += (run.from - int64_t{run.first} * run.step) * in.pixel;
        }
        call.kernels.pointwise(static_cast<int>(width), from, call.epilogue,
                               {n, until, part.first_group, part.last_group});
        n = until;
    }
}

}  // namespace bnew
