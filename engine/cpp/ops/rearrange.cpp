// Numbers in another order. The numbers of a value are counted by row, column and channel. A loop nest over
// the numbers of the input gives those of the result. A pixel of the result begins at its base, and each of
// its channels lies as far from the base as in every other pixel.

#include <algorithm>
#include <cstring>

#include "families.h"
#include "pixels.h"
#include "sizes.h"

namespace bnew {
namespace {

constexpr size_t kMostLoops = 12;

struct Loop {
    int64_t size, stride;
};

struct RearrangeArguments : Arguments {
    std::vector<Loop> pixels, channels;  // the last one is the innermost
    int64_t offset = 0;
};

// `count` channels of the result from `channel` on, which are neighbours in the input. `from` is the number
// of the first one, counted from the pixel's base.
struct Piece {
    int32_t channel, count, from;
};

// A piece within a part of the channels; `from` is a distance in memory, or a number as in Piece.
struct Move {
    int32_t channel, count;
    int64_t from;
};

struct Rearranged : Prepared {
    Shape in;
    std::vector<int32_t> bases;  // of each pixel of the result
    std::vector<Piece> pieces;
    bool single = false;  // each piece is one number
    // Whether the channels and the columns of a base and of a piece add up without a carry. Then the place in
    // memory of a number is the sum of both places.
    bool carries = false;
    int tile = 1;  // pixels
};

// The numbers of a loop nest, in its order.
std::vector<int32_t> numbers_of(const std::vector<Loop>& loops, int64_t offset, int64_t count) {
    std::vector<int32_t> numbers;
    numbers.reserve(static_cast<size_t>(count));
    numbers.push_back(static_cast<int32_t>(offset));
    for (auto loop = loops.rbegin(); loop != loops.rend(); ++loop) {
        const size_t inner = numbers.size();
        for (int64_t i = 1; i < loop->size; ++i)
            for (size_t j = 0; j < inner; ++j)
                numbers.push_back(static_cast<int32_t>(numbers[j] + i * loop->stride));
    }
    return numbers;
}

std::vector<int64_t> read_wholes(Fields& fields, const char* name, const Shape& place, int64_t least,
                                 int64_t most) {
    std::vector<int64_t> numbers;
    for (const Json& item : fields.at(name).array(fields.what(name)))
        numbers.push_back(read_whole(item, place, fields.what(name), least, most));
    return numbers;
}

// Splits the loops where the channels of a pixel begin.
void split(std::vector<Loop> loops, int64_t channels, RearrangeArguments& made, const std::string& where) {
    const std::string refusal = where + " has loops that do not end with the channels of a pixel";
    int64_t left = channels;
    while (left > 1) {
        Loop& loop = loops.back();
        const int64_t inner = std::min(loop.size, left);
        expect(loop.size % inner == 0 && left % inner == 0, refusal);
        made.channels.insert(made.channels.begin(), {inner, loop.stride});
        left /= inner;
        loop = {loop.size / inner, loop.stride * inner};
        if (loop.size == 1) loops.pop_back();
    }
    made.pixels = std::move(loops);
}

std::vector<Piece> pieces_of(const std::vector<int32_t>& numbers) {
    std::vector<Piece> pieces;
    for (size_t c = 0; c < numbers.size(); ++c) {
        if (c > 0 && numbers[c] == numbers[c - 1] + 1) {
            ++pieces.back().count;
        } else {
            pieces.push_back({static_cast<int32_t>(c), 1, numbers[c]});
        }
    }
    return pieces;
}

bool has_carries(const Rearranged& made) {
    const int channels = made.in.channels, width = made.in.width;
    int64_t channel = 0, column = 0, last_channel = 0, last_column = 0;  // the largest of all
    for (int32_t base : made.bases) {
        channel = std::max<int64_t>(channel, base % channels);
        column = std::max<int64_t>(column, base / channels % width);
    }
    for (const Piece& piece : made.pieces) {
        last_channel = std::max<int64_t>(last_channel, int64_t{piece.from % channels} + piece.count - 1);
        last_column = std::max<int64_t>(last_column, piece.from / channels % width);
    }
    return channel + last_channel >= channels || column + last_column >= width;
}

bool only_stores(const Epilogue& e) {
    return !e.scale && e.join == Join::none && !e.slope && e.activation == kNoActivation && !e.scale_out &&
           !e.shift_out && !e.bits.data;
}

// Where numbers of the input lie in memory.
class Places {
public:
    Places(const Shape& shape, const RealView& view)
        : channels_(static_cast<uint32_t>(shape.channels)),
          width_(static_cast<uint32_t>(shape.width)),
          view_(view),
          close_(view.pixel == shape.channels && view.row == shape.width * view.pixel) {}

    bool close() const { return close_; }  // without gaps
    int64_t operator()(int64_t number) const {
        if (close_) return number;
        const uint32_t n = static_cast<uint32_t>(number), pixel = n / channels_;
        return pixel / width_ * view_.row + pixel % width_ * view_.pixel + n % channels_;
    }
    // Copies neighbours, which may lie in several pixels.
    void copy(int64_t number, int64_t count, float* to) const {
        while (count > 0) {
            const int64_t here = std::min<int64_t>(count, channels_ - number % channels_);
            std::memcpy(to, view_.data + (*this)(number), static_cast<size_t>(here) * sizeof(float));
            number += here, to += here, count -= here;
        }
    }

private:
    uint32_t channels_, width_;
    RealView view_;
    bool close_;
};

}  // namespace

Shape read_rearrange(GraphReader& reader, Fields& fields, Node& node) {
    const auto made = std::make_shared<RearrangeArguments>();
    node.arguments = made;
    const Shape& in = reader.input(node);
    const std::string& like =
        fields.optional("like") ? fields.string("like") : reader.value(node.inputs[0]).name;
    const Shape place = reader.value(reader.find(like, fields.what("like"))).shape;
    const auto wide = read_wholes(fields, "shape", place, 1, kLargestSize);
    expect(wide.size() == 3, fields.what("shape") + " must have 3 numbers");
    const std::vector<int> shape(wide.begin(), wide.end());
    const auto sizes = read_wholes(fields, "sizes", place, 1, kMostNumbers);
    const auto strides = read_wholes(fields, "strides", place, -kMostNumbers, kMostNumbers);
    made->offset = read_whole(fields.at("offset"), place, fields.what("offset"), 0, kMostNumbers);
    const std::string& where = fields.where();
    expect(!sizes.empty() && sizes.size() <= kMostLoops && sizes.size() == strides.size(),
           where + " must have 1 to " + std::to_string(kMostLoops) + " 'sizes', and as many 'strides'");

    const int64_t wanted = int64_t{shape[0]} * shape[1] * shape[2];
    const int64_t last = int64_t{in.channels} * in.height * in.width - 1;
    int64_t count = 1, least = made->offset, most = made->offset;
    std::vector<Loop> loops;
    for (size_t i = 0; i < sizes.size(); ++i) {
        expect(sizes[i] <= wanted / count, fields.what("sizes") + " gives more numbers than 'shape' has");
        count *= sizes[i];
        const int64_t way = (sizes[i] - 1) * strides[i];
        (way < 0 ? least : most) += way;
        expect(least >= 0 && most <= last, where + " reads numbers that its input does not have");
        loops.push_back({sizes[i], strides[i]});
    }
    expect(count == wanted, fields.what("sizes") + " gives fewer numbers than 'shape' has");
    expect(most <= last, where + " reads numbers that its input does not have");
    split(std::move(loops), shape[0], *made, where);
    return {shape[0], shape[1], shape[2]};
}

void prepare_rearrange(Planner& planner, Stage& stage, Node& node) {
    const auto& arguments = static_cast<const RearrangeArguments&>(*node.arguments);
    const int64_t pixels = int64_t{stage.shape.height} * stage.shape.width, channels = stage.shape.channels;
    constexpr double kBytesPerChannel = sizeof(int32_t) + 2 * sizeof(Piece);  // while pieces grow
    planner.keep(sizeof(int32_t) * static_cast<double>(pixels) + kBytesPerChannel * 1.0 * channels,
                 stage.name);
    planner.work(stage.shape, 1, stage.name);
    auto made = std::make_unique<Rearranged>();
    made->in = planner.shape_of(stage.inputs[0]);
    // A base is the smallest number of its pixel, so that all distances from it are positive.
    int64_t below = 0;
    for (const Loop& loop : arguments.channels) below += std::max<int64_t>(0, -(loop.size - 1) * loop.stride);
    made->bases = numbers_of(arguments.pixels, arguments.offset - below, pixels);
    made->pieces = pieces_of(numbers_of(arguments.channels, below, channels));
    made->single = made->pieces.size() == static_cast<size_t>(channels);
    made->carries = has_carries(*made);
    constexpr int64_t kTileNumbers = 4096;  // stays in the first-level cache
    const int64_t filled = round_up(channels, kGroup);
    made->tile = static_cast<int>(std::clamp<int64_t>(kTileNumbers / filled, 1, 64));
    stage.reads_close = true;
    stage.scratch_bytes = static_cast<size_t>(made->tile * filled) * sizeof(float) +
                          (made->pieces.size() + 1) * sizeof(Move) + kSlack;
    stage.nanoseconds += made->single ? 0.5 : 0.1;
    stage.prepared = std::move(made);
}

void run_rearrange(const Call& call) {
    const auto& made = static_cast<const Rearranged&>(*call.stage.prepared);
    const Part& part = call.part;
    const int width = call.stage.shape.width;
    const int first_channel = part.first_group * kGroup;
    const int last_channel = std::min(call.stage.shape.channels, part.last_group * kGroup);
    const int64_t filled = round_up(call.stage.shape.channels, kGroup);
    const RealView in = call.real();
    const Places places(made.in, in);
    const bool carries = made.carries && !places.close();

    auto* const tile = reinterpret_cast<float*>(call.scratch);
    auto* const moves = reinterpret_cast<Move*>(tile + made.tile * filled);
    Move* end = moves;
    for (const Piece& piece : made.pieces) {
        const int first = std::max(piece.channel, first_channel);
        const int last = std::min(piece.channel + piece.count, last_channel);
        if (first >= last) continue;
        const int64_t from = piece.from;
        *end++ = {first, last - first, (carries ? from : places(from)) + first - piece.channel};
    }

    const auto gather = [&](int64_t pixel, float* to) {
        const int32_t base = made.bases[static_cast<size_t>(pixel)];
        if (carries) {
            for (const Move* move = moves; move < end; ++move)
                places.copy(base + move->from, move->count, to + move->channel);
            return;
        }
        const float* from = in.data + places(base);
        if (made.single) {
            to += first_channel;
            for (const Move* move = moves; move < end; ++move) *to++ = from[move->from];
        } else {
            for (const Move* move = moves; move < end; ++move)
                std::memcpy(to + move->channel, from + move->from,
                            static_cast<size_t>(move->count) * sizeof(float));
        }
    };

    if (only_stores(call.epilogue)) {
        int y = static_cast<int>(part.first_pixel / width), x = static_cast<int>(part.first_pixel % width);
        for (int64_t n = part.first_pixel; n < part.last_pixel; ++n) {
            gather(n, pixel(call.epilogue.real, y, x));
            if (++x == width) x = 0, ++y;
        }
        return;
    }
    for (int64_t n = part.first_pixel; n < part.last_pixel;) {
        const int64_t until = std::min(part.last_pixel, n + made.tile);
        for (int64_t i = n; i < until; ++i) gather(i, tile + (i - n) * filled);
        const RealView gathered{tile - n * filled, width * filled, filled};
        call.kernels.pointwise(width, gathered, call.epilogue, {n, until, part.first_group, part.last_group});
        n = until;
    }
}

}  // namespace bnew
