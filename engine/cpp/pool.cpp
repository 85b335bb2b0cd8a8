#include "pool.h"

#include <unistd.h>

#include <new>

namespace bnew {
namespace {

constexpr int kSpins = 20000;  // some tens of microseconds

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`.
template <class T>
T wait_for_change(const std::atomic<T>& value, T old) {
    for (int i = 0; i < kSpins; ++i) {
        const T now = value.load(std::memory_order_acquire);
        if (now != old) return now;
        relax();
    }
    value.wait(old, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : process_(getpid()) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { loop(i); });
}

ThreadPool::~ThreadPool() {
    if (!is_here()) {
        // Nothing is there to be joined, and a thread that can be joined must not be destroyed.
        for (std::thread& worker : workers_) new (&worker) std::thread;
        return;
    }
    ending_ = true;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::is_here() const { return getpid() == process_; }

void ThreadPool::run(Function function, const void* work) {
    function_ = function;
    work_ = work;
    pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    function(work, 0);
    for (int left = pending_.load(std::memory_order_acquire); left != 0;)
        left = wait_for_change(pending_, left);
}

void ThreadPool::loop(int index) {
    uint32_t round = 0;
    while (true) {
        round = wait_for_change(round_, round);
        if (ending_) return;
        function_(work_, index);
        pending_.fetch_sub(1, std::memory_order_acq_rel);
        pending_.notify_one();
    }
}

}  // namespace bnew
