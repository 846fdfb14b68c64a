// Compiling a function a second time, for the instructions of newer machines: one binary serves them all.
#pragma once

namespace llmfast {

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
#else
#define LLMFAST_NEWER
constexpr bool is_newer() { return false; }
#endif

}  // namespace llmfast
