#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace llmfast {

void run_parallel(size_t count, size_t threads, const std::function<void(size_t i, size_t member)>& work) {
    std::atomic<size_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const auto loop = [&](size_t member) {
        try {
            for (size_t i = next++; i < count; i = next++) work(i, member);
        } catch (...) {
            const std::lock_guard lock(guard);
            if (!failure) failure = std::current_exception();
            next = count;
        }
    };
    // Threads live as long as the call: starting one takes tens of microseconds, and nothing is left behind a fork.
    std::vector<std::thread> helpers;
    try {
        for (size_t i = 1; i < std::min(threads, count); ++i) helpers.emplace_back(loop, i);
    } catch (const std::system_error&) {
        // The system gives no more threads: those there are do the work.
    }
    loop(0);
    for (std::thread& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace llmfast
