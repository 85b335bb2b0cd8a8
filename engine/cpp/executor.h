// Runs the schedule of an arena, on one thread or on all.

#pragma once

#include <functional>
#include <optional>

#include "arena.h"
#include "plan.h"
#include "pool.h"

namespace bnew {

class Executor {
public:
    // Plan and kernels must outlive the executor. Throws Error if the threads cannot be started.
    Executor(const Plan& plan, const Kernels& kernels, int threads);

    int threads() const { return pool_ ? pool_->threads() : 1; }
    // The threads. Null if there is only the caller, or in a forked process, which does not have the threads.
    ThreadPool* pool() const { return pool_ && pool_->is_here() ? &*pool_ : nullptr; }

    // Computes the image whose input is in the arena; with a pool, on all its threads. The caller must hold
    // the pool's mutex. Calls `after` at the end of each task of a turn's first band.
    using AfterTask = std::function<void(const Task&)>;
    void run(const Arena& arena, ThreadPool* pool, const AfterTask& after = {}) const;

private:
    void run_band(const std::vector<Task>& tasks, const Arena& arena, int thread,
                  const AfterTask& after) const;
    void run_part(const Task& task, const Arena& arena, int i, int n, int thread) const;
    bool is_worth_splitting(const Task& task) const;
    const Stage& stage_of(const Task& task) const { return plan_.stages[static_cast<size_t>(task.index)]; }

    const Plan& plan_;
    const Kernels& kernels_;
    mutable std::optional<ThreadPool> pool_;
};

}  // namespace bnew
