// Pools: the largest value or the mean of windows, which are cut at the image's edge. resize_nearest is a
// maximum over windows of one place.

#include <algorithm>
#include <cmath>
#include <limits>

#include "families.h"
#include "sizes.h"
#include "window.h"

namespace bnew {
namespace {

struct PoolArguments : WindowArguments {
    bool count_padding = false;
};

struct ResizeArguments : Arguments {
    std::vector<float> scale;  // input rows per output row, input columns per output column
};

// The windows along an axis: their first and last places, and their factors of the divisor of a mean.
struct Axis {
    std::vector<int32_t> first, last;
    std::vector<float> places;
};

struct Pooled : Windowed {
    Pool pool;
    Axis rows, columns;
};

// Checks that every window has a place in the image: otherwise it has no maximum and no mean.
void check_windows(int64_t size, int64_t before, int64_t kernel, int64_t stride, int64_t dilation,
                   int64_t count, const std::string& where) {
    const auto check = [&](int64_t i) {
        int64_t first = i * stride - before;
        const int64_t last = first + (kernel - 1) * dilation;
        if (first < 0) first += (-first + dilation - 1) / dilation * dilation;
        expect(first < size && first <= last, where + " has a window without a place in the image");
    };
    // Windows that begin before the image are checked one by one. Of the others, the last one is enough.
    for (int64_t i = 0; i < count && i * stride < before; ++i) check(i);
    check(count - 1);
}

Shape read_size(GraphReader& reader, Fields& fields, const Node& node) {
    const auto size = fields.integers("size", 2, 1);
    return {reader.input(node).channels, size[0], size[1]};
}

// The size of a pool's result: `size` itself, or by its window if it is "floor" or "ceil".
Shape read_size(GraphReader& reader, Fields& fields, const Node& node, const PoolArguments& pool) {
    if (!fields.at("size").is(Json::Kind::string)) return read_size(reader, fields, node);
    const std::string rounded = fields.string("size");
    expect(rounded == "floor" || rounded == "ceil",
           fields.what("size") + " must be [h, w], \"floor\" or \"ceil\"");
    const Shape& in = reader.input(node);
    const bool up = rounded == "ceil";
    const int64_t height = windows_along(in.height, pool.padding.top, pool.padding.bottom, pool.kernel_y,
                                         pool.stride_y, pool.dilation_y, up);
    const int64_t width = windows_along(in.width, pool.padding.left, pool.padding.right, pool.kernel_x,
                                        pool.stride_x, pool.dilation_x, up);
    expect(height > 0 && width > 0, fields.where() + " has a window that is larger than its input");
    return {in.channels, static_cast<int>(height), static_cast<int>(width)};
}

void check_windows(const Shape& in, const Shape& out, const PoolArguments& pool, const std::string& where) {
    check_windows(in.height, pool.padding.top, pool.kernel_y, pool.stride_y, pool.dilation_y, out.height,
                  where);
    check_windows(in.width, pool.padding.left, pool.kernel_x, pool.stride_x, pool.dilation_x, out.width,
                  where);
}

Axis adaptive(int64_t size, int64_t count) {
    Axis axis;
    for (int64_t i = 0; i < count; ++i) {
        axis.first.push_back(static_cast<int32_t>(i * size / count));
        axis.last.push_back(static_cast<int32_t>(((i + 1) * size + count - 1) / count));
        axis.places.push_back(static_cast<float>(axis.last.back() - axis.first.back()));
    }
    return axis;
}

Axis cut(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t stride, int64_t dilation,
         int64_t count, bool count_padding) {
    Axis axis;
    for (int64_t i = 0; i < count; ++i) {
        int64_t from = i * stride - before;
        const int64_t until = from + (kernel - 1) * dilation + 1;
        const int64_t padded = std::min(until, size + after) - from;
        if (from < 0) from += (-from + dilation - 1) / dilation * dilation;
        axis.first.push_back(static_cast<int32_t>(from));
        axis.last.push_back(static_cast<int32_t>(std::min(until, size)));
        axis.places.push_back(static_cast<float>(count_padding ? padded : axis.last.back() - from));
    }
    return axis;
}

Axis nearest(int size, int count, float scale) {
    Axis axis;
    for (int i = 0; i < count; ++i) {
        const float place = std::floor(static_cast<float>(i) * scale);
        axis.first.push_back(static_cast<int32_t>(std::min(place, static_cast<float>(size - 1))));
        axis.last.push_back(axis.first.back() + 1);
        axis.places.push_back(1);
    }
    return axis;
}

// Counts the memory and the work of a pool whose windows have at most `rows` × `columns` places.
void count(Planner& planner, const Stage& stage, double rows, double columns) {
    planner.keep(12.0 * (stage.shape.height + stage.shape.width), stage.name);
    planner.work(stage.shape, rows * columns, stage.name);
}

void set_pool(Stage& stage, Pooling kind, const PoolArguments& arguments, Axis rows, Axis columns) {
    auto made = std::make_unique<Pooled>();
    set_rows(*made, arguments);
    made->rows = std::move(rows);
    made->columns = std::move(columns);
    Pool& pool = made->pool;
    pool.kind = kind;
    pool.height = stage.shape.height;
    pool.width = stage.shape.width;
    pool.channels = stage.shape.channels;
    pool.dilation_y = arguments.dilation_y;
    pool.dilation_x = arguments.dilation_x;
    pool.row_first = made->rows.first.data();
    pool.row_last = made->rows.last.data();
    pool.column_first = made->columns.first.data();
    pool.column_last = made->columns.last.data();
    pool.row_places = made->rows.places.data();
    pool.column_places = made->columns.places.data();
    stage.prepared = std::move(made);
}

void prepare_windows(Planner& planner, Stage& stage, const Node& node, Pooling kind) {
    const auto& pool = static_cast<const PoolArguments&>(*node.arguments);
    const Shape& in = planner.shape_of(stage.inputs[0]);
    count(planner, stage, std::min(pool.kernel_y, in.height), std::min(pool.kernel_x, in.width));
    set_pool(stage, kind, pool,
             cut(in.height, pool.padding.top, pool.padding.bottom, pool.kernel_y, pool.stride_y,
                 pool.dilation_y, stage.shape.height, pool.count_padding),
             cut(in.width, pool.padding.left, pool.padding.right, pool.kernel_x, pool.stride_x,
                 pool.dilation_x, stage.shape.width, pool.count_padding));
}

}  // namespace

Shape read_max_pool(GraphReader& reader, Fields& fields, Node& node) {
    const auto pool = std::make_shared<PoolArguments>();
    node.arguments = pool;
    read_window(fields, *pool, true);
    const Shape result = read_size(reader, fields, node, *pool);
    check_windows(reader.input(node), result, *pool, fields.where());
    return result;
}

Shape read_avg_pool(GraphReader& reader, Fields& fields, Node& node) {
    const auto pool = std::make_shared<PoolArguments>();
    node.arguments = pool;
    read_window(fields, *pool, false);
    const Shape result = read_size(reader, fields, node, *pool);
    pool->count_padding = fields.at("count_padding").boolean(fields.what("count_padding"));
    check_windows(reader.input(node), result, *pool, fields.where());
    return result;
}

Shape read_adaptive_avg_pool(GraphReader& reader, Fields& fields, Node& node) {
    return read_size(reader, fields, node);
}

void prepare_max_pool(Planner& planner, Stage& stage, Node& node) {
    prepare_windows(planner, stage, node, Pooling::max);
}

void prepare_avg_pool(Planner& planner, Stage& stage, Node& node) {
    prepare_windows(planner, stage, node, Pooling::average);
}

void prepare_adaptive_avg_pool(Planner& planner, Stage& stage, Node&) {
    const Shape& in = planner.shape_of(stage.inputs[0]);
    // Both edges of a window are rounded, so it may be up to two places larger than its share.
    count(planner, stage, 1.0 * in.height / stage.shape.height + 2, 1.0 * in.width / stage.shape.width + 2);
    set_pool(stage, Pooling::average, {}, adaptive(in.height, stage.shape.height),
             adaptive(in.width, stage.shape.width));
}

Shape read_resize_nearest(GraphReader& reader, Fields& fields, Node& node) {
    const auto resize = std::make_shared<ResizeArguments>();
    node.arguments = resize;
    auto [result, scale] = read_resize(reader, fields, node, false);
    resize->scale = std::move(scale);
    for (float each : resize->scale)
        expect(each > 0 && each <= std::numeric_limits<float>::max(),
               fields.what("scale") + " must be above 0");
    return result;
}

void prepare_resize_nearest(Planner& planner, Stage& stage, Node& node) {
    const auto& scale = static_cast<const ResizeArguments&>(*node.arguments).scale;
    const Shape& in = planner.shape_of(stage.inputs[0]);
    count(planner, stage, 1, 1);
    set_pool(stage, Pooling::max, {}, nearest(in.height, stage.shape.height, scale[0]),
             nearest(in.width, stage.shape.width, scale[1]));
}

Rows resize_rows(const Stage& stage, int y) {
    const int first = static_cast<const Pooled&>(*stage.prepared).pool.row_first[y];
    return {first, first + 1};
}

void run_pool(const Call& call) {
    call.kernels.pool(static_cast<const Pooled&>(*call.stage.prepared).pool, call.real(), call.epilogue,
                      call.part);
}

}  // namespace bnew
