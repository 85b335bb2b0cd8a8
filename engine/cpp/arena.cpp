#include "arena.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "aligned.h"
#include "plan.h"

namespace bnew {
namespace {

size_t index(int i) { return static_cast<size_t>(i); }

// Whether a value shares memory with others. Bits and values with a border do not: a border is cleared only
// once and must stay clear. The values of strips do not either: they lie close together.
bool shares(const Buffer& buffer) { return !buffer.bits && buffer.border.empty() && !buffer.in_strips; }

// The last stage that needs each value. Values that a segment reads or writes live until its end, which is
// end[s] for each of its stages s.
std::vector<int> last_uses(const Plan& plan, const std::vector<int>& end) {
    const Uses uses(plan);
    std::vector<int> last_use(plan.values.size(), -1);
    for (size_t v = 0; v < uses.readers.size(); ++v)
        for (int s : uses.readers[v]) last_use[v] = std::max(last_use[v], end[index(s)]);
    for (size_t s = 0; s < plan.stages.size(); ++s)
        if (const int real = plan.stages[s].real; real >= 0)
            last_use[index(real)] = std::max(last_use[index(real)], end[s]);
    for (int output : plan.outputs) last_use[index(output)] = static_cast<int>(plan.stages.size());
    return last_use;
}

// Places each value into the first gap between the values that live at the same time. Returns the total size
// in bytes.
size_t place_shared(std::vector<Buffer>& buffers, const Plan& plan, const std::vector<Segment>& segments) {
    std::vector<int> begin(plan.stages.size()), end(plan.stages.size());
    for (size_t s = 0; s < plan.stages.size(); ++s) begin[s] = end[s] = static_cast<int>(s);
    for (const Segment& segment : segments) {
        for (int s = segment.first; s < segment.last; ++s) {
            begin[index(s)] = segment.first;
            end[index(s)] = segment.last - 1;
        }
    }
    const std::vector<int> last_use = last_uses(plan, end);
    std::vector<int> live;  // by offset
    size_t total = 0;
    const auto take = [&](int v) {
        Buffer& own = buffers[index(v)];
        size_t offset = 0;
        for (int other : live) {
            if (buffers[index(other)].offset >= offset + own.bytes) break;
            offset = std::max(offset, buffers[index(other)].offset + buffers[index(other)].bytes);
        }
        own.offset = offset;
        total = std::max(total, offset + own.bytes);
        live.insert(std::find_if(live.begin(), live.end(),
                                 [&](int other) { return buffers[index(other)].offset > offset; }),
                    v);
    };
    for (size_t v = 0; v < plan.inputs; ++v)
        if (shares(buffers[v])) take(static_cast<int>(v));
    for (size_t s = 0; s < plan.stages.size(); ++s) {
        std::erase_if(live, [&](int v) { return last_use[index(v)] < begin[s]; });
        if (const int real = plan.stages[s].real; real >= 0 && shares(buffers[index(real)])) take(real);
    }
    return total;
}

}  // namespace

void place_buffers(Schedule& schedule, const Plan& plan, const std::vector<Segment>& segments) {
    for (Buffer& made : schedule.buffers)
        made.bytes = static_cast<size_t>(round_up(made.rows * made.row_bytes() + kSlack, kAlignment));
    size_t end = place_shared(schedule.buffers, plan, segments);
    schedule.bytes = static_cast<double>(end);
    for (Buffer& made : schedule.buffers) {
        if (shares(made)) continue;
        made.offset = end;
        end += made.bytes * index(made.bands);
        schedule.bytes += static_cast<double>(made.bytes) * made.bands;
    }
    schedule.arena_bytes = end;
}

Zeros::Zeros(size_t size) : memory_(static_cast<uint8_t*>(std::calloc(size + kAlignment, 1))) {
    if (!memory_) throw std::bad_alloc();
}

uint8_t* Zeros::data() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (kAlignment - address % kAlignment) % kAlignment;
}

Arena::Arena(const Schedule& schedule, size_t scratch_bytes, int threads)
    : schedule_(schedule),
      values_(schedule.arena_bytes),
      scratch_bytes_(static_cast<size_t>(round_up(static_cast<int64_t>(scratch_bytes), kAlignment))),
      scratch_(scratch_bytes_ * static_cast<size_t>(threads)) {}

// The band's buffer of a value.
uint8_t* Arena::memory_of(const Buffer& buffer, int band) const {
    const size_t others = buffer.bands > 1 ? static_cast<size_t>(band) * buffer.bytes : 0;
    return values_.data() + buffer.offset + others;
}

// The address of pixel (0, 0).
uint8_t* Arena::origin(const Buffer& buffer, int first_row, int band) const {
    const int64_t border = buffer.border.left * buffer.pixel - first_row * buffer.row;
    return memory_of(buffer, band) + border * (buffer.bits ? 1 : 4);
}

RealView Arena::real(int value, int first_row, int band) const {
    const Buffer& of = buffer(value);
    return {reinterpret_cast<float*>(origin(of, first_row, band)), of.row, of.pixel};
}

BitsView Arena::bits(int value, int first_row, int band) const {
    const Buffer& of = buffer(value);
    return {origin(of, first_row, band), of.row, of.pixel};
}

void Arena::run(const Task& task) const {
    const Buffer& of = buffer(task.index);
    const int64_t bytes = of.row_bytes();
    uint8_t* memory = memory_of(of, task.band);
    uint8_t* to = memory + (task.first - task.to) * bytes;
    const size_t size = static_cast<size_t>((task.last - task.first) * bytes);
    switch (task.kind) {
        case Task::Kind::clear: std::memset(to, 0, size); return;
        case Task::Kind::move: std::memmove(to, memory + (task.first - task.from) * bytes, size); return;
        case Task::Kind::compute: break;
    }
    std::abort();
}

}  // namespace bnew
