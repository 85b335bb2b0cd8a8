// Converts images to the input of a run, and values to the caller's layout.

#pragma once

#include <cstdint>
#include <vector>

#include "arena.h"
#include "graph.h"
#include "pool.h"

namespace bnew {

class Images {
public:
    explicit Images(const Graph& graph);

    // Copies an image into the arena's input, on all threads if there is a pool. Throws Error if a number is
    // not finite.
    void set(const float* image, const Arena& arena, ThreadPool* pool) const;    // NCHW
    void set(const uint8_t* image, const Arena& arena, ThreadPool* pool) const;  // NHWC, normalised

private:
    template <class Input>
    void set_all(const Input* image, const Arena& arena, ThreadPool* pool) const;
    bool set_rows(const float* image, int first, int last, const RealView& to) const;
    bool set_rows(const uint8_t* image, int first, int last, const RealView& to) const;

    Shape shape_;
    std::vector<float> byte_scale_, byte_shift_;
};

// Copies a value as NCHW, bits as -1 and +1. Its buffer must hold all rows.
void get(const Value& value, int index, const Arena& arena, float* to);

}  // namespace bnew
