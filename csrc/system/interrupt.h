// Stopping long work: the engine asks now and then whether its caller still wants the result.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <utility>

namespace llmfast {

// Thrown by check_interrupt() to end a call that was stopped.
struct Stopped {};

// One call that can be stopped, shared by all threads that work on it. While it exists it is the current one of the
// thread that made it, its owner.
class Interrupt {
  public:
    // `poll` returns true to stop the call. It runs on the owner's thread, about every kInterval while that works.
    explicit Interrupt(std::function<bool()> poll);
    ~Interrupt() { current_ = previous_; }
    Interrupt(const Interrupt&) = delete;
    Interrupt& operator=(const Interrupt&) = delete;

    // That of the call that this thread works on; nullptr where nothing can stop it.
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
    Clock::time_point next_poll_ = Clock::now() + kInterval;  // used by the owner only
    std::atomic<bool> stopped_{false};
};

// To be called at least once per millisecond of work, and not for every byte: it reads the clock. May throw Stopped.
inline void check_interrupt() {
    if (Interrupt* const interrupt = Interrupt::current()) interrupt->check();
}

}  // namespace llmfast
