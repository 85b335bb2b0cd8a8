// Threads that wait for work. There is one barrier per stage, so they spin for a while before they sleep.

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

    // Calls work(i) for every i below the number of threads, and returns when all are done. The first free
    // thread claims the next i. So the caller does the parts of a thread whose core is busy with another
    // program. The caller must hold mutex(). Work must not throw.
    template <class Work>
    void run(const Work& work) {
        run([](const void* w, int i) { (*static_cast<const Work*>(w))(i); }, &work);
    }

    std::mutex& mutex() { return mutex_; }
    int threads() const { return static_cast<int>(workers_.size()) + 1; }
    // Whether this process has the threads: a fork does not.
    bool is_here() const;

private:
    using Function = void (*)(const void*, int);
    void run(Function function, const void* work);
    void begin_round();
    void end();
    // Claims parts of the round and computes them until none are left.
    void work_on(uint32_t round);
    uint32_t next_round(uint32_t round);
    void loop();

    std::mutex mutex_;
    Function function_ = nullptr;
    const void* work_ = nullptr;
    // Numbers that one thread writes while others read them have a cache line of their own.
    // The upper half is the round, the lower half the next part to claim. They are one number, so that a late
    // thread cannot claim a part of a newer round.
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
