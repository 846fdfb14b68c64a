// Runs the same work for many items on several threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "system/interrupt.h"

namespace llmfast {

// Threads that run one parallel loop after another.
class Team {
  public:
    // Up to `size` threads, including the calling one; fewer if the system provides no more. The destructor ends them,
    // so that the process may fork afterwards.
    explicit Team(size_t size);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    size_t size() const { return threads_.size() + 1; }

    // Calls `work(i, member)` for 0 <= i < count. `member` < size() is the number of the thread, whose calls have
    // ascending i. The first exception of any thread is rethrown here when all threads have ended their work. A call
    // that is stopped (interrupt.h) is stopped on all threads.
    void run(size_t count, const std::function<void(size_t i, size_t member)>& work);

  private:
    void serve(size_t member);
    bool enter();
    void loop(size_t member);
    void fail();
    void wait_for_others();

    Interrupt* interrupt_ = nullptr;  // of the caller
    const std::function<void(size_t, size_t)>* work_ = nullptr;
    size_t count_ = 0;
    std::exception_ptr failure_;
    std::mutex failing_;
    std::atomic<bool> stopped_{false};

    // Each is in a cache line of its own, since all threads access them.
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<uint32_t> inside_{0};  // twice the number of helpers at work, plus one while more may join
    alignas(64) std::atomic<size_t> next_{0};
    alignas(64) std::vector<std::thread> threads_;
};

// Runs one such loop on up to `threads` threads.
void run_parallel(size_t count, size_t threads, const std::function<void(size_t i, size_t member)>& work);

}  // namespace llmfast
