// Compiling a function again for newer instruction sets, and asking at run time which of them this CPU has: one binary
// serves all CPUs. -DLLMFAST_PORTABLE leaves all of them out, so that tests can cover the portable code anywhere.
#pragma once

namespace llmfast {

// For code that a loop seldom needs: inlined, it would take the loop's registers.
#if defined(__GNUC__)
#define LLMFAST_NOINLINE __attribute__((noinline))
#else
#define LLMFAST_NOINLINE
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(LLMFAST_PORTABLE)
#define LLMFAST_X86 1

// A function marked LLMFAST_AVX2, and everything that is inlined into it, may use x86-64-v3 (AVX2, BMI). Call it only
// if has_avx2().
#define LLMFAST_AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt"), flatten))
inline bool has_avx2() {
    static const bool has = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
               __builtin_cpu_supports("popcnt");
    }();
    return has;
}

// AVX-512 as Skylake-X and all later CPUs with AVX-512 have it. Call such a function only if has_avx512().
#define LLMFAST_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,popcnt")))
#define LLMFAST_AVX512_INLINE LLMFAST_AVX512 __attribute__((always_inline))
inline bool has_avx512() {
    static const bool has = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("popcnt");
    }();
    return has;
}

// The same with the byte permutations (VBMI, VBMI2) that CPUs have since Ice Lake and Zen 4: only if has_avx512_vbmi().
#define LLMFAST_AVX512_VBMI_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx2,bmi,bmi2,popcnt"
#define LLMFAST_AVX512_VBMI __attribute__((target(LLMFAST_AVX512_VBMI_TARGET), flatten))
inline bool has_avx512_vbmi() {
    static const bool has = [] {
        return has_avx2() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") &&
               __builtin_cpu_supports("avx512vbmi2");
    }();
    return has;
}
#else
#define LLMFAST_AVX2
constexpr bool has_avx2() { return false; }
#endif

}  // namespace llmfast
