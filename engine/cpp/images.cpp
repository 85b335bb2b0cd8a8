#include "images.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "include/bnew_error.h"
#include "ops/pixels.h"
#include "text.h"

namespace bnew {

Images::Images(const Graph& graph, size_t index)
    : index_(static_cast<int>(index)), what_("the input"), shape_(graph.values[index].shape) {
    if (graph.inputs.size() > 1) what_ += " " + quote(graph.values[index].name);
    const auto& [mean, std] = graph.inputs[index];
    // (b / 255 - mean) / std = b / (255 std) - mean / std
    for (size_t c = 0; c < mean.size(); ++c) {
        byte_scale_.push_back(static_cast<float>(1 / (255.0 * std[c])));
        byte_shift_.push_back(static_cast<float>(-double{mean[c]} / std[c]));
    }
}

// Copies rows first to last - 1. Returns whether all numbers are finite.
bool Images::set_rows(const float* image, int first, int last, const RealView& view) const {
    const int64_t width = shape_.width, plane = shape_.height * width;
    int wrong = 0;
    for (int y = first; y < last; ++y) {
        const float* from = image + y * width;
        float* to = pixel(view, y, 0);
        for (int c = 0; c < shape_.channels; ++c)
            for (int64_t x = 0; x < width; ++x)
                wrong += !(std::fabs(from[c * plane + x]) <= std::numeric_limits<float>::max());
        if (shape_.channels == 3 && view.pixel == 3) {  // the usual case, in one pass
            for (int64_t x = 0; x < width; ++x) {
                to[3 * x] = from[x];
                to[3 * x + 1] = from[plane + x];
                to[3 * x + 2] = from[2 * plane + x];
            }
        } else {
            for (int c = 0; c < shape_.channels; ++c)
                for (int64_t x = 0; x < width; ++x) to[x * view.pixel + c] = from[c * plane + x];
        }
    }
    return wrong == 0;
}

bool Images::set_rows(const uint8_t* image, int first, int last, const RealView& view) const {
    image += int64_t{first} * shape_.width * shape_.channels;
    for (int y = first; y < last; ++y)
        for (int x = 0; x < shape_.width; ++x) {
            float* to = pixel(view, y, x);
            for (int c = 0; c < shape_.channels; ++c, ++image)
                to[c] = std::fma(static_cast<float>(*image), byte_scale_[static_cast<size_t>(c)],
                                 byte_shift_[static_cast<size_t>(c)]);
        }
    return true;
}

template <class Input>
void Images::set_all(const Input* image, const Arena& arena, ThreadPool* pool) const {
    constexpr int64_t kLeast = 10000;  // numbers; with fewer, waking other threads takes longer
    const RealView view = arena.real(index_);
    std::atomic<bool> finite = true;
    const auto set = [&](int i, int n) {
        const int first = static_cast<int>(int64_t{shape_.height} * i / n);
        const int last = static_cast<int>(int64_t{shape_.height} * (i + 1) / n);
        if (!set_rows(image, first, last, view)) finite = false;
    };
    if (pool && int64_t{shape_.channels} * shape_.height * shape_.width > kLeast) {
        const int n = pool->threads();
        pool->run([&](int i) { set(i, n); });
    } else {
        set(0, 1);
    }
    if (!finite) throw Error(what_ + " has numbers that are not finite");
}

void Images::set(const float* image, const Arena& arena, ThreadPool* pool) const {
    set_all(image, arena, pool);
}

void Images::set(const uint8_t* image, const Arena& arena, ThreadPool* pool) const {
    set_all(image, arena, pool);
}

void get(const Value& value, int index, const Arena& arena, float* to) {
    for (int c = 0; c < value.shape.channels; ++c) {
        each_pixel(value.shape, [&](int y, int x) {
            if (value.bits) {
                const bool set = pixel(arena.bits(index), y, x)[c / 8] >> c % 8 & 1;
                *to++ = set ? 1.0f : -1.0f;
            } else {
                *to++ = pixel(arena.real(index), y, x)[c];
            }
        });
    }
}

}  // namespace bnew
