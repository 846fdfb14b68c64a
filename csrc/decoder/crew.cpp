#include "decoder/crew.h"

#include <exception>

#include "system/interrupt.h"
#include "system/pause.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
namespace llmfast {
namespace {

constexpr int kSpins = 2000;  // 20 to 60 microseconds

int64_t this_process() {
#if defined(__unix__) || defined(__APPLE__)
    return getpid();
#else
    return 0;
#endif
}

}  // namespace

void Signal::advance() {
    value_.fetch_add(1);
    if (sleepers_.load() != 0) value_.notify_all();
}

void Signal::wait_beyond(uint32_t seen) {
    for (int i = 0; i < kSpins; ++i) {
        if (value_.load(std::memory_order_acquire) != seen) return;
        pause();
    }
    ++sleepers_;  // before the last look at the value, so that advance() sees it or this sees the new value
    while (value_.load() == seen) value_.wait(seen);
    --sleepers_;
}

void Member::meet() { crew_.meet(*crew_.shared_); }

bool Member::is_stopped() {
    std::atomic<bool>& stopped = crew_.shared_->stopped;
    if (index == 0) {
        try {
            check_interrupt();
        } catch (const Stopped&) {
            stopped = true;
        }
    }
    return stopped.load(std::memory_order_relaxed);
}

Crew::Crew(size_t size) : wanted_(size) { start(); }

Crew::~Crew() {
    if (process_ != this_process()) {
        static_cast<void>(shared_.release());  // its threads are of another process and cannot be joined
        return;
    }
    shared_->ends = true;
    shared_->round.advance();
    for (std::thread& thread : shared_->threads) thread.join();
}

void Crew::start() {
    shared_ = std::make_unique<Shared>();
    process_ = this_process();
    size_ = wanted_;
    shared_->threads.reserve(wanted_);
    try {
        for (size_t index = 1; index < wanted_; ++index)
            shared_->threads.emplace_back([this, shared = shared_.get(), index] { serve(*shared, index); });
    } catch (const std::exception&) {
        // The system has no more threads: those that have started do the work.
    }
    size_ = shared_->threads.size() + 1;
}

void Crew::run(const std::function<void(Member&)>& work) {
    if (process_ != this_process()) {
        static_cast<void>(shared_.release());
        start();
    }
    Shared& shared = *shared_;
    shared.work = &work;
    shared.stopped = false;
    shared.round.advance();
    Member first(*this, 0, size_);
    work(first);
    meet(shared);
    if (shared.stopped) throw Stopped();
}

void Crew::serve(Shared& shared, size_t index) {
    for (uint32_t seen = 0;;) {
        shared.round.wait_beyond(seen);
        ++seen;
        if (shared.ends) return;
        Member member(*this, index, size_);
        (*shared.work)(member);
        meet(shared);
    }
}

void Crew::meet(Shared& shared) {
    if (size_ == 1) return;
    const uint32_t before = shared.met.value();
    if (shared.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        shared.arrived.store(0, std::memory_order_relaxed);
        shared.met.advance();
    } else {
        shared.met.wait_beyond(before);
    }
}

}  // namespace llmfast
