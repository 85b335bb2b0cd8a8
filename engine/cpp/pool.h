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

    // Calls work(i) for every i below the number of threads, each on its own thread; returns when all are
    // done. The caller holds mutex(). Work must not throw.
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
    uint32_t next_round(uint32_t round);
    void loop(int index);

    std::mutex mutex_;
    Function function_ = nullptr;
    const void* work_ = nullptr;
    // What one side writes while the other looks at it has a cache line of its own.
    alignas(64) std::atomic<uint32_t> round_ = 0;
    std::atomic<bool> ending_ = false;
    alignas(64) std::atomic<int> pending_ = 0;
    alignas(64) std::atomic<int> sleeping_ = 0;
    std::mutex sleep_mutex_;
    std::condition_variable wake_;
    int process_;
    std::vector<std::thread> workers_;
};

}  // namespace bnew
