// Prefetches a cache line.
#pragma once

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace llmfast {

inline void prefetch_line(const void* at) {
#if defined(_MSC_VER)
    _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0);
#else
    __builtin_prefetch(at);
#endif
}

}  // namespace llmfast
