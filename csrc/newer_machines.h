// Compiling a function a second time, for the instructions of newer machines: one binary serves them all.
#pragma once

namespace llmfast {

// For what a loop seldom needs: inlined, it would take the loop's registers.
#if defined(__GNUC__)
#define LLMFAST_NOINLINE __attribute__((noinline))
#else
#define LLMFAST_NOINLINE
#endif

// A function that starts with LLMFAST_NEWER, and all that is inlined into it, may use x86-64-v3 (AVX2, BMI). It may be
// called only where is_newer() says so.
#if defined(__x86_64__) && defined(__GNUC__)
#define LLMFAST_NEWER __attribute__((target("avx2,bmi,bmi2,popcnt"), flatten))
inline bool is_newer() {
    static const bool newer = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
               __builtin_cpu_supports("popcnt");
    }();
    return newer;
}

// The same for AVX-512 as it is since Ice Lake and Zen 4, and is_newest(); only where this macro is defined.
#define LLMFAST_NEWEST_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx2,bmi,bmi2,popcnt"
#define LLMFAST_NEWEST __attribute__((target(LLMFAST_NEWEST_TARGET), flatten))
inline bool is_newest() {
    static const bool newest = [] {
        return is_newer() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") &&
               __builtin_cpu_supports("avx512vbmi2");
    }();
    return newest;
}
#else
#define LLMFAST_NEWER
constexpr bool is_newer() { return false; }
#endif

}  // namespace llmfast
