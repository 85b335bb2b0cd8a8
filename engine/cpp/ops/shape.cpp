// Operators that only move numbers.

#include <cstring>

#include "families.h"
#include "pixels.h"

namespace bnew {

Shape read_concat(GraphReader& reader, Fields& fields, Node& node) {
    const Shape& first = reader.input(node);
    int64_t channels = 0;
    for (int input : node.inputs) {
        const Shape& part = reader.value(input).shape;
        expect(part.height == first.height && part.width == first.width,
               fields.where() + " joins values of different sizes");
        channels += part.channels;
    }
    expect(channels <= kLargestSize, fields.where() + " gives too many channels");
    return {static_cast<int>(channels), first.height, first.width};
}

void run_concat(const Call& call) {
    const RealView& out = call.epilogue.real;
    int64_t first = 0;
    for (size_t i = 0; i < call.stage.inputs.size(); ++i) {
        const RealView part = call.real(i);
        const int channels = call.shape(i).channels;
        each_pixel(call.stage.shape, [&](int y, int x) {
            std::memcpy(pixel(out, y, x) + first, pixel(part, y, x), static_cast<size_t>(channels) * 4);
        });
        first += channels;
    }
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
