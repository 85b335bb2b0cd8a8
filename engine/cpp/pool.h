// Threads that wait for work: one barrier a stage, so they spin a little before they sleep.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace bnew {

class ThreadPool {
public:
    // The caller is one of the threads. Throws Error if they cannot be started.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // Calls work(i) for every i below the number of threads, and returns when all are done. Each i is claimed
    // by the thread that comes first, so that the caller does what others do not come to, as when their core
    // is taken by another program. The caller holds mutex(). Work must not throw.
    template <class Work>
    void run(const Work& work) {
        run([](const void* w, int i) { (*static_cast<const Work*>(w))(i); }, &work);
    }

    std::mutex& mutex() { return mutex_; }
    int threads() const { return static_cast<int>(workers_.size()) + 1; }
    // Whether the threads are those of this process: a fork has none of them.
    bool is_here() const;

private:
    using Function = void (*)(const void*, int);
    void run(Function function, const void* work);
    void begin_round();
    void end();
    // Claims parts of the round and does them, until there are no more.
    void work_on(uint32_t round);
    uint32_t next_round(uint32_t round);
    void loop();

    std::mutex mutex_;
    Function function_ = nullptr;
    const void* work_ = nullptr;
    // What one side writes while the other looks at it has a cache line of its own.
    // The round in the upper half, and in the lower the part that is claimed next. As one number, so that a
    // thread which comes late cannot claim a part of a round that it does not know.
    alignas(64) std::atomic<uint64_t> claims_ = 0;
    std::atomic<bool> ending_ = false;
    alignas(64) std::atomic<int> pending_ = 0;  // parts not done
    alignas(64) std::atomic<int> sleeping_ = 0;
    std::mutex sleep_mutex_;
    std::condition_variable wake_;
    int process_;
    std::vector<std::thread> workers_;
};

}  // namespace bnew
