#include "executor.h"

#include <algorithm>

#include "ops/operator.h"

namespace bnew {
namespace {

// Part i of n of a task: a share of its pixels if there are enough of them, else a share of the channels.
Part part_of(const Stage& stage, const Task& task, int i, int n) {
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

}  // namespace

const Shape& Call::shape(size_t i) const { return plan.values[static_cast<size_t>(stage.inputs[i])].shape; }

// The task knows the first row in the first input's buffer. The buffers of other inputs hold all rows.
RealView Call::real(size_t i) const {
    return i == 0 ? arena.real(stage.inputs[0], task.rows.in, task.band) : arena.real(stage.inputs[i]);
}

BitsView Call::bits(size_t i) const {
    return i == 0 ? arena.bits(stage.inputs[0], task.rows.in, task.band) : arena.bits(stage.inputs[i]);
}

Executor::Executor(const Plan& plan, const Kernels& kernels, int threads) : plan_(plan), kernels_(kernels) {
    if (threads > 1) pool_.emplace(threads);
}

// Whether the task is long enough to wake other threads for it, which takes about a microsecond.
bool Executor::is_worth_splitting(const Task& task) const {
    const Stage& stage = stage_of(task);
    constexpr double kLeast = 4000;  // nanoseconds
    const double results = 1.0 * stage.shape.channels * stage.shape.width * (task.last - task.first);
    return stage.op->fused && stage.nanoseconds * results > kLeast;
}

// Computes part i of n of the task.
void Executor::run_part(const Task& task, const Arena& arena, int i, int n, int thread) const {
    const Stage& stage = stage_of(task);
    const Part part = part_of(stage, task, i, n);
    if (part.first_pixel == part.last_pixel || part.first_group == part.last_group) return;
    Epilogue e = stage.epilogue;
    if (stage.real >= 0) e.real = arena.real(stage.real, task.rows.real, task.band);
    if (stage.bits >= 0) e.bits = arena.bits(stage.bits, task.rows.bits, task.band);
    if (stage.other >= 0) {
        e.other = arena.real(stage.other, task.rows.other, task.band);
        const Shape& other = plan_.values[static_cast<size_t>(stage.other)].shape;
        if (other.height == 1 && other.width == 1) e.other.row = e.other.pixel = 0;
    }
    stage.op->run({kernels_, stage, e, part, arena.scratch(thread), plan_, task, arena});
}

void Executor::run_band(const std::vector<Task>& tasks, const Arena& arena, int thread,
                        const AfterTask& after) const {
    for (const Task& task : tasks) {
        switch (task.kind) {
            case Task::Kind::compute: run_part(task, arena, 0, 1, thread); break;
            case Task::Kind::move:
            case Task::Kind::clear: arena.run(task); break;
        }
        if (after) after(task);
    }
}

void Executor::run(const Arena& arena, ThreadPool* pool, const AfterTask& after) const {
    static const AfterTask nothing;
    for (const Turn& turn : arena.schedule().turns) {
        const auto& bands = turn.bands;
        const Task& first = bands[0][0];
        if (pool && bands.size() > 1) {
            pool->run(
                [&](int i) { run_band(bands[static_cast<size_t>(i)], arena, i, i == 0 ? after : nothing); });
            if (after) after(bands[0].back());  // again: the wait for other bands counts for the last task
        } else if (pool && is_worth_splitting(first)) {
            const int n = pool->threads();
            pool->run([&](int i) { run_part(first, arena, i, n, i); });
            if (after) after(first);
        } else {
            for (const auto& band : bands) run_band(band, arena, 0, &band == bands.data() ? after : nothing);
        }
    }
}

}  // namespace bnew
