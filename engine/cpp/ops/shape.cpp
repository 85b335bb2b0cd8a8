// Operators that only move numbers.

#include <cstring>

#include "families.h"
#include "pixels.h"

namespace bnew {

namespace {

constexpr int Shape::* kAxes[] = {&Shape::channels, &Shape::height, &Shape::width};

// The shape of values that lie one after the other along an axis, and agree along the others.
Shape read_joined(GraphReader& reader, Fields& fields, Node& node, int Shape::* axis) {
    Shape joined = reader.input(node);
    int64_t total = 0;
    for (int input : node.inputs) {
        const Shape& part = reader.value(input).shape;
        for (int Shape::* other : kAxes)
            expect(other == axis || part.*other == joined.*other,
                   fields.where() + " joins values of different sizes");
        total += part.*axis;
    }
    expect(total <= kLargestSize, fields.where() + " gives too large a value");
    joined.*axis = static_cast<int>(total);
    return joined;
}

// Copies one value after the other, each to the place (y, x, c) that `next` moves on.
template <class Next>
void join(const Call& call, Next next) {
    const RealView& out = call.epilogue.real;
    int y0 = 0, x0 = 0;
    int64_t c0 = 0;
    for (size_t i = 0; i < call.stage.inputs.size(); ++i) {
        const RealView part = call.real(i);
        const Shape& shape = call.shape(i);
        each_pixel(shape, [&](int y, int x) {
            std::memcpy(pixel(out, y0 + y, x0 + x) + c0, pixel(part, y, x),
                        static_cast<size_t>(shape.channels) * 4);
        });
        next(shape, y0, x0, c0);
    }
}

}  // namespace

Shape read_concat(GraphReader& reader, Fields& fields, Node& node) {
    return read_joined(reader, fields, node, &Shape::channels);
}

Shape read_concat_rows(GraphReader& reader, Fields& fields, Node& node) {
    return read_joined(reader, fields, node, &Shape::height);
}

Shape read_concat_columns(GraphReader& reader, Fields& fields, Node& node) {
    return read_joined(reader, fields, node, &Shape::width);
}

void run_concat(const Call& call) {
    join(call, [](const Shape& part, int&, int&, int64_t& c) { c += part.channels; });
}

void run_concat_rows(const Call& call) {
    join(call, [](const Shape& part, int& y, int&, int64_t&) { y += part.height; });
}

void run_concat_columns(const Call& call) {
    join(call, [](const Shape& part, int&, int& x, int64_t&) { x += part.width; });
}

Shape read_flatten(GraphReader& reader, Fields& fields, Node& node) {
    const Shape& in = reader.input(node);
    const int64_t all = int64_t{in.channels} * in.height * in.width;
    expect(all <= kLargestSize, fields.where() + " gives too large a vector");
    return {static_cast<int>(all), 1, 1};
}

void run_flatten(const Call& call) {
    const Shape& shape = call.shape();
    const RealView in = call.real();
    each_pixel(shape, [&](int y, int x) {
        const float* from = pixel(in, y, x);
        for (int c = 0; c < shape.channels; ++c)
            call.epilogue.real.data[(static_cast<int64_t>(c) * shape.height + y) * shape.width + x] = from[c];
    });
}

}  // namespace bnew
