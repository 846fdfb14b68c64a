#include <bit>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "decoder/kernels/kernels.h"
#include "system/cpu_features.h"

#if defined(LLMFAST_X86)
#include <immintrin.h>

// From here on, functions may use these instructions; those of headers above may not, since other files share them.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace llmfast {
namespace {

#define LLMFAST_INSTRUCTIONS "avx2"
#include "decoder/kernels/lanes_avx2.h"
//
#include "decoder/kernels/all.h"

}  // namespace
}  // namespace llmfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC reset_options
#endif
#endif

namespace llmfast {

const Kernels* avx2_kernels() {
#if defined(LLMFAST_X86)
    static const bool has = has_avx2() && __builtin_cpu_supports("fma");
    return has ? &table : nullptr;
#else
    return nullptr;
#endif
}

const Kernels* const* all_kernels() {
    static const Kernels* const found[] = {avx2_kernels() ? avx2_kernels() : &portable_kernels(),
                                           avx2_kernels() ? &portable_kernels() : nullptr, nullptr};
    return found;
}

}  // namespace llmfast
