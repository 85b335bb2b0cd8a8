// The memory of a run.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels.h"
#include "schedule.h"

namespace bnew {

// Stages first to last - 1 of a plan, computed in strips.
struct Segment {
    int first = 0, last = 0;
};

// Gives each buffer of the schedule its offset in the arena.
void place_buffers(Schedule& schedule, const Plan& plan, const std::vector<Segment>& segments);

// Zeroed memory whose pages take no space until they are written.
class Zeros {
public:
    explicit Zeros(size_t size);
    uint8_t* data() const;

private:
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    std::unique_ptr<uint8_t, Free> memory_;
};

class Arena {
public:
    // Each thread has scratch memory of its own. The schedule must outlive the arena.
    Arena(const Schedule& schedule, size_t scratch_bytes, int threads);

    const Schedule& schedule() const { return schedule_; }
    uint8_t* scratch(int thread) const {
        return scratch_.data() + scratch_bytes_ * static_cast<size_t>(thread);
    }

    // A view of a value's image, where `first_row` is the first row in the band's buffer.
    RealView real(int value, int first_row, int band) const;
    BitsView bits(int value, int first_row, int band) const;
    // The same for a value whose buffer holds all rows.
    RealView real(int value) const { return real(value, -buffer(value).border.top, 0); }
    BitsView bits(int value) const { return bits(value, -buffer(value).border.top, 0); }

    // Runs a task that moves or clears rows of a value.
    void run(const Task& task) const;

private:
    const Buffer& buffer(int value) const { return schedule_.buffers[static_cast<size_t>(value)]; }
    uint8_t* memory_of(const Buffer& buffer, int band) const;
    uint8_t* origin(const Buffer& buffer, int first_row, int band) const;

    const Schedule& schedule_;
    Zeros values_;
    size_t scratch_bytes_;  // of each thread
    Zeros scratch_;
};

}  // namespace bnew
