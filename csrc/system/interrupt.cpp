#include "system/interrupt.h"

namespace llmfast {

Interrupt::Interrupt(std::function<bool()> poll, std::chrono::milliseconds interval)
    : previous_(std::exchange(current_, this)), poll_(std::move(poll)), interval_(interval) {}

void Interrupt::check() {
    if (stopped_.load(std::memory_order_relaxed)) throw Stopped();
    if (std::this_thread::get_id() != owner_ || Clock::now() < next_poll_) return;
    if (poll_()) {
        stopped_ = true;
        throw Stopped();
    }
    next_poll_ = Clock::now() + interval_;
}

}  // namespace llmfast
