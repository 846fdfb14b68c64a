#include "system/parallel.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "system/pause.h"

namespace llmfast {
namespace {

// Waits a few microseconds for the word to change from `old`, and returns whether it did. Other threads get the core if
// they need it.
bool spin(const std::atomic<uint32_t>& word, uint32_t old) {
    for (int i = 0; i < 300; ++i) {
        if (word.load(std::memory_order_acquire) != old) return true;
        if (i < 200) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
    return false;
}

// Waits for the word to change from `old`. That usually takes microseconds, and waking a thread takes tens of them, so
// it spins before it sleeps.
void wait(const std::atomic<uint32_t>& word, uint32_t old) {
    if (!spin(word, old)) word.wait(old, std::memory_order_acquire);
}

constexpr uint32_t kOpen = 1, kOne = 2;

}  // namespace

Team::Team(size_t size) {
    threads_.reserve(size);
    try {
        for (size_t member = 1; member < size; ++member) threads_.emplace_back([this, member] { serve(member); });
    } catch (const std::exception&) {
        // The system has no more threads, or no memory for one: those that have started do the work.
    }
}

Team::~Team() {
    stopped_ = true;
    ++round_;
    round_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Team::run(size_t count, const std::function<void(size_t i, size_t member)>& work) {
    work_ = &work;
    count_ = count;
    interrupt_ = Interrupt::current();
    next_.store(0, std::memory_order_relaxed);
    if (count > 1 && !threads_.empty()) {
        inside_ = kOpen;
        ++round_;
        round_.notify_all();
    }
    loop(0);
    wait_for_others();
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Team::serve(size_t member) {
    for (uint32_t seen = 0;;) {
        wait(round_, seen);
        seen = round_;
        if (enter()) {
            const Interrupt::Scope scope(interrupt_);
            loop(member);
            if (inside_.fetch_sub(kOne) == kOne) inside_.notify_all();
        } else if (stopped_) {
            return;
        }
    }
}

bool Team::enter() {
    uint32_t inside = inside_;
    while (inside & kOpen) {
        if (inside_.compare_exchange_weak(inside, inside + kOne)) return true;
    }
    return false;
}

void Team::loop(size_t member) {
    try {
        for (size_t i = next_++; i < count_; i = next_++) (*work_)(i, member);
    } catch (...) {
        fail();
    }
}

// Keeps the current exception, unless there already is one, and makes all threads end after their current call.
void Team::fail() {
    const std::lock_guard lock(failing_);
    if (!failure_) failure_ = std::current_exception();
    next_ = count_;
}

// Lets no more helpers join, and waits for those at work. A caller that can be stopped checks for an interrupt every
// few milliseconds.
void Team::wait_for_others() {
    uint32_t others = inside_ &= ~kOpen;
    bool stopped = interrupt_ == nullptr;
    for (std::chrono::microseconds pause{50}; others != 0; others = inside_) {
        if (stopped) {
            wait(inside_, others);
            continue;
        }
        if (spin(inside_, others)) continue;
        try {
            interrupt_->check();
        } catch (...) {
            fail();
            stopped = true;
        }
        std::this_thread::sleep_for(pause);
        pause = std::min(2 * pause, std::chrono::microseconds{5000});
    }
}

void run_parallel(size_t count, size_t threads, const std::function<void(size_t i, size_t member)>& work) {
    Team(std::min(threads, count)).run(count, work);
}

}  // namespace llmfast
