#include "pool.h"

#include <unistd.h>

#include <new>
#include <string>

#include "include/bnew_error.h"

namespace bnew {
namespace {

constexpr int kSpins = 20000;  // before a worker sleeps: about half a millisecond
constexpr int kPolite = 2000;  // before the waiting caller starts to yield its core

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
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { loop(); });
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
    // In a fork there are no threads to join, but destroying a joinable std::thread aborts the process.
    // Destroying the condition variable would wait for the parent's threads. So both are replaced.
    for (std::thread& worker : workers_) new (&worker) std::thread;
    new (&wake_) std::condition_variable;
}

void ThreadPool::end() {
    ending_ = true;
    begin_round();
    for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::is_here() const { return getpid() == process_; }

// A worker first counts itself as sleeping and then reads the round once more. This function first changes
// the round and then reads the count. So at least one of them sees the other's change. If nobody sleeps, no
// system call is made.
void ThreadPool::begin_round() {
    claims_.store(((claims_.load(std::memory_order_relaxed) >> 32) + 1) << 32);
    if (sleeping_.load() == 0) return;
    const std::lock_guard<std::mutex> lock(sleep_mutex_);
    wake_.notify_all();
}

uint32_t ThreadPool::next_round(uint32_t round) {
    const auto now = [&] { return static_cast<uint32_t>(claims_.load() >> 32); };
    for (int i = 0; i < kSpins; ++i) {
        if (now() != round) return now();
        relax();
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return now() != round; });
    sleeping_.fetch_sub(1);
    return now();
}

// A thread that has claimed a part may read the work: the caller does not change it until all parts are done.
void ThreadPool::work_on(uint32_t round) {
    const auto parts = static_cast<uint32_t>(threads());
    uint64_t claim = claims_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(claim >> 32) == round && static_cast<uint32_t>(claim) < parts) {
        if (!claims_.compare_exchange_weak(claim, claim + 1, std::memory_order_acq_rel)) continue;
        function_(work_, static_cast<int>(static_cast<uint32_t>(claim)));
        pending_.fetch_sub(1, std::memory_order_release);
        claim = claims_.load(std::memory_order_acquire);
    }
}

void ThreadPool::run(Function function, const void* work) {
    function_ = function;
    work_ = work;
    pending_.store(threads(), std::memory_order_relaxed);
    begin_round();
    work_on(static_cast<uint32_t>(claims_.load(std::memory_order_relaxed) >> 32));
    for (int i = 0; pending_.load(std::memory_order_acquire) != 0; ++i) {
        if (i < kPolite) {
            relax();
        } else {
            std::this_thread::yield();
        }
    }
}

void ThreadPool::loop() {
    uint32_t round = 0;
    while (true) {
        round = next_round(round);
        if (ending_) return;
        work_on(round);
    }
}

}  // namespace bnew
