#include "sizes.h"

#include <cmath>

namespace bnew {
namespace {

// `size` is [h, w], the name of a value that has this size, or {"times": [y, x]}.
Shape resized(GraphReader& reader, Fields& fields, const Node& node) {
    const Shape& in = reader.input(node);
    const Json& size = fields.at("size");
    const std::string what = fields.what("size");
    if (size.is(Json::Kind::string)) {
        const Shape& like = reader.value(reader.find(size.string(what), what)).shape;
        return {in.channels, like.height, like.width};
    }
    if (!size.is(Json::Kind::object)) {
        const auto numbers = fields.integers("size", 2, 1);
        return {in.channels, numbers[0], numbers[1]};
    }
    Fields times(size, what);
    std::vector<int> sizes;
    for (const Json& factor : times.at("times").array(times.what("times"))) {
        const double number = factor.number(times.what("times"));
        const double result = std::floor((sizes.empty() ? in.height : in.width) * number);
        expect(number > 0 && result >= 1 && result <= kLargestSize,
               times.what("times") + " makes an image of an impossible size");
        sizes.push_back(static_cast<int>(result));
    }
    expect(sizes.size() == 2, times.what("times") + " must have 2 numbers");
    times.done();
    return {in.channels, sizes[0], sizes[1]};
}

float ratio(int before, int after, bool corners) {
    if (!corners) return static_cast<float>(before) / static_cast<float>(after);
    return after > 1 ? static_cast<float>(before - 1) / static_cast<float>(after - 1) : 0.0f;
}

}  // namespace

int64_t read_whole(const Json& json, const Shape& place, const std::string& what, int64_t least,
                   int64_t most) {
    if (!json.is(Json::Kind::array)) return json.integer(what, least, most);
    const auto& terms = json.array(what);
    expect(terms.size() == 3, what + " has a product that is not [factor, i, j]");
    int64_t number = terms[0].integer(what, -kMostNumbers, kMostNumbers);
    if (terms[1].integer(what, 0, 1)) number *= place.height;  // each at most kLargestSize: no overflow
    expect(std::abs(number) <= kMostNumbers, what + " has a product that is too large");
    if (terms[2].integer(what, 0, 1)) number *= place.width;
    expect(number >= least && number <= most, what + " has a product that is out of its range");
    return number;
}

int64_t windows_along(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t stride,
                      int64_t dilation, bool up) {
    const int64_t room = size + before + after - dilation * (kernel - 1) - 1;
    if (room < 0) return 0;
    int64_t count = (room + (up ? stride - 1 : 0)) / stride + 1;
    if (up && (count - 1) * stride >= size + before) --count;
    return count;
}

Resize read_resize(GraphReader& reader, Fields& fields, const Node& node, bool corners) {
    Resize resize{resized(reader, fields, node), {}};
    const Shape& in = reader.input(node);
    const std::string what = fields.what("scale");
    if (fields.at("scale").is(Json::Kind::string)) {
        expect(fields.string("scale") == "size", what + " must be two numbers, or \"size\"");
        resize.scale = {ratio(in.height, resize.shape.height, corners),
                        ratio(in.width, resize.shape.width, corners)};
    } else {
        resize.scale = fields.floats("scale", 2);
    }
    return resize;
}

}  // namespace bnew
