// In which order stages are computed, and into what: see docs/engine.md.

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

// A segment in strips: the tasks of each band, which may run side by side. Or one whole stage: one task.
struct Turn {
    std::vector<std::vector<Task>> bands;
};

// Turns, one after the other.
struct Schedule {
    std::vector<Buffer> buffers;  // of each value
    std::vector<Turn> turns;
    double bytes = 0;        // that a run takes, to be checked before they are
    size_t arena_bytes = 0;  // the same, if it is that little
};

}  // namespace bnew
