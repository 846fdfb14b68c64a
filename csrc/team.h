// A few threads that work on the same task together, again and again.

#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

namespace llmfast {

class Team {
public:
    explicit Team(unsigned size) : failures_(size) {
        for (unsigned member = 1; member < size; ++member) threads_.emplace_back([this, member] { serve(member); });
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
        begin_round();
        attempt(0);
        for (std::uint32_t left = working_; left != 0; left = working_) working_.wait(left);
        for (std::exception_ptr& failure : failures_) {
            if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
        }
    }

private:
    void begin_round() {
        ++round_;
        round_.notify_all();
    }
    void serve(unsigned member) {
        for (std::uint32_t round = 0;; ++round) {
            round_.wait(round);
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
    std::atomic<std::uint32_t> round_ = 0, working_ = 0;
    std::vector<std::thread> threads_;
};

}  // namespace llmfast
