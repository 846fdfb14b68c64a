// Waiting for another thread without giving up the core.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace llmfast {

// Tells the core that this thread only looks at a word again and again, so that it saves power and leaves the other
// thread of the core alone.
inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ __volatile__("isb");
#endif
}

}  // namespace llmfast
