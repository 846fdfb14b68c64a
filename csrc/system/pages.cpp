#include "system/pages.h"

#include <cstdlib>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define LLMFAST_MMAP 1
#endif

namespace llmfast {

void* allocate(size_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr size_t kHugePage = 1 << 21;
    if (bytes >= 2 * kHugePage) {
        void* const data = std::aligned_alloc(kHugePage, (bytes + kHugePage - 1) / kHugePage * kHugePage);
        if (data) madvise(data, bytes, MADV_HUGEPAGE);
        return data;
    }
#endif
    return std::malloc(bytes);
}

#if LLMFAST_MMAP

Pages::Pages(size_t bytes) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(data_, bytes, MADV_HUGEPAGE);  // may fail: without huge pages it works too
#endif
}

Pages::~Pages() { munmap(data_, bytes_); }

#else

Pages::Pages(size_t bytes) : data_(std::calloc(bytes + 64, 1)), bytes_(bytes) {
    if (!data_) throw std::bad_alloc();
}

Pages::~Pages() { std::free(data_); }

#endif

}  // namespace llmfast
