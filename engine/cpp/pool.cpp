#include "pool.h"

#include <unistd.h>

#include <new>
#include <string>

#include "include/bnew_engine.h"

namespace bnew {
namespace {

constexpr int kSpins = 20000;  // before a worker sleeps: half a millisecond or so
constexpr int kPolite = 2000;  // before the caller lets others run on its core between looks

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : process_(getpid()) {
    workers_.reserve(static_cast<size_t>(threads));
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { loop(i); });
    } catch (const std::exception&) {
        end();
        throw Error("only " + std::to_string(workers_.size() + 1) + " of " + std::to_string(threads) +
                    " threads could be started: ask for fewer");
    }
}

ThreadPool::~ThreadPool() {
    if (is_here()) {
        end();
        return;
    }
    // Nothing is there to be joined, and a thread that can be joined must not be destroyed; nor a condition
    // that the parent's threads wait for, as that would wait for them.
    for (std::thread& worker : workers_) new (&worker) std::thread;
    new (&wake_) std::condition_variable;
}

void ThreadPool::end() {
    ending_ = true;
    begin_round();
    for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::is_here() const { return getpid() == process_; }

// A worker counts itself as sleeping before it looks at the round for the last time, and the round changes
// before the sleeping are counted: so one of both sees the other, and nobody is woken who does not sleep,
// which would be a call into the kernel every time.
void ThreadPool::begin_round() {
    round_.fetch_add(1);
    if (sleeping_.load() == 0) return;
    const std::lock_guard<std::mutex> lock(sleep_mutex_);
    wake_.notify_all();
}

uint32_t ThreadPool::next_round(uint32_t round) {
    for (int i = 0; i < kSpins; ++i) {
        if (const uint32_t now = round_.load(std::memory_order_acquire); now != round) return now;
        relax();
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return round_.load() != round; });
    sleeping_.fetch_sub(1);
    return round_.load();
}

void ThreadPool::run(Function function, const void* work) {
    function_ = function;
    work_ = work;
    pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    begin_round();
    function(work, 0);
    for (int i = 0; pending_.load(std::memory_order_acquire) != 0; ++i) {
        if (i < kPolite) {
            relax();
        } else {
            std::this_thread::yield();
        }
    }
}

void ThreadPool::loop(int index) {
    uint32_t round = 0;
    while (true) {
        round = next_round(round);
        if (ending_) return;
        function_(work_, index);
        pending_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace bnew
