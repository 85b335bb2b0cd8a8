// Running a plan: arenas, threads, and the stages that are no kernel.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>

#include "dispatch.h"
#include "include/bnew_engine.h"
#include "plan.h"
#include "pool.h"
#include "text.h"

namespace bnew {
namespace {

// Zeros that take no memory before they are written.
class Zeros {
public:
    explicit Zeros(size_t size) : memory_(static_cast<uint8_t*>(std::calloc(size + kAlignment, 1))) {
        if (!memory_) throw std::bad_alloc();
    }
    uint8_t* data() const {
        const auto address = reinterpret_cast<uintptr_t>(memory_.get());
        return memory_.get() + (kAlignment - address % kAlignment) % kAlignment;
    }

private:
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    std::unique_ptr<uint8_t, Free> memory_;
};

// The memory of one run.
struct Arena {
    Arena(const Plan& plan, const Layout& layout, int threads)
        : layout(layout),
          values(layout.arena_bytes),
          scratch_bytes(static_cast<size_t>(round_up(static_cast<int64_t>(plan.scratch_bytes), kAlignment))),
          scratch(scratch_bytes * static_cast<size_t>(threads)) {}

    const Layout& layout;
    Zeros values;
    size_t scratch_bytes;  // of each thread
    Zeros scratch;
};

// What a band has of a value.
uint8_t* memory_of(const Buffer& buffer, int band, Arena& arena) {
    const size_t others = buffer.bands > 1 ? static_cast<size_t>(band) * buffer.bytes : 0;
    return arena.values.data() + buffer.offset + others;
}

// The place of pixel (0, 0), if `first_row` is the row that lies first in the buffer.
uint8_t* origin(const Buffer& buffer, int first_row, int band, Arena& arena) {
    const int64_t border = buffer.left * buffer.pixel - first_row * buffer.row;
    return memory_of(buffer, band, arena) + border * (buffer.bits ? 1 : 4);
}

RealView real_view(int value, int first_row, int band, Arena& arena) {
    const Buffer& buffer = arena.layout.buffers[static_cast<size_t>(value)];
    return {reinterpret_cast<float*>(origin(buffer, first_row, band, arena)), buffer.row, buffer.pixel};
}

BitsView bits_view(int value, int first_row, int band, Arena& arena) {
    const Buffer& buffer = arena.layout.buffers[static_cast<size_t>(value)];
    return {origin(buffer, first_row, band, arena), buffer.row, buffer.pixel};
}

// Moves or clears rows of a value.
void run_memory(const Task& task, Arena& arena) {
    const Buffer& buffer = arena.layout.buffers[static_cast<size_t>(task.index)];
    const int64_t bytes = buffer.row_bytes();
    uint8_t* memory = memory_of(buffer, task.band, arena);
    uint8_t* to = memory + (task.first - task.to) * bytes;
    const size_t size = static_cast<size_t>((task.last - task.first) * bytes);
    switch (task.kind) {
        case Task::Kind::clear: std::memset(to, 0, size); return;
        case Task::Kind::move: std::memmove(to, memory + (task.first - task.from) * bytes, size); return;
        case Task::Kind::compute: break;
    }
    std::abort();
}

float* pixel(const RealView& view, int y, int x) { return view.data + y * view.row + x * view.pixel; }

template <class F>
void each_pixel(const Shape& shape, F f) {
    for (int y = 0; y < shape.height; ++y)
        for (int x = 0; x < shape.width; ++x) f(y, x);
}

void softmax(const Shape& shape, const RealView& in, const RealView& out) {
    each_pixel(shape, [&](int y, int x) {
        const float* from = pixel(in, y, x);
        float* to = pixel(out, y, x);
        const float largest = *std::max_element(from, from + shape.channels);
        float sum = 0;
        for (int c = 0; c < shape.channels; ++c) sum += to[c] = std::exp(from[c] - largest);
        for (int c = 0; c < shape.channels; ++c) to[c] /= sum;
    });
}

void flatten(const Shape& shape, const RealView& in, const RealView& out) {
    each_pixel(shape, [&](int y, int x) {
        const float* from = pixel(in, y, x);
        for (int c = 0; c < shape.channels; ++c)
            out.data[(static_cast<int64_t>(c) * shape.height + y) * shape.width + x] = from[c];
    });
}

void to_real(const Shape& shape, const BitsView& in, const RealView& out) {
    each_pixel(shape, [&](int y, int x) {
        const uint8_t* from = in.data + y * in.row + x * in.pixel;
        float* to = pixel(out, y, x);
        for (int c = 0; c < shape.channels; ++c) to[c] = from[c / 8] >> c % 8 & 1 ? 1.0f : -1.0f;
    });
}

}  // namespace

struct Model::Impl {
    Impl(Graph network, const Kernels& chosen, int threads, const Budget& limits)
        : graph(std::move(network)),
          kernels(chosen),
          budget(limits),
          plan(make_plan(graph, kernels, threads, budget)),
          isa(kernels.name) {
        if (threads > 1) pool.emplace(threads);
        for (Node& node : graph.nodes) {  // the plan has its own
            node.weights = {};
            if (node.op != Op::binary_conv) node.words = {};
        }
        const Lease first(*this, splits());
        for (size_t c = 0; c < graph.mean.size();
             ++c) {  // (b / 255 - mean) / std = b / (255 std) - mean / std
            byte_scale.push_back(static_cast<float>(1 / (255.0 * graph.std[c])));
            byte_shift.push_back(static_cast<float>(-double{graph.mean[c]} / graph.std[c]));
        }
    }

    int threads() const { return pool ? pool->threads() : 1; }
    // Whether a single image is computed by several threads.
    bool splits() const { return pool && pool->is_here(); }
    const Shape& shape_of(int value) const { return plan.values[static_cast<size_t>(value)].shape; }

    // ------------------------------------------------------------------------------------ stages

    // Part i of n of some rows of a stage: fewer rows if there are enough pixels, else fewer channels.
    static Part part_of(const Stage& stage, const Task& task, int i, int n) {
        const int64_t first = int64_t{task.first} * stage.shape.width;
        const int64_t pixels = int64_t{task.last - task.first} * stage.shape.width;
        const int64_t groups = round_up(stage.shape.channels, kGroup) / kGroup;
        Part part{first, first + pixels, 0, static_cast<int>(groups)};
        if (n == 1) return part;
        if (pixels >= 64 * n) {
            part.first_pixel = first + pixels * i / n;
            part.last_pixel = first + pixels * (i + 1) / n;
        } else {
            const int64_t fours = (groups + 3) / 4;  // kernels take up to four groups together
            part.first_group = static_cast<int>(std::min(groups, fours * i / n * 4));
            part.last_group = static_cast<int>(std::min(groups, fours * (i + 1) / n * 4));
        }
        return part;
    }

    // Whether the task is worth waking other threads, which takes about a microsecond: roughly, what it takes
    // itself, by the operations for each result on one core with AVX-512.
    bool is_worth_splitting(const Task& task) const {
        const Stage& stage = plan.stages[static_cast<size_t>(task.index)];
        constexpr double kLeast = 4000, kResult = 0.5, kWord = 0.03, kProduct = 0.015;  // nanoseconds
        const Window& w = stage.op == Op::binary_conv ? stage.binary.window : stage.conv.window;
        double each = kResult;
        if (stage.op == Op::binary_conv) each += kWord * static_cast<double>(window_words(stage.binary));
        if (stage.op == Op::conv) each += kProduct * stage.conv.channels_in * w.kernel_y * w.kernel_x;
        const double results = 1.0 * stage.shape.channels * stage.shape.width * (task.last - task.first);
        return !is_plain(stage.op) && each * results > kLeast;
    }

    // Part i of n, or all of it, with scratch number `scratch` of the arena's.
    void run_part(const Task& task, Arena& arena, int i, int n, int scratch) const {
        const Stage& stage = plan.stages[static_cast<size_t>(task.index)];
        const Part part = part_of(stage, task, i, n);
        if (part.first_pixel == part.last_pixel || part.first_group == part.last_group) return;
        const auto real = [&](int v, int first_row) { return real_view(v, first_row, task.band, arena); };
        const auto bits = [&](int v, int first_row) { return bits_view(v, first_row, task.band, arena); };
        Epilogue e = stage.epilogue;
        if (stage.real >= 0) e.real = real(stage.real, task.rows.real);
        if (stage.bits >= 0) e.bits = bits(stage.bits, task.rows.bits);
        if (stage.other >= 0) {
            e.other = real(stage.other, task.rows.other);
            const Shape& other = shape_of(stage.other);
            if (other.height == 1 && other.width == 1) e.other.row = e.other.pixel = 0;
        }
        const int input = stage.inputs[0];
        switch (stage.op) {
            case Op::binary_conv: {
                BinaryConv conv = stage.binary;
                conv.scratch = arena.scratch.data() + arena.scratch_bytes * static_cast<size_t>(scratch);
                kernels.binary_conv(conv, shift(bits(input, task.rows.in), stage), e, part);
                break;
            }
            case Op::conv:
                kernels.real_conv(stage.conv, shift(real(input, task.rows.in), stage), e, part);
                break;
            case Op::max_pool:
            case Op::avg_pool:
            case Op::adaptive_avg_pool: kernels.pool(stage.pool, real(input, task.rows.in), e, part); break;
            case Op::identity:
                kernels.pointwise(stage.shape.width, real(input, task.rows.in), e, part);
                break;
            case Op::concat: concat(stage, arena, e.real); break;
            case Op::flatten: flatten(shape_of(input), real_value(input, arena), e.real); break;
            case Op::softmax: softmax(stage.shape, real_value(input, arena), e.real); break;
            case Op::to_real: to_real(stage.shape, bits_value(input, arena), e.real); break;
        }
    }

    // The view of a convolution begins at the padding's first tap.
    template <class View>
    View shift(View view, const Stage& stage) const {
        const Node& node = graph.nodes[static_cast<size_t>(stage.node)];
        view.data -= node.top * view.row + node.left * view.pixel;
        return view;
    }

    // The views of values that no strip holds.
    static RealView real_value(int value, Arena& arena) {
        return real_view(value, -arena.layout.buffers[static_cast<size_t>(value)].top, 0, arena);
    }
    static BitsView bits_value(int value, Arena& arena) {
        return bits_view(value, -arena.layout.buffers[static_cast<size_t>(value)].top, 0, arena);
    }

    void concat(const Stage& stage, Arena& arena, const RealView& out) const {
        int64_t first = 0;
        for (int input : stage.inputs) {
            const RealView part = real_value(input, arena);
            const int channels = shape_of(input).channels;
            each_pixel(stage.shape, [&](int y, int x) {
                std::memcpy(pixel(out, y, x) + first, pixel(part, y, x), static_cast<size_t>(channels) * 4);
            });
            first += channels;
        }
    }

    // ------------------------------------------------------------------------------------- runs

    // The input's rows first to last - 1 from an image. Whether all its numbers are finite.
    bool set_rows(const float* image, int first, int last, Arena& arena) const {
        const Shape& shape = shape_of(0);
        const RealView view = real_value(0, arena);
        const int64_t width = shape.width, plane = shape.height * width;
        int wrong = 0;
        for (int y = first; y < last; ++y) {
            const float* from = image + y * width;
            float* to = pixel(view, y, 0);
            for (int c = 0; c < shape.channels; ++c)
                for (int64_t x = 0; x < width; ++x)
                    wrong += !(std::fabs(from[c * plane + x]) <= std::numeric_limits<float>::max());
            if (shape.channels == 3 && view.pixel == 3) {  // the usual case, in one pass
                for (int64_t x = 0; x < width; ++x) {
                    to[3 * x] = from[x];
                    to[3 * x + 1] = from[plane + x];
                    to[3 * x + 2] = from[2 * plane + x];
                }
            } else {
                for (int c = 0; c < shape.channels; ++c)
                    for (int64_t x = 0; x < width; ++x) to[x * view.pixel + c] = from[c * plane + x];
            }
        }
        return wrong == 0;
    }

    bool set_rows(const uint8_t* image, int first, int last, Arena& arena) const {
        const Shape& shape = shape_of(0);
        const RealView view = real_value(0, arena);
        image += int64_t{first} * shape.width * shape.channels;
        for (int y = first; y < last; ++y)
            for (int x = 0; x < shape.width; ++x) {
                float* to = pixel(view, y, x);
                for (int c = 0; c < shape.channels; ++c, ++image)
                    to[c] = std::fma(static_cast<float>(*image), byte_scale[static_cast<size_t>(c)],
                                     byte_shift[static_cast<size_t>(c)]);
            }
        return true;
    }

    template <class Input>
    void set_input(const Input* image, Arena& arena, bool split) const {
        constexpr size_t kLeast = 10000;  // numbers that are worth waking other threads for
        const int height = shape_of(0).height;
        std::atomic<bool> finite = true;
        const auto set = [&](int i, int n) {
            const int first = static_cast<int>(int64_t{height} * i / n);
            const int last = static_cast<int>(int64_t{height} * (i + 1) / n);
            if (!set_rows(image, first, last, arena)) finite = false;
        };
        if (split && size_of(0) > kLeast) {
            const int n = pool->threads();
            pool->run([&](int i) { set(i, n); });
        } else {
            set(0, 1);
        }
        if (!finite) throw Error("the input has numbers that are not finite");
    }

    // NHWC with filled-up channels → NCHW.
    void get(int value, Arena& arena, float* to) const {
        const Shape& shape = shape_of(value);
        const bool bits = plan.values[static_cast<size_t>(value)].bits;
        for (int c = 0; c < shape.channels; ++c) {
            each_pixel(shape, [&](int y, int x) {
                if (bits) {
                    const BitsView view = bits_value(value, arena);
                    const bool set = view.data[y * view.row + x * view.pixel + c / 8] >> c % 8 & 1;
                    *to++ = set ? 1.0f : -1.0f;
                } else {
                    *to++ = pixel(real_value(value, arena), y, x)[c];
                }
            });
        }
    }

    // One image, by all threads if `split`. Calls `after` when the input is there, and after each task of a
    // step's first strand.
    template <class Input, class AfterTask>
    void run_image(const Input* image, Arena& arena, bool split, AfterTask after) const {
        set_input(image, arena, split);
        after(nullptr);
        for (const std::vector<Strand>& step : arena.layout.steps) {
            if (split && step.size() > 1) {
                pool->run([&](int i) { run_strand(step[static_cast<size_t>(i)], arena, i, i == 0, after); });
                after(&step[0].back());  // once more: waiting for the others counts for it
            } else if (split && is_worth_splitting(step[0][0])) {
                const int n = pool->threads();
                pool->run([&](int i) { run_part(step[0][0], arena, i, n, i); });
                after(&step[0][0]);
            } else {
                for (const Strand& strand : step) run_strand(strand, arena, 0, &strand == step.data(), after);
            }
        }
    }

    template <class AfterTask>
    void run_strand(const Strand& strand, Arena& arena, int scratch, bool tell, AfterTask after) const {
        for (const Task& task : strand) {
            switch (task.kind) {
                case Task::Kind::compute: run_part(task, arena, 0, 1, scratch); break;
                case Task::Kind::move:
                case Task::Kind::clear: run_memory(task, arena); break;
            }
            if (tell) after(&task);
        }
    }

    template <class Input>
    void run(const Input* images, size_t count, float* results) const {
        const size_t in = size_of(0), out = size_of(graph.output);
        const auto one = [&](size_t i, Arena& arena, bool split) {
            run_image(images + i * in, arena, split, [](const Task*) {});
            get(graph.output, arena, results + i * out);
        };
        if (!splits()) {
            const Lease lease(*this, false);
            for (size_t i = 0; i < count; ++i) one(i, lease.arena(), false);
            return;
        }
        const std::lock_guard<std::mutex> lock(pool->mutex());
        const size_t threads = static_cast<size_t>(pool->threads());
        // Whole images side by side need no barrier; what does not go round is split.
        size_t done = 0;
        if (count >= threads) {
            std::vector<std::unique_ptr<Lease>> leases;
            for (size_t t = 0; t < threads; ++t) leases.push_back(std::make_unique<Lease>(*this, false));
            std::vector<std::exception_ptr> failures(threads);
            const size_t whole = count - count % threads;
            std::atomic<size_t> next = 0;
            pool->run([&](int p) {
                const auto part = static_cast<size_t>(p);
                try {
                    for (size_t i; (i = next.fetch_add(1)) < whole;) one(i, leases[part]->arena(), false);
                } catch (...) {
                    failures[part] = std::current_exception();
                }
            });
            for (const auto& failure : failures)
                if (failure) std::rethrow_exception(failure);
            done = whole;
        }
        const Lease lease(*this, true);
        for (; done < count; ++done) one(done, lease.arena(), true);
    }

    size_t size_of(int value) const {
        const Shape& shape = shape_of(value);
        return static_cast<size_t>(shape.channels) * static_cast<size_t>(shape.height) *
               static_cast<size_t>(shape.width);
    }

    // An arena that is free, or a new one: as many as there are calls at the same time. For one thread, or
    // for all on one image.
    class Lease {
    public:
        Lease(const Impl& impl, bool split)
            : impl_(impl), arenas_(split ? impl.arenas_of_all : impl.arenas_of_one) {
            const std::lock_guard<std::mutex> lock(impl.arenas_mutex);
            if (arenas_.empty()) {
                const Plan& plan = impl.plan;
                try {
                    arena_ = split ? std::make_unique<Arena>(plan, plan.bands, impl.threads())
                                   : std::make_unique<Arena>(plan, plan.strips, 1);
                } catch (const std::bad_alloc&) {
                    throw Error("there is not enough memory for a run of the network");
                }
            } else {
                arena_ = std::move(arenas_.back());
                arenas_.pop_back();
            }
        }
        ~Lease() {
            const std::lock_guard<std::mutex> lock(impl_.arenas_mutex);
            arenas_.push_back(std::move(arena_));
        }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        Arena& arena() const { return *arena_; }

    private:
        const Impl& impl_;
        std::vector<std::unique_ptr<Arena>>& arenas_;
        std::unique_ptr<Arena> arena_;
    };

    Graph graph;
    const Kernels& kernels;
    Budget budget;
    Plan plan;
    std::string isa, json;
    uint32_t checksum = 0;
    std::vector<float> byte_scale, byte_shift;
    mutable std::optional<ThreadPool> pool;
    mutable std::mutex arenas_mutex;
    mutable std::vector<std::unique_ptr<Arena>> arenas_of_one, arenas_of_all;
};

namespace {

constexpr int kMostThreads = 1024;

Dimensions dimensions(const Shape& shape) { return {shape.channels, shape.height, shape.width}; }

void check_threads(int threads) {
    if (threads < 1 || threads > kMostThreads)
        throw Error("threads is " + std::to_string(threads) + ", but must be from 1 to " +
                    std::to_string(kMostThreads));
}

}  // namespace

Model::Model(const std::string& path, int threads, const std::string& instruction_set, const Limits& limits) {
    check_threads(threads);
    choose_kernels(instruction_set);  // what is wrong with these is no matter of the file
    try {
        *this = Model(Mapping(path).content(), threads, instruction_set, limits);
    } catch (const Error& error) {
        throw Error(path + ": " + error.what());
    }
}

Model::Model(std::span<const uint8_t> content, int threads, const std::string& instruction_set,
             const Limits& limits) {
    check_threads(threads);
    const Kernels& kernels = choose_kernels(instruction_set);
    try {
        const File file(content);
        Budget budget(limits, file.size(), file.weights());
        Graph graph = Graph::read(file, budget);
        impl_ = std::make_unique<Impl>(std::move(graph), kernels, threads, budget);
        impl_->json = file.graph();
        impl_->checksum = file.checksum();
    } catch (const std::bad_alloc&) {
        throw Error("there is not enough memory for it");
    }
}

uint32_t checksum(std::span<const uint8_t> content) { return File(content).checksum(); }

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

Dimensions Model::input() const { return dimensions(impl_->shape_of(0)); }
Dimensions Model::output() const { return dimensions(impl_->shape_of(impl_->graph.output)); }
size_t Model::input_size() const { return impl_->size_of(0); }
size_t Model::output_size() const { return impl_->size_of(impl_->graph.output); }
int Model::threads() const { return impl_->threads(); }
const std::string& Model::isa() const { return impl_->isa; }
const std::vector<std::string>& Model::classes() const { return impl_->graph.classes; }
const std::string& Model::graph() const { return impl_->json; }
bool Model::normalises() const { return !impl_->graph.mean.empty(); }
uint32_t Model::checksum() const { return impl_->checksum; }
double Model::macs() const { return impl_->budget.macs(); }

void Model::run(const float* images, size_t count, float* results) const {
    impl_->run(images, count, results);
}

void Model::run(const uint8_t* images, size_t count, float* results) const {
    if (!normalises())
        throw Error(
            "the file does not say how bytes become input (no mean and std): "
            "give float32, or pack the network with mean and std");
    impl_->run(images, count, results);
}

std::vector<NamedValue> Model::values(const float* image) const {
    std::vector<NamedValue> found;
    double bytes = impl_->plan.whole.bytes;
    for (size_t v = 0; v < impl_->plan.values.size(); ++v)
        bytes += sizeof(float) * static_cast<double>(impl_->size_of(static_cast<int>(v)));
    impl_->budget.check_run(bytes, "the values of the network");
    Arena arena(impl_->plan, impl_->plan.whole, 1);
    const auto add = [&](int value) {
        if (value < 0 || impl_->plan.values[static_cast<size_t>(value)].name.empty()) return;
        NamedValue& named = found.emplace_back();
        named.name = impl_->plan.values[static_cast<size_t>(value)].name;
        named.dimensions = dimensions(impl_->shape_of(value));
        named.data.resize(impl_->size_of(value));
        impl_->get(value, arena, named.data.data());
    };
    impl_->run_image(image, arena, false, [&](const Task* task) {
        if (!task) return add(0);
        const Stage& stage = impl_->plan.stages[static_cast<size_t>(task->index)];
        add(stage.real);
        add(stage.bits);
    });
    return found;
}

NamedValue Model::convolve(const std::string& name, const float* signs, const Dimensions& size) const {
    const auto& nodes = impl_->graph.nodes;
    const auto found = std::find_if(nodes.begin(), nodes.end(), [&](const Node& node) {
        return node.op == Op::binary_conv && node.name == name;
    });
    if (found == nodes.end()) throw Error("there is no binary_conv called " + quote(name));
    // A network of that one layer.
    const Shape in = impl_->shape_of(found->inputs[0]);
    Graph graph;
    graph.values = {{"x", in, false}, {"bits", in, true}, {"y", found->shape, false}};
    Node sign;
    sign.name = name;
    sign.inputs = {0};
    sign.shape = in;
    sign.sign = Sign{{}, std::vector<float>(static_cast<size_t>(in.channels)), 1};
    Node conv = *found;
    conv.inputs = {1};
    conv.then.clear();
    conv.sign.reset();
    conv.output = 2;
    graph.nodes = {std::move(sign), std::move(conv)};
    graph.output = 2;
    const Impl layer(std::move(graph), impl_->kernels, 1, impl_->budget.fresh());
    const Shape given{size.channels, size.height, size.width};
    if (given != in) throw Error(quote(name) + " takes " + to_string(in) + ", not " + to_string(given));
    if (std::any_of(signs, signs + layer.size_of(0), [](float x) { return x != 1 && x != -1; }))
        throw Error("the input of " + quote(name) + " must be -1 and +1");
    NamedValue result{name, dimensions(found->shape), std::vector<float>(layer.size_of(2))};
    layer.run(signs, 1, result.data.data());
    return result;
}

std::vector<StageTime> Model::profile(const float* image, int repeats) const {
    using Clock = std::chrono::steady_clock;
    std::vector<std::vector<double>> times(impl_->plan.stages.size() + 1);
    const bool split = impl_->splits();
    const Impl::Lease lease(*impl_, split);
    std::unique_lock<std::mutex> lock;
    if (split) lock = std::unique_lock(impl_->pool->mutex());
    for (int r = 0; r < repeats; ++r) {
        std::vector<double> spent(times.size());
        auto begin = Clock::now();
        impl_->run_image(image, lease.arena(), split, [&](const Task* task) {
            const auto end = Clock::now();
            // Moving rows counts for the stage that needs the room: the next.
            if (task && task->kind != Task::Kind::compute) return;
            spent[task ? static_cast<size_t>(task->index) + 1 : 0] +=
                std::chrono::duration<double>(end - begin).count();
            begin = end;
        });
        for (size_t s = 0; s < times.size(); ++s) times[s].push_back(spent[s]);
    }
    std::vector<StageTime> result;
    for (size_t s = 0; s < times.size(); ++s) {
        auto& t = times[s];
        std::sort(t.begin(), t.end());
        const double median = t.empty() ? 0 : t[t.size() / 2];
        if (s == 0) {
            result.push_back({"input", "input", median});
        } else {
            const Stage& stage = impl_->plan.stages[s - 1];
            result.push_back({stage.name, op_name(stage.op), median});
        }
    }
    return result;
}

}  // namespace bnew
