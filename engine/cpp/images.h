// Converts images to an input of a run, and values to the caller's layout.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arena.h"
#include "graph.h"
#include "pool.h"

namespace bnew {

class Images {
public:
    // For input `index` of the graph.
    Images(const Graph& graph, size_t index);

    // Copies an image into this input of the arena, on all threads if there is a pool. Throws Error if a
    // number is not finite.
    void set(const float* image, const Arena& arena, ThreadPool* pool) const;    // NCHW
    void set(const uint8_t* image, const Arena& arena, ThreadPool* pool) const;  // NHWC, normalised

private:
    template <class Input>
    void set_all(const Input* image, const Arena& arena, ThreadPool* pool) const;
    bool set_rows(const float* image, int first, int last, const RealView& to) const;
    bool set_rows(const uint8_t* image, int first, int last, const RealView& to) const;

    int index_;
    std::string what_;  // begins messages
    Shape shape_;
    std::vector<float> byte_scale_, byte_shift_;
};

// Copies a value as NCHW, bits as -1 and +1. Its buffer must hold all rows.
void get(const Value& value, int index, const Arena& arena, float* to);

}  // namespace bnew
