// Threads that run one program together, step by step: each does its part of a step, and waits for the others.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace llmfast {

// A counter that threads wait on: they spin for some microseconds, since waking a thread takes tens of them, and then
// sleep.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void advance();
    void wait_beyond(uint32_t seen);

  private:
    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
};

class Crew;

// One of the threads at work.
class Member {
  public:
    // Waits until all members have come here. What each wrote before, all see afterwards.
    void meet();

    // This member's part of `count` items, in whole units: calls work(begin, end), if it has any.
    template <typename Work>
    void take_part(size_t count, size_t unit, Work work) const {
        const size_t units = (count + unit - 1) / unit;
        const size_t begin = units * index / size * unit, end = units * (index + 1) / size * unit;
        if (begin < end && begin < count) work(begin, end < count ? end : count);
    }

    // Whether the call was stopped (system/interrupt.h), which the first member asks: the others then leave out work.
    bool is_stopped();

    const size_t index, size;

  private:
    friend class Crew;
    Member(Crew& crew, size_t member, size_t members) : index(member), size(members), crew_(crew) {}
    Crew& crew_;
};

class Crew {
  public:
    // `size` threads, including the one that calls `run`; fewer if the system provides no more.
    explicit Crew(size_t size);
    ~Crew();
    Crew(const Crew&) = delete;
    Crew& operator=(const Crew&) = delete;

    size_t size() const { return size_; }

    // Calls work(member) on all threads at once, which must not throw. Throws Stopped if the call was stopped. After a
    // fork, the child starts threads of its own.
    void run(const std::function<void(Member&)>& work);

  private:
    friend class Member;
    struct Shared {
        std::vector<std::thread> threads;
        const std::function<void(Member&)>* work = nullptr;
        bool ends = false;
        std::atomic<bool> stopped{false};
        // In cache lines of their own, since all threads access them.
        alignas(64) Signal round;
        alignas(64) Signal met;
        alignas(64) std::atomic<uint32_t> arrived{0};
    };

    void start();
    void serve(Shared& shared, size_t index);
    void meet(Shared& shared);

    const size_t wanted_;
    size_t size_ = 1;
    int64_t process_ = 0;
    std::unique_ptr<Shared> shared_;
};

}  // namespace llmfast
