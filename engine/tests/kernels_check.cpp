// kernels_check [CASES [SEED]]: every kernel of every instruction set that this machine can run does what the
// scalar one does, on random shapes: the same integers, bits and floats, to the last bit. Prints a line for
// each instruction set, and fails at the first difference.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <random>
#include <string>

#include "../cpp/dispatch.h"
#include "../cpp/plan.h"

namespace {

using namespace bnew;

// What a case needs is drawn first, and kept in memory of the exact size, so that a sanitizer sees the rest.
class Draw {
public:
    explicit Draw(uint64_t seed) : random_(seed) {}

    int from(int least, int most) {
        return least + static_cast<int>(random_() % static_cast<uint64_t>(most - least + 1));
    }
    bool one_in(int n) { return from(1, n) == 1; }
    template <class T>
    T any_of(std::initializer_list<T> values) {
        return values.begin()[from(0, static_cast<int>(values.size()) - 1)];
    }
    uint64_t word() { return random_(); }

    // Mostly plain numbers; now and then what must not matter, or must matter in the same way everywhere.
    float number() {
        constexpr float kSpecial[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-42f, 3e38f};
        if (one_in(200)) return kSpecial[from(0, 6)];
        const float plain = static_cast<float>(from(-4000, 4000)) / 1024.0f;
        return one_in(20) ? 32 * plain : plain;
    }
    Aligned<float> numbers(int64_t count) {
        Aligned<float> drawn(static_cast<size_t>(count));
        for (float& x : drawn) x = number();
        return drawn;
    }
    // Of `count` channels, filled up to whole groups.
    Aligned<float> per_channel(int count, float filling) {
        Aligned<float> drawn = numbers(round_up(count, kGroup));
        std::fill(drawn.begin() + count, drawn.end(), filling);
        return drawn;
    }

private:
    std::mt19937_64 random_;
};

Aligned<uint8_t> with_slack(int64_t bytes) { return Aligned<uint8_t>(static_cast<size_t>(bytes + kSlack)); }

// An image of real numbers, and what lies around it.
struct Real {
    Real(Draw& draw, int height, int width, int channels, bool close = false)
        : pixel(close ? channels : round_up(channels, kGroup)), row(width * pixel), numbers(with_slack(0)) {
        numbers = with_slack(height * row * 4);
        for (int64_t i = 0; i < height * row; ++i) view().data[i] = draw.number();
    }
    RealView view() { return {reinterpret_cast<float*>(numbers.data()), row, pixel}; }

    int64_t pixel, row;
    Aligned<uint8_t> numbers;
};

// Bits of pixels or of windows: `channels` of each unit drawn, the rest clear. Often all are the same, so
// that counts reach their limits.
void draw_bits(Draw& draw, uint8_t* to, int64_t units, int64_t unit, int channels) {
    const uint64_t some = draw.any_of({0, 1, 1}), all = draw.from(0, 1);
    for (int64_t i = 0; i < units; ++i, to += unit)
        for (int c = 0; c < channels; ++c)
            to[c / 8] |= static_cast<uint8_t>(((draw.word() & some) ^ all) << c % 8);
}

struct Bits {
    Bits(Draw& draw, int height, int width, int channels)
        : pixel(unit_of(channels)), row(width * pixel), bytes(with_slack(height * row)) {
        draw_bits(draw, bytes.data(), int64_t{height} * width, pixel, channels);
    }
    BitsView view() { return {bytes.data(), row, pixel}; }

    int64_t pixel, row;
    Aligned<uint8_t> bytes;
};

int activations() {
    int count = 0;
    while (scalar_kernels.activation_name(count)) ++count;
    return count;
}

// An epilogue with any of its lines, the results that it writes, and a part of them.
class Result {
public:
    Result(Draw& draw, int height, int width, int channels)
        : height_(height),
          width_(width),
          channels_(channels),
          real_(draw, height, width, channels),
          bits_(draw, height, width, channels),
          other_(draw, height, width, 0) {
        if (draw.one_in(2)) keep(e_.scale, draw, 0), keep(e_.shift, draw, 0);
        if (draw.one_in(2)) join(draw);
        if (draw.one_in(2)) {
            if (draw.one_in(2)) {
                keep(e_.slope, draw, 0);
            } else {
                e_.activation = draw.from(0, activations() - 1);
            }
        }
        e_.low = draw.any_of({-1.5f, 0.0f, -INFINITY});
        e_.high = draw.any_of({0.0f, 1.0f, 6.0f, INFINITY});
        if (draw.one_in(3)) keep(e_.scale_out, draw, 0);
        if (e_.scale_out || draw.one_in(3)) keep(e_.shift_out, draw, 0);
        const bool bits = draw.one_in(2);
        if (bits && draw.one_in(2)) keep(e_.sign_scale, draw, 0);
        if (bits) keep(e_.sign_shift, draw, e_.sign_scale ? -1 : std::numeric_limits<float>::quiet_NaN());
        if (bits) e_.bits = bits_.view();
        if (!bits || draw.one_in(2)) e_.real = real_.view();
        draw_part(draw);
    }

    const Epilogue& epilogue() const { return e_; }
    const Part& part() const { return part_; }

    // What lies in memory after `compute`, which begins with the same memory each time.
    struct Memory {
        Aligned<uint8_t> real, bits;
    };
    template <class Compute>
    Memory after(Compute compute) {
        const Memory before{real_.numbers, bits_.bytes};
        compute(e_, part_);
        Memory result{real_.numbers, bits_.bytes};
        std::copy(before.real.begin(), before.real.end(), real_.numbers.begin());
        std::copy(before.bits.begin(), before.bits.end(), bits_.bytes.begin());
        return result;
    }

    // The same bits everywhere; the same numbers but in the lanes that only fill up a group. One NaN is as
    // good as another.
    bool same(const Memory& a, const Memory& b) const {
        if (a.bits != b.bits) return false;
        const auto* x = reinterpret_cast<const float*>(a.real.data());
        const auto* y = reinterpret_cast<const float*>(b.real.data());
        for (int64_t i = 0; i < height_ * real_.row; ++i) {
            if (i % real_.pixel >= channels_ || (std::isnan(x[i]) && std::isnan(y[i]))) continue;
            if (std::bit_cast<uint32_t>(x[i]) != std::bit_cast<uint32_t>(y[i])) return false;
        }
        return true;
    }

private:
    void keep(const float*& to, Draw& draw, float filling) {
        numbers_.push_back(draw.per_channel(channels_, filling));
        to = numbers_.back().data();
    }

    void join(Draw& draw) {
        e_.join = draw.any_of({Join::add, Join::multiply});
        const bool half = channels_ % (2 * kGroup) == 0 && draw.one_in(3);
        const bool everywhere = draw.one_in(3);
        const int channels = half ? channels_ / 2 : channels_;
        other_ = Real(draw, everywhere ? 1 : height_, everywhere ? 1 : width_, channels);
        e_.other = other_.view();
        if (everywhere) e_.other.row = e_.other.pixel = 0;
        e_.other_channels = static_cast<int>(round_up(channels, kGroup));
    }

    // All, some pixels, or some groups of channels, beginning with a multiple of four.
    void draw_part(Draw& draw) {
        const int pixels = height_ * width_, groups = static_cast<int>(round_up(channels_, kGroup)) / kGroup;
        part_ = {0, pixels, 0, groups};
        if (draw.one_in(3)) {
            part_.first_pixel = draw.from(0, pixels - 1);
            part_.last_pixel = draw.from(static_cast<int>(part_.first_pixel) + 1, pixels);
        }
        if (draw.one_in(3)) {
            part_.first_group = draw.from(0, (groups - 1) / 4) * 4;
            part_.last_group = std::min(groups, part_.first_group + 4 * draw.from(1, 2));
        }
    }

    int height_, width_, channels_;
    Real real_;
    Bits bits_;
    Real other_;
    std::vector<Aligned<float>> numbers_;
    Epilogue e_;
    Part part_{};
};

Window draw_window(Draw& draw) {
    Window w;
    w.height = draw.from(1, 6);
    w.width = draw.from(1, draw.one_in(4) ? 40 : 8);
    w.kernel_y = draw.any_of({1, 1, 2, 3, 3, 5});
    w.kernel_x = draw.any_of({1, 1, 2, 3, 3, 5});
    if (draw.one_in(3)) w.kernel_y = w.kernel_x = 3;
    w.stride_y = draw.any_of({1, 1, 2, 3});
    w.stride_x = draw.any_of({1, 1, 2, 3});
    w.dilation_y = draw.any_of({1, 1, 2, 3});
    w.dilation_x = draw.any_of({1, 1, 2, 3});
    return w;
}

int height_in(const Window& w) { return (w.height - 1) * w.stride_y + (w.kernel_y - 1) * w.dilation_y + 1; }
int width_in(const Window& w) { return (w.width - 1) * w.stride_x + (w.kernel_x - 1) * w.dilation_x + 1; }

int draw_channels(Draw& draw, int most) {
    if (draw.one_in(2)) return draw.from(1, most);
    return std::min(most,
                    draw.any_of({1, 3, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 1025}));
}

using Check = bool(const Kernels&, Draw&);

bool check_binary(const Kernels& kernels, Draw& draw) {
    const bool large = draw.one_in(20);  // more bits than 16-bit counts hold
    const int channels_in = large ? 1025 : draw_channels(draw, draw.one_in(10) ? 1025 : 200);
    const int channels_out = draw_channels(draw, large ? 17 : 130);
    BinaryConv conv;
    conv.window = large ? Window{1, 2, 8, 9, 1, 1, 1, 1} : draw_window(draw);
    conv.channels_out = channels_out;
    conv.taps = conv.window.kernel_y * conv.window.kernel_x;
    conv.unit = unit_of(channels_in);
    Bits in(draw, height_in(conv.window), width_in(conv.window), channels_in);
    Aligned<uint64_t> windows(static_cast<size_t>(window_words(conv) * channels_out));
    for (int o = 0; o < channels_out; ++o)
        draw_bits(draw, reinterpret_cast<uint8_t*>(windows.data() + o * window_words(conv)), conv.taps,
                  conv.unit, channels_in);

    const int classes = draw.from(1, 3);
    std::vector<int32_t> rows, columns;
    for (int i = 0; i < conv.window.height; ++i) rows.push_back(draw.from(0, classes - 1));
    for (int i = 0; i < conv.window.width; ++i) columns.push_back(draw.from(0, classes - 1));
    Aligned<float> base(static_cast<size_t>(classes * classes * round_up(channels_out, kGroup)));
    for (float& b : base) b = static_cast<float>(draw.from(0, 2 * channels_in * conv.taps));
    conv.base = base.data();
    conv.row_class = rows.data();
    conv.column_class = columns.data();
    conv.column_classes = classes;
    Aligned<uint8_t> scratch(static_cast<size_t>(scratch_bytes(conv)));
    conv.scratch = scratch.data();

    Result result(draw, conv.window.height, conv.window.width, channels_out);
    const auto run = [&](const Kernels& with) {
        BinaryConv packed = conv;
        Aligned<uint8_t> weights(with.binary_bytes(conv));
        with.pack_binary(conv, windows.data(), weights.data());
        packed.weights = weights.data();
        return result.after(
            [&](const Epilogue& e, const Part& part) { with.binary_conv(packed, in.view(), e, part); });
    };
    return result.same(run(scalar_kernels), run(kernels));
}

bool check_real(const Kernels& kernels, Draw& draw) {
    RealConv conv;
    conv.window = draw_window(draw);
    conv.depthwise = draw.one_in(3);
    conv.groups = conv.depthwise ? draw_channels(draw, 130) : draw.any_of({1, 1, 1, 2, 3});
    conv.channels_in = conv.depthwise ? 1 : draw_channels(draw, 40);
    conv.channels_out = conv.depthwise     ? 1
                        : conv.groups == 1 ? draw_channels(draw, 130)
                                           : kGroup * draw.from(1, 5);
    const int in_all = conv.channels_in * conv.groups, out_all = conv.channels_out * conv.groups;
    Real in(draw, height_in(conv.window), width_in(conv.window), in_all, !conv.depthwise && draw.one_in(3));
    const int64_t taps = int64_t{conv.window.kernel_y} * conv.window.kernel_x;
    const Aligned<float> weights = draw.numbers(round_up(out_all, kGroup) * taps * conv.channels_in);
    conv.weights = weights.data();
    Result result(draw, conv.window.height, conv.window.width, out_all);
    const auto run = [&](const Kernels& with) {
        return result.after(
            [&](const Epilogue& e, const Part& part) { with.real_conv(conv, in.view(), e, part); });
    };
    return result.same(run(scalar_kernels), run(kernels));
}

bool check_pool(const Kernels& kernels, Draw& draw) {
    const int height = draw.from(1, 9), width = draw.from(1, 9);
    Pool pool;
    pool.kind = draw.any_of({Pooling::max, Pooling::average});
    pool.height = draw.from(1, 6);
    pool.width = draw.from(1, 6);
    pool.channels = draw_channels(draw, 130);
    pool.dilation_y = draw.from(1, 2);
    pool.dilation_x = draw.from(1, 2);
    std::vector<int32_t> edges[4];
    std::vector<float> places[2];
    for (int axis = 0; axis < 2; ++axis) {
        for (int i = 0; i < (axis == 0 ? pool.height : pool.width); ++i) {
            const int first = draw.from(0, (axis == 0 ? height : width) - 1);
            edges[2 * axis].push_back(first);
            edges[2 * axis + 1].push_back(draw.from(first + 1, axis == 0 ? height : width));
            places[axis].push_back(static_cast<float>(draw.from(1, 5)));
        }
    }
    pool.row_first = edges[0].data();
    pool.row_last = edges[1].data();
    pool.column_first = edges[2].data();
    pool.column_last = edges[3].data();
    pool.row_places = places[0].data();
    pool.column_places = places[1].data();
    Real in(draw, height, width, pool.channels);
    Result result(draw, pool.height, pool.width, pool.channels);
    const auto run = [&](const Kernels& with) {
        return result.after(
            [&](const Epilogue& e, const Part& part) { with.pool(pool, in.view(), e, part); });
    };
    return result.same(run(scalar_kernels), run(kernels));
}

bool check_bilinear(const Kernels& kernels, Draw& draw) {
    const int height = draw.from(1, 9), width = draw.from(1, 9), channels = draw_channels(draw, 130);
    const int height_out = draw.from(1, 6), width_out = draw.from(1, 6);
    std::vector<int32_t> places[4];
    std::vector<float> weights[2];
    for (int axis = 0; axis < 2; ++axis) {
        for (int i = 0; i < (axis == 0 ? height_out : width_out); ++i) {
            for (int end = 0; end < 2; ++end)
                places[2 * axis + end].push_back(draw.from(0, (axis == 0 ? height : width) - 1));
            weights[axis].push_back(static_cast<float>(draw.from(0, 1024)) / 1024.0f);
        }
    }
    const Bilinear resize{width_out,        places[0].data(), places[1].data(), weights[0].data(),
                          places[2].data(), places[3].data(), weights[1].data()};
    Real in(draw, height, width, channels);
    Result result(draw, height_out, width_out, channels);
    const auto run = [&](const Kernels& with) {
        return result.after(
            [&](const Epilogue& e, const Part& part) { with.bilinear(resize, in.view(), e, part); });
    };
    return result.same(run(scalar_kernels), run(kernels));
}

bool check_layer_norm(const Kernels& kernels, Draw& draw) {
    const int height = draw.from(1, 5), channels = draw_channels(draw, 1025);
    const LayerNorm norm{draw.any_of({Norm::layer, Norm::rms, Norm::l2}), draw.from(1, 9), channels,
                         draw.any_of({1e-5f, 1e-12f, 1.0f})};
    Real in(draw, height, norm.width, channels);
    Result result(draw, height, norm.width, channels);
    const auto run = [&](const Kernels& with) {
        return result.after(
            [&](const Epilogue& e, const Part& part) { with.layer_norm(norm, in.view(), e, part); });
    };
    return result.same(run(scalar_kernels), run(kernels));
}

bool check_group_norm(const Kernels& kernels, Draw& draw) {
    const int size = draw_channels(draw, 70), groups = draw.from(1, 5);
    GroupNorm norm{draw.from(1, 5), draw.from(1, 9), size * groups, groups,
                   draw.any_of({1e-5f, 1e-12f, 1.0f})};
    Real in(draw, norm.height, norm.width, norm.channels);
    Result result(draw, norm.height, norm.width, norm.channels);
    Aligned<uint8_t> scratch(static_cast<size_t>(scratch_bytes(norm)));
    norm.scratch = scratch.data();
    const auto run = [&](const Kernels& with) {
        return result.after(
            [&](const Epilogue& e, const Part& part) { with.group_norm(norm, in.view(), e, part); });
    };
    return result.same(run(scalar_kernels), run(kernels));
}

bool check_softmax(const Kernels& kernels, Draw& draw) {
    const int height = draw.from(1, 5);
    Softmax softmax{draw.from(1, 9), draw_channels(draw, 200), draw.one_in(2)};
    Real in(draw, height, softmax.width, softmax.channels);
    Result result(draw, height, softmax.width, softmax.channels);
    Aligned<uint8_t> scratch(static_cast<size_t>(scratch_bytes(softmax)));
    softmax.scratch = scratch.data();
    const auto run = [&](const Kernels& with) {
        return result.after(
            [&](const Epilogue& e, const Part& part) { with.softmax(softmax, in.view(), e, part); });
    };
    return result.same(run(scalar_kernels), run(kernels));
}

bool check_pointwise(const Kernels& kernels, Draw& draw) {
    const int height = draw.from(1, 5), width = draw.from(1, 9), channels = draw_channels(draw, 130);
    Real in(draw, height, width, channels);
    Result result(draw, height, width, channels);
    const auto run = [&](const Kernels& with) {
        return result.after(
            [&](const Epilogue& e, const Part& part) { with.pointwise(width, in.view(), e, part); });
    };
    return result.same(run(scalar_kernels), run(kernels));
}

constexpr struct {
    const char* name;
    Check* check;
    int share;  // of the cases
} kChecks[] = {{"binary_conv", check_binary, 4},
               {"real_conv", check_real, 3},
               {"pool", check_pool, 1},
               {"bilinear", check_bilinear, 1},
               {"layer_norm", check_layer_norm, 1},
               {"group_norm", check_group_norm, 1},
               {"softmax", check_softmax, 1},
               {"pointwise", check_pointwise, 3}};

}  // namespace

int main(int argc, char** argv) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 200;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    for (const Kernels* kernels : usable_kernels()) {
        if (kernels == &scalar_kernels) continue;
        if (kernels->peak(100) <= 0) return std::printf("%s: peak counts nothing\n", kernels->name), 1;
        std::string counts;
        for (const auto& [name, check, share] : kChecks) {
            for (int i = 0; i < cases * share; ++i) {
                Draw draw(seed * 1'000'000 + static_cast<uint64_t>(i));
                if (check(*kernels, draw)) continue;
                std::printf("%s: %s differs from the scalar one in case %d of seed %llu\n", kernels->name,
                            name, i, static_cast<unsigned long long>(seed));
                return 1;
            }
            counts += std::string(counts.empty() ? "" : ", ") + std::to_string(cases * share) + " of " + name;
        }
        std::printf("%s equals scalar: %s, seed %llu\n", kernels->name, counts.c_str(),
                    static_cast<unsigned long long>(seed));
    }
}
