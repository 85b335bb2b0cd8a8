// The order in which stages are computed, and the buffers of their values: see docs/engine.md.

#pragma once

#include <vector>

#include "buffers.h"

namespace bnew {

// Rows first to last - 1.
struct Rows {
    int first = 0, last = 0;
    int count() const { return last - first; }
    bool operator==(const Rows&) const = default;
};

// The image row that is first in the buffer, for each value that a task reads or writes.
struct FirstRows {
    int in = 0, other = 0, real = 0, bits = 0;
};

struct Task {
    enum class Kind {
        compute,  // rows `first` to `last` - 1 of a stage
        move,     // those rows of a value: the first row of its buffer changes from `from` to `to`
        clear,    // those rows of a value, all in its border; the first row of its buffer is `to`
    };
    Kind kind = Kind::compute;
    int index = 0;  // of the stage, or of the value
    int band = 0;
    int first = 0, last = 0;
    FirstRows rows;
    int from = 0, to = 0;
};

// A segment in strips: the tasks of each band. Bands may run in parallel. Or one whole stage: one task.
struct Turn {
    std::vector<std::vector<Task>> bands;
};

// Turns, which run one after the other.
struct Schedule {
    std::vector<Buffer> buffers;  // of each value
    std::vector<Turn> turns;
    double bytes = 0;        // memory of a run, checked before it is allocated; cannot overflow
    size_t arena_bytes = 0;  // the same as a whole number, valid after that check
};

}  // namespace bnew
