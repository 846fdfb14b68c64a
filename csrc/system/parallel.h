// The same work on many things, on several threads.
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

// Threads that work together again and again.
class Team {
  public:
    // Up to `size` threads, the calling one among them: fewer where the system gives no more. Nothing is left behind
    // when the team goes, so that a process may fork.
    explicit Team(size_t size);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    size_t size() const { return threads_.size() + 1; }

    // Calls `work(i, member)` for 0 <= i < count; calls of one member, a number below size(), come one after another,
    // with growing i. The first exception, of whichever thread, is thrown again here, when no member works any more. A
    // call that is stopped (interrupt.h) is stopped on all threads.
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

    // Each in a cache line of its own, for all threads look at them.
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<uint32_t> inside_{0};  // twice the helpers at work, plus one as long as more may come
    alignas(64) std::atomic<size_t> next_{0};
    alignas(64) std::vector<std::thread> threads_;
};

// The same once, on up to `threads` threads.
void run_parallel(size_t count, size_t threads, const std::function<void(size_t i, size_t member)>& work);

}  // namespace llmfast
