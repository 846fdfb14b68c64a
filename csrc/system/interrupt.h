// Stopping long work: the engine checks regularly whether its caller still wants the result.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <thread>
#include <utility>

namespace llmfast {

// Thrown by check_interrupt() to end a call that was stopped.
struct Stopped {};

// One call that can be stopped, shared by all threads that work on it. While it exists, it is the current Interrupt of
// the thread that made it, its owner.
class Interrupt {
  public:
    // `poll` returns true to stop the call. It runs on the owner's thread, about once per `interval`.
    explicit Interrupt(std::function<bool()> poll, std::chrono::milliseconds interval = kInterval);
    ~Interrupt() { current_ = previous_; }
    Interrupt(const Interrupt&) = delete;
    Interrupt& operator=(const Interrupt&) = delete;

    // The one of the call that this thread works for; nullptr if nothing can stop it.
    static Interrupt* current() { return current_; }

    // Throws Stopped once the call is stopped.
    void check();

    // Makes the Interrupt of a caller the current one of a thread that works for it.
    class Scope {
      public:
        explicit Scope(Interrupt* interrupt) : previous_(std::exchange(current_, interrupt)) {}
        ~Scope() { current_ = previous_; }
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

      private:
        Interrupt* previous_;
    };

    static constexpr std::chrono::milliseconds kInterval{50};

  private:
    using Clock = std::chrono::steady_clock;

    static inline constinit thread_local Interrupt* current_ = nullptr;

    Interrupt* const previous_;
    const std::thread::id owner_ = std::this_thread::get_id();
    const std::function<bool()> poll_;
    const std::chrono::milliseconds interval_;
    Clock::time_point next_poll_ = Clock::now() + interval_;  // used by the owner only
    std::atomic<bool> stopped_{false};
};

// Throws Stopped if this thread's call was stopped. Call it at least once per millisecond of work, but not for every
// byte: it reads the clock.
inline void check_interrupt() {
    if (Interrupt* const interrupt = Interrupt::current()) interrupt->check();
}

// Counts units of work, such as bytes or entries, and checks once for every kUnits of them: for work in many small
// parts.
class InterruptCounter {
  public:
    void add(size_t units) {
        if ((units_ += units) < kUnits) return;
        units_ = 0;
        check_interrupt();
    }

  private:
    static constexpr size_t kUnits = 1 << 14;
    size_t units_ = 0;
};

// Calls work(begin, end) for one range after another of [0, count), and checks between two of them: for loops over
// arrays that may be large. For short ones it costs nothing.
template <typename Work>
void in_windows(size_t count, Work work) {
    constexpr size_t kWindow = 1 << 16;
    for (size_t begin = 0; begin < count; begin += kWindow) {
        if (begin > 0) check_interrupt();
        work(begin, std::min(begin + kWindow, count));
    }
}

// std::copy_n in windows. `to` may overlap `from` from below.
template <typename From, typename To>
To* copy_in_windows(const From* from, size_t count, To* to) {
    in_windows(count, [&](size_t begin, size_t end) { std::copy(from + begin, from + end, to + begin); });
    return to + count;
}

// std::stable_sort that can be stopped: the order is then unspecified.
template <typename Iterator, typename Less>
void sort_with_checks(Iterator begin, Iterator end, Less less) {
    InterruptCounter counter;
    std::stable_sort(begin, end, [&](const auto& a, const auto& b) {
        counter.add(1);
        return less(a, b);
    });
}

}  // namespace llmfast
