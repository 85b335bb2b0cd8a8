#include "plan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "include/bnew_engine.h"
#include "layout.h"
#include "text.h"

namespace bnew {
namespace {

constexpr size_t kMostStages = 1 << 14;
// Work for each number that a stage gives, whatever gives it: reading, the epilogue, writing.
constexpr double kMacsPerNumber = 8;

Activation activation_of(StepKind kind) {
    switch (kind) {
        case StepKind::prelu: return Activation::prelu;
        case StepKind::clamp: return Activation::clamp;
        case StepKind::sigmoid: return Activation::sigmoid;
        case StepKind::hard_sigmoid: return Activation::hard_sigmoid;
        case StepKind::sign: return Activation::sign;
        case StepKind::scale:
        case StepKind::shift:
        case StepKind::add:
        case StepKind::multiply: break;
    }
    std::abort();
}

// Steps that fit one epilogue, gathered one after another. Affine steps are folded in double precision.
class Chain {
public:
    // Whether the step could be taken.
    bool take(const Step& step) {
        switch (step.kind) {
            case StepKind::scale:
            case StepKind::shift: return take_affine(step);
            case StepKind::add:
            case StepKind::multiply:
                if (join != Join::none || acted()) return false;
                join = step.kind == StepKind::add ? Join::add : Join::multiply;
                other = step.value;
                return true;
            case StepKind::prelu:
            case StepKind::clamp:
            case StepKind::sigmoid:
            case StepKind::hard_sigmoid:
            case StepKind::sign:
                if (acted()) return false;
                act(step);
                return true;
        }
        std::abort();
    }

    struct Affine {
        std::vector<double> scale, shift;  // one a channel; empty before the first step
        bool scaled = false, shifted = false;
    };

    Join join = Join::none;
    int other = -1;
    Activation activation = Activation::none;
    std::vector<float> slope;
    float low = 0, high = 0;
    const Affine& before() const { return before_; }
    const Affine& after() const { return after_; }

private:
    bool acted() const { return activation != Activation::none || after_.scaled || after_.shifted; }

    bool take_affine(const Step& step) {
        const bool is_shift = step.kind == StepKind::shift;
        // (x s + t) + o + b = (x s + (t + b)) + o: a shift behind a sum moves in front of it.
        const bool early = !acted() && (join == Join::none || (join == Join::add && is_shift));
        Affine& affine = early ? before_ : after_;
        affine.scale.resize(step.numbers.size(), 1.0);
        affine.shift.resize(step.numbers.size(), 0.0);
        for (size_t c = 0; c < step.numbers.size(); ++c) {
            if (is_shift) {
                affine.shift[c] += step.numbers[c];
            } else {
                affine.scale[c] *= step.numbers[c];
                affine.shift[c] *= step.numbers[c];
            }
        }
        (is_shift ? affine.shifted : affine.scaled) = true;
        return true;
    }

    void act(const Step& step) {
        activation = activation_of(step.kind);
        slope = step.numbers;
        low = step.low;
        high = step.high;
    }

    Affine before_, after_;
};

class Planner {
public:
    Planner(const Graph& graph, const Kernels& kernels, int threads, Budget& budget)
        : graph_(graph), kernels_(kernels), threads_(threads), budget_(budget) {
        plan_.values = graph.values;
    }

    Plan make() {
        for (size_t i = 0; i < graph_.nodes.size(); ++i) add_node(static_cast<int>(i));
        plan_.whole = make_layout(graph_, plan_, 0);
        plan_.strips = make_layout(graph_, plan_, 1);
        if (threads_ > 1) plan_.bands = make_layout(graph_, plan_, threads_);
        for (Stage& stage : plan_.stages)
            plan_.scratch_bytes = std::max(plan_.scratch_bytes, scratch_of(stage));
        check_run(plan_.strips, 1);
        if (threads_ > 1) check_run(plan_.bands, threads_);
        return std::move(plan_);
    }

    void check_run(const Layout& layout, int threads) const {
        const double scratch = static_cast<double>(plan_.scratch_bytes) * threads;
        budget_.check_run(layout.bytes + scratch, "a run of the network");
    }

private:
    // ------------------------------------------------------------------------------------ stages

    void add_node(int index) {
        const Node& node = graph_.nodes[static_cast<size_t>(index)];
        Stage stage;
        stage.op = node.op;
        stage.name = node.name;
        stage.node = index;
        stage.inputs = node.inputs;
        stage.shape = node.shape;
        switch (node.op) {
            case Op::binary_conv:
                if (node.groups == 1) {
                    make_binary(stage, node);
                } else {
                    // Groups share words of the input: their counts are taken as sums of real ±1, exact as
                    // well.
                    stage.op = Op::conv;
                    stage.inputs = {to_real(node)};
                    make_real(stage, node);
                }
                break;
            case Op::conv: make_real(stage, node); break;
            case Op::max_pool:
            case Op::avg_pool:
            case Op::adaptive_avg_pool: make_pool(stage, node); break;
            case Op::identity:
            case Op::concat:
            case Op::flatten:
            case Op::softmax: break;
            case Op::to_real: std::abort();  // no node has it
        }
        finish(std::move(stage), node);
    }

    // Adds the stage with as many of the node's steps as its epilogue takes, and stages for the rest.
    void finish(Stage stage, const Node& node) {
        if (is_plain(node.op) && (!node.then.empty() || node.sign)) stage = next(std::move(stage));
        size_t step = 0;
        while (true) {
            Chain chain;
            while (step < node.then.size() && chain.take(node.then[step])) ++step;
            set_epilogue(stage, chain);
            if (step == node.then.size()) break;
            stage = next(std::move(stage));
        }
        stage.real = node.output;
        if (node.sign) set_sign(stage, *node.sign);
        add(std::move(stage));
    }

    // Ends the stage with a value of its own, and begins one that goes on from there.
    Stage next(Stage stage) {
        stage.real = new_value(stage.shape, false);
        Stage after;
        after.op = Op::identity;
        after.name = stage.name;
        after.inputs = {stage.real};
        after.shape = stage.shape;
        add(std::move(stage));
        return after;
    }

    void add(Stage stage) {
        if (plan_.stages.size() == kMostStages)
            throw Error("the network has more than " + std::to_string(kMostStages) + " stages");
        work(stage.shape, kMacsPerNumber, stage.name);
        plan_.stages.push_back(std::move(stage));
    }

    // Each counts what a stage keeps or does, before it does.
    void take(double bytes, const std::string& name) {
        budget_.keep(bytes, "the network up to node " + quote(name));
    }
    void work(const Shape& results, double macs_per_number, const std::string& name) {
        budget_.work(1.0 * results.channels * results.height * results.width * macs_per_number,
                     "the network up to node " + quote(name));
    }

    int new_value(const Shape& shape, bool bits) {
        plan_.values.push_back({"", shape, bits});
        return static_cast<int>(plan_.values.size()) - 1;
    }

    int to_real(const Node& node) {
        Stage stage;
        stage.op = Op::to_real;
        stage.name = node.name;
        stage.inputs = node.inputs;
        stage.shape = plan_.values[static_cast<size_t>(node.inputs[0])].shape;
        const int real = stage.real = new_value(stage.shape, false);
        add(std::move(stage));
        return real;
    }

    // A value side by side with itself, as many times as fill `channels`.
    int repeated(int value, int channels, const std::string& name) {
        const Shape shape = plan_.values[static_cast<size_t>(value)].shape;
        Stage stage;
        stage.op = Op::concat;
        stage.name = name;
        take(4.0 * channels, name);
        stage.inputs.assign(static_cast<size_t>(channels / shape.channels), value);
        stage.shape = {channels, shape.height, shape.width};
        const int real = stage.real = new_value(stage.shape, false);
        add(std::move(stage));
        return real;
    }

    // --------------------------------------------------------------------------------- epilogues

    // The numbers filled up to whole groups, kept by the stage.
    template <class Numbers>
    const float* keep(Stage& stage, const Numbers& numbers, float filling = 0) {
        take(4.0 * static_cast<double>(numbers.size() + kGroup), stage.name);
        Aligned<float> kept(static_cast<size_t>(round_up(static_cast<int64_t>(numbers.size()), kGroup)),
                            filling);
        std::transform(numbers.begin(), numbers.end(), kept.begin(),
                       [](auto x) { return static_cast<float>(x); });
        return stage.numbers.emplace_back(std::move(kept)).data();
    }

    void set_epilogue(Stage& stage, const Chain& chain) {
        Epilogue& e = stage.epilogue;
        if (chain.before().scaled || chain.before().shifted) {
            e.scale = keep(stage, chain.before().scale);
            e.shift = keep(stage, chain.before().shift);
        }
        if (chain.join != Join::none) {
            e.join = chain.join;
            const int channels = stage.shape.channels;
            const int others = plan_.values[static_cast<size_t>(chain.other)].shape.channels;
            const bool repeat = others != channels && others % kGroup != 0;
            stage.other = repeat ? repeated(chain.other, channels, stage.name) : chain.other;
            e.other_channels = static_cast<int>(round_up(repeat ? channels : others, kGroup));
        }
        e.activation = chain.activation;
        if (chain.activation == Activation::prelu) e.slope = keep(stage, chain.slope);
        e.low = chain.low;
        e.high = chain.high;
        if (chain.after().scaled) e.scale_out = keep(stage, chain.after().scale);
        if (chain.after().scaled || chain.after().shifted) e.shift_out = keep(stage, chain.after().shift);
    }

    void set_sign(Stage& stage, const Sign& sign) {
        stage.bits = sign.output;
        Epilogue& e = stage.epilogue;
        // What fills up the channels must give clear bits, even where infinity was left in memory.
        if (sign.scale.empty()) {
            std::vector<float> threshold(sign.shift);
            for (float& t : threshold) t = -t;
            e.sign_shift = keep(stage, threshold, std::numeric_limits<float>::quiet_NaN());
        } else {
            e.sign_scale = keep(stage, sign.scale);
            e.sign_shift = keep(stage, sign.shift, -1);
        }
    }

    // ---------------------------------------------------------------------------------- windows

    static Window window_of(const Node& node) {
        return {node.shape.height, node.shape.width, node.kernel_y,   node.kernel_x,
                node.stride_y,     node.stride_x,    node.dilation_y, node.dilation_x};
    }

    // Taps first to last - 1 of a window's row or column.
    struct Taps {
        int first, last;
        bool operator==(const Taps&) const = default;
    };

    // The taps that lie inside the image for each output row (or column), as classes of equal ones.
    static std::vector<Taps> classify(int outputs, int64_t size, int64_t before, int64_t kernel,
                                      int64_t stride, int64_t dilation, std::vector<int32_t>& class_of) {
        // The first tap that is not before place `to`, when the window begins at `from`.
        const auto tap = [&](int64_t from, int64_t to) {
            return static_cast<int>(std::clamp((to - from + dilation - 1) / dilation, int64_t{0}, kernel));
        };
        std::vector<Taps> classes;
        for (int64_t i = 0; i < outputs; ++i) {
            const int64_t from = i * stride - before;
            const Taps inside{tap(from, 0), tap(from, size)};
            // Both taps only ever fall: equal ones are neighbours.
            if (classes.empty() || classes.back() != inside) classes.push_back(inside);
            class_of.push_back(static_cast<int32_t>(classes.size()) - 1);
        }
        return classes;
    }

    void make_binary(Stage& stage, const Node& node) {
        const Shape& in = plan_.values[static_cast<size_t>(node.inputs[0])].shape;
        BinaryConv& conv = stage.binary;
        conv.window = window_of(node);
        conv.channels_out = node.shape.channels;
        conv.taps = node.kernel_y * node.kernel_x;
        conv.unit = unit_of(in.channels);
        const double filled = static_cast<double>(round_up(conv.channels_out, kGroup));
        const Shape lanes{static_cast<int>(filled), node.shape.height, node.shape.width};
        work(lanes, static_cast<double>(window_words(conv)), node.name);  // 64 binary ones count as one
        take(static_cast<double>(kernels_.binary_bytes(conv)), node.name);
        const double while_made =
            (8.0 * static_cast<double>(window_words(conv)) + 4.0 * conv.taps) * conv.channels_out;
        take(while_made, node.name);

        const int64_t words = window_words(conv),
                      row = static_cast<int64_t>(node.words.size()) / conv.channels_out;
        std::vector<uint64_t> windows(static_cast<size_t>(words * conv.channels_out));
        std::vector<int32_t> ones(static_cast<size_t>(conv.taps) * static_cast<size_t>(conv.channels_out));
        for (int64_t o = 0; o < conv.channels_out; ++o) {
            auto* to = reinterpret_cast<uint8_t*>(windows.data() + o * words);
            const uint32_t* from = node.words.data() + o * row;
            for (int64_t tap = 0; tap < conv.taps; ++tap) {
                int32_t count = 0;
                if (in.channels % 32 == 0) {
                    const uint32_t* begin = from + tap * in.channels / 32;
                    std::memcpy(to + tap * conv.unit, begin, static_cast<size_t>(in.channels / 8));
                    for (int i = 0; i < in.channels / 32; ++i) count += std::popcount(begin[i]);
                } else {
                    for (int64_t c = 0; c < in.channels; ++c) {
                        const int64_t i = tap * in.channels + c;
                        const uint32_t bit = from[i / 32] >> i % 32 & 1;
                        to[tap * conv.unit + c / 8] |= static_cast<uint8_t>(bit << c % 8);
                        count += static_cast<int32_t>(bit);
                    }
                }
                ones[static_cast<size_t>(o * conv.taps + tap)] = count;
            }
        }
        stage.weights.resize(kernels_.binary_bytes(conv) + kSlack);
        kernels_.pack_binary(conv, windows.data(), stage.weights.data());
        conv.weights = stage.weights.data();
        set_base(stage, node, in, ones);
        budget_.give_back(while_made);
    }

    // With v the taps inside the image and b those in the border, where the input's bits are clear:
    //     dot = bits(v) - 2 count(v) = bits(v) - 2 (count(v + b) - ones(b)) = base - 2 count(v + b)
    //     base = bits(v) + 2 ones(b)
    void set_base(Stage& stage, const Node& node, const Shape& in, const std::vector<int32_t>& ones) {
        BinaryConv& conv = stage.binary;
        take(4.0 * (node.shape.height + node.shape.width), node.name);
        const auto rows = classify(node.shape.height, in.height, node.top, node.kernel_y, node.stride_y,
                                   node.dilation_y, stage.classes[0]);
        const auto columns = classify(node.shape.width, in.width, node.left, node.kernel_x, node.stride_x,
                                      node.dilation_x, stage.classes[1]);
        const size_t channels = static_cast<size_t>(round_up(conv.channels_out, kGroup));
        take(4.0 * static_cast<double>(rows.size()) * static_cast<double>(columns.size()) *
                 static_cast<double>(channels),
             node.name);
        Aligned<float> base(rows.size() * columns.size() * channels);
        // sums[y][x]: the ones of all taps above y and left of x, of one output channel.
        const size_t width = static_cast<size_t>(node.kernel_x) + 1;
        std::vector<int32_t> sums((static_cast<size_t>(node.kernel_y) + 1) * width);
        const auto sum = [&](int y, int x) -> int32_t& {
            return sums[static_cast<size_t>(y) * width + static_cast<size_t>(x)];
        };
        for (size_t o = 0; o < static_cast<size_t>(conv.channels_out); ++o) {
            const int32_t* of = ones.data() + o * static_cast<size_t>(conv.taps);
            for (int y = 0; y < node.kernel_y; ++y)
                for (int x = 0; x < node.kernel_x; ++x)
                    sum(y + 1, x + 1) = *of++ + sum(y, x + 1) + sum(y + 1, x) - sum(y, x);
            const int32_t all = sum(node.kernel_y, node.kernel_x);
            float* at = base.data() + o;
            for (const Taps& r : rows) {
                for (const Taps& k : columns) {
                    const int32_t bits = in.channels * (r.last - r.first) * (k.last - k.first);
                    const int32_t inside = sum(r.last, k.last) - sum(r.first, k.last) - sum(r.last, k.first) +
                                           sum(r.first, k.first);
                    *at = static_cast<float>(bits + 2 * (all - inside));
                    at += channels;
                }
            }
        }
        conv.base = stage.numbers.emplace_back(std::move(base)).data();
        conv.row_class = stage.classes[0].data();
        conv.column_class = stage.classes[1].data();
        conv.column_classes = static_cast<int>(columns.size());
    }

    // Binary weights too, as real ±1.
    void make_real(Stage& stage, const Node& node) {
        const Shape& in = plan_.values[static_cast<size_t>(node.inputs[0])].shape;
        RealConv& conv = stage.conv;
        conv.window = window_of(node);
        const int64_t taps = int64_t{node.kernel_y} * node.kernel_x;
        const int64_t own_in = in.channels / node.groups, own_out = node.shape.channels / node.groups;
        conv.depthwise = node.groups > 1 && own_in == 1 && own_out == 1;
        // Groups are laid together, with zeros where they do not meet, until their outputs fill whole
        // vectors.
        int64_t together = 1;
        if (!conv.depthwise && node.groups > 1) {
            while (node.groups % together != 0 || own_out * together % kGroup != 0)
                if (++together >= node.groups) break;
        }
        conv.groups = conv.depthwise ? node.groups : static_cast<int>(node.groups / together);
        conv.channels_in = static_cast<int>(own_in * together);
        conv.channels_out = static_cast<int>(own_out * together);
        const int64_t lanes = conv.depthwise ? round_up(node.groups, kGroup)
                                             : round_up(conv.channels_out, kGroup) * conv.groups;
        work({static_cast<int>(std::min<int64_t>(lanes, 1 << 30)), node.shape.height, node.shape.width},
             1.0 * conv.channels_in * static_cast<double>(taps), node.name);
        take(4.0 * static_cast<double>(lanes) * conv.channels_in * static_cast<double>(taps), node.name);
        const int64_t row = static_cast<int64_t>(node.words.size()) / node.shape.channels;
        const auto weight = [&](int64_t o, int64_t c, int64_t tap) {
            if (node.op == Op::conv) return node.weights[static_cast<size_t>((o * own_in + c) * taps + tap)];
            const int64_t i = tap * own_in + c;
            return node.words[static_cast<size_t>(o * row + i / 32)] >> i % 32 & 1 ? 1.0f : -1.0f;
        };
        Aligned<float> packed(static_cast<size_t>(lanes * conv.channels_in * taps));
        for (int64_t o = 0; o < node.shape.channels; ++o) {
            const int64_t group = conv.depthwise ? 0 : o / conv.channels_out;
            const int64_t within = conv.depthwise ? o : o % conv.channels_out;
            const int64_t vectors = round_up(conv.channels_out, kGroup) / kGroup;
            const int64_t vector = group * vectors + within / kGroup;
            const int64_t first = conv.depthwise ? 0 : o / own_out % together * own_in;
            for (int64_t c = 0; c < own_in; ++c)
                for (int64_t tap = 0; tap < taps; ++tap)
                    packed[static_cast<size_t>(
                        ((vector * taps + tap) * conv.channels_in + first + c) * kGroup + within % kGroup)] =
                        weight(o, c, tap);
        }
        conv.weights = stage.numbers.emplace_back(std::move(packed)).data();
    }

    static void make_pool(Stage& stage, const Node& node, const Shape& in) {
        Pool& pool = stage.pool;
        pool.kind = node.op == Op::max_pool ? Pooling::max : Pooling::average;
        pool.height = node.shape.height;
        pool.width = node.shape.width;
        pool.channels = node.shape.channels;
        pool.dilation_y = node.dilation_y;
        pool.dilation_x = node.dilation_x;
        if (node.op == Op::adaptive_avg_pool) {
            adaptive(in.height, pool.height, stage.edges[0], stage.edges[1], stage.places[0]);
            adaptive(in.width, pool.width, stage.edges[2], stage.edges[3], stage.places[1]);
        } else {
            cut(in.height, node.top, node.bottom, node.kernel_y, node.stride_y, node.dilation_y, pool.height,
                node.count_padding, stage.edges[0], stage.edges[1], stage.places[0]);
            cut(in.width, node.left, node.right, node.kernel_x, node.stride_x, node.dilation_x, pool.width,
                node.count_padding, stage.edges[2], stage.edges[3], stage.places[1]);
        }
        pool.row_first = stage.edges[0].data();
        pool.row_last = stage.edges[1].data();
        pool.column_first = stage.edges[2].data();
        pool.column_last = stage.edges[3].data();
        pool.row_places = stage.places[0].data();
        pool.column_places = stage.places[1].data();
    }

    void make_pool(Stage& stage, const Node& node) {
        const Shape& in = plan_.values[static_cast<size_t>(node.inputs[0])].shape;
        take(12.0 * (node.shape.height + node.shape.width), node.name);
        // The largest window; two places more where its edges are rounded.
        const auto places = [&](int size, int kernel, int count) {
            return node.op == Op::adaptive_avg_pool ? 1.0 * size / count + 2 : 1.0 * std::min(kernel, size);
        };
        work(node.shape,
             places(in.height, node.kernel_y, node.shape.height) *
                 places(in.width, node.kernel_x, node.shape.width),
             node.name);
        make_pool(stage, node, in);
    }

    static void adaptive(int64_t size, int64_t count, std::vector<int32_t>& first, std::vector<int32_t>& last,
                         std::vector<float>& places) {
        for (int64_t i = 0; i < count; ++i) {
            first.push_back(static_cast<int32_t>(i * size / count));
            last.push_back(static_cast<int32_t>(((i + 1) * size + count - 1) / count));
            places.push_back(static_cast<float>(last.back() - first.back()));
        }
    }

    static void cut(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t stride,
                    int64_t dilation, int64_t count, bool count_padding, std::vector<int32_t>& first,
                    std::vector<int32_t>& last, std::vector<float>& places) {
        for (int64_t i = 0; i < count; ++i) {
            int64_t from = i * stride - before;
            const int64_t until = from + (kernel - 1) * dilation + 1;
            const int64_t padded = std::min(until, size + after) - from;
            if (from < 0) from += (-from + dilation - 1) / dilation * dilation;
            first.push_back(static_cast<int32_t>(from));
            last.push_back(static_cast<int32_t>(std::min(until, size)));
            places.push_back(static_cast<float>(count_padding ? padded : last.back() - from));
        }
    }

    static size_t scratch_of(const Stage& stage) {
        return stage.op == Op::binary_conv ? static_cast<size_t>(scratch_bytes(stage.binary)) : 0;
    }

    const Graph& graph_;
    const Kernels& kernels_;
    int threads_;
    Budget& budget_;
    Plan plan_;
};

}  // namespace

bool is_plain(Op op) {
    switch (op) {
        case Op::concat:
        case Op::flatten:
        case Op::softmax:
        case Op::to_real: return true;
        case Op::conv:
        case Op::binary_conv:
        case Op::max_pool:
        case Op::avg_pool:
        case Op::adaptive_avg_pool:
        case Op::identity: return false;
    }
    std::abort();
}

Plan make_plan(const Graph& graph, const Kernels& kernels, int threads, Budget& budget) {
    return Planner(graph, kernels, threads, budget).make();
}

}  // namespace bnew
