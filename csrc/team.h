// A few threads that work on the same task together, again and again.

#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace llmfast {

class Team {
public:
    // Has fewer members where the system gives no more threads.
    explicit Team(unsigned size) : failures_(size) {
        threads_.reserve(size);
        try {
            for (unsigned member = 1; member < size; ++member) threads_.emplace_back([this, member] { serve(member); });
        } catch (const std::system_error&) {
            failures_.resize(threads_.size() + 1);
        }
    }
    ~Team() {
        task_ = nullptr;
        begin_round();
        for (std::thread& thread : threads_) thread.join();
    }
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    unsigned size() const { return static_cast<unsigned>(failures_.size()); }

    // Calls task(0) to task(size() - 1) at the same time, the first on the calling thread, and waits for all.
    // An exception of one of them is thrown here.
    void run(const std::function<void(unsigned)>& task) {
        task_ = &task;
        working_ = static_cast<std::uint32_t>(threads_.size());
        if (!threads_.empty()) begin_round();
        attempt(0);
        for (std::uint32_t left = working_; left != 0; left = working_) wait(working_, left);
        std::exception_ptr first;
        for (std::exception_ptr& failure : failures_) {
            if (std::exception_ptr thrown = std::exchange(failure, nullptr); !first) first = thrown;
        }
        if (first) std::rethrow_exception(first);
    }

private:
    // What follows is mostly a matter of microseconds, waking a thread one of tens: look for a while before sleeping.
    static void wait(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
        for (int i = 0; i < 4000; ++i) {
            if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__) || defined(_M_X64)
            _mm_pause();
#endif
        }
        value.wait(old);
    }
    void begin_round() {
        ++round_;
        round_.notify_all();
    }
    void serve(unsigned member) {
        for (std::uint32_t round = 0;; ++round) {
            wait(round_, round);
            if (!task_) return;
            attempt(member);
            if (--working_ == 0) working_.notify_all();
        }
    }
    void attempt(unsigned member) {
        try {
            (*task_)(member);
        } catch (...) {
            failures_[member] = std::current_exception();
        }
    }

    std::vector<std::exception_ptr> failures_;  // by member
    const std::function<void(unsigned)>* task_ = nullptr;
    alignas(64) std::atomic<std::uint32_t> round_ = 0;
    alignas(64) std::atomic<std::uint32_t> working_ = 0;
    std::vector<std::thread> threads_;
};

}  // namespace llmfast
