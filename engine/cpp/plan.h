// From a graph to what runs: stages, each an operator with its epilogue, and the buffers between them.

#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "graph.h"
#include "kernels.h"

namespace bnew {

constexpr size_t kAlignment = 64;

template <class T>
struct AlignedAllocator {
    using value_type = T;
    AlignedAllocator() = default;
    template <class U>
    AlignedAllocator(const AlignedAllocator<U>&) {}
    T* allocate(size_t n) {
        return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(kAlignment)));
    }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(kAlignment)); }
    bool operator==(const AlignedAllocator&) const { return true; }
};

template <class T>
using Aligned = std::vector<T, AlignedAllocator<T>>;

// Where a value lies in the arena of a run. Around the image is a border for the padding of its readers.
struct Buffer {
    Shape shape;
    bool bits = false;
    int top = 0, left = 0, bottom = 0, right = 0;
    int rows = 0;                // that the buffer holds: all and the border's, or as many as a strip needs
    int64_t pixel = 0, row = 0;  // floats, or bytes of bits
    // Each of the bands that compute the value has a buffer of its own, the first at `offset`.
    size_t offset = 0, bytes = 0;
    int bands = 1;

    bool has_border() const { return top || left || bottom || right; }
    int64_t row_bytes() const { return row * (bits ? 1 : static_cast<int64_t>(sizeof(float))); }
};

// Whether the operator is computed whole and has no epilogue; a kernel computes the others part by part.
bool is_plain(Op op);

struct Stage {
    Op op;
    std::string name;
    int node = -1;  // of the graph; -1 for one that the planner put in
    std::vector<int> inputs;
    Shape shape;                           // of the result
    int real = -1, bits = -1, other = -1;  // values written, and joined

    // Views are filled in when a run binds the stage to its arena.
    Epilogue epilogue;
    BinaryConv binary;
    RealConv conv;
    Pool pool;

    // What the pointers above point to.
    std::vector<Aligned<float>> numbers;
    Aligned<uint8_t> weights;
    std::vector<int32_t> classes[2];
    std::vector<int32_t> edges[4];
    std::vector<float> places[2];
};

// The row of its image that lies first in a buffer, for each value that a task has to do with.
struct FirstRows {
    int in = 0, other = 0, real = 0, bits = 0;
};

struct Task {
    enum class Kind {
        compute,  // rows `first` to `last` - 1 of a stage
        move,     // those rows of a value, when its buffer begins with row `to` where it began with `from`
        clear,    // those rows of a value, all in its border; its buffer begins with row `to`
    };
    Kind kind = Kind::compute;
    int index = 0;  // of the stage, or of the value
    int band = 0;
    int first = 0, last = 0;
    FirstRows rows;
    int from = 0, to = 0;
};

// Tasks one after the other.
using Strand = std::vector<Task>;

// Buffers, and in which order what is computed into them: step after step, the strands of a step side by side
// if there are threads for them.
struct Layout {
    std::vector<Buffer> buffers;  // of each value
    std::vector<std::vector<Strand>> steps;
    double bytes = 0;        // that a run takes, to be checked before they are
    size_t arena_bytes = 0;  // the same, if it is that little
};

struct Plan {
    std::vector<Stage> stages;
    std::vector<Value> values;  // the graph's, then the planner's own
    // Stages with large results run in turns, some rows at a time, so that what one writes is still in the
    // cache when the next reads it, and their buffers hold no more rows than that takes.
    Layout strips;
    // For several threads on one image: such stages are cut into a band of rows for each, in strips again.
    Layout bands;
    // Stage after stage, every value there in full when its stage has run.
    Layout whole;
    size_t scratch_bytes = 0;  // of each thread
};

// Throws Error if the network needs more memory or work than the budget has.
Plan make_plan(const Graph& graph, const Kernels& kernels, int threads, Budget& budget);

}  // namespace bnew
