// The same work on many things, on several threads.
#pragma once

#include <cstddef>
#include <functional>

namespace llmfast {

// Calls `work(i, member)` for 0 <= i < count on up to `threads` threads, this one among them; calls of one member, a
// number below `threads`, come one after another, with growing i. The first exception is thrown again here, after all
// threads have ended.
void run_parallel(size_t count, size_t threads, const std::function<void(size_t i, size_t member)>& work);

}  // namespace llmfast
