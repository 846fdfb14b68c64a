#include "pretokenize/classify.h"

#include <array>
#include <cstddef>

#include "pretokenize/classify_avx512.h"
#include "system/cpu_features.h"

#if defined(LLMFAST_X86)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(LLMFAST_PORTABLE)
#include <arm_neon.h>
#define LLMFAST_NEON 1
#endif

namespace llmfast {
namespace {

// ---- Any CPU: the class bits of each byte, gathered bit by bit.

void classify_portable(const uint8_t* text, Masks& masks) {
    masks = {};
    for (int i = 0; i < 64; ++i) {
        const uint64_t bits = kClassBits[text[i]];
        masks.letter |= (bits & 1) << i;
        masks.upper |= (bits >> 1 & 1) << i;
        masks.digit |= (bits >> 2 & 1) << i;
        masks.space |= (bits >> 3 & 1) << i;
        masks.blank |= (bits >> 4 & 1) << i;
        masks.newline |= (bits >> 5 & 1) << i;
        masks.apostrophe |= (bits >> 6 & 1) << i;
        masks.slash |= (bits >> 7 & 1) << i;
        masks.high |= uint64_t{text[i] >> 7 & 1u} << i;
    }
}

#if defined(LLMFAST_X86)

// ---- AVX2 and SSE2: signed compares of shifted bytes; two or four parts make the 64.

#define LLMFAST_CLASSIFY(NAME, TARGET, VECTOR, LANES, LOAD, SET1, EQUAL, GREATER, ADD, OR, MOVEMASK)          \
    __attribute__((target(TARGET))) void NAME(const uint8_t* text, Masks& masks) {                            \
        masks = {};                                                                                           \
        for (int at = 0; at < 64; at += LANES) {                                                              \
            const VECTOR bytes = LOAD(reinterpret_cast<const VECTOR*>(text + at));                            \
            const VECTOR folded = OR(bytes, SET1(0x20));                                                      \
            const VECTOR blank = EQUAL(bytes, SET1(' '));                                                     \
            /* x - from, moved to the bottom of the signed range, is below -128 + count */                    \
            const VECTOR letter = GREATER(SET1(-128 + 26), ADD(folded, SET1(static_cast<char>(-128 - 'a')))); \
            const VECTOR upper = GREATER(SET1(-128 + 26), ADD(bytes, SET1(static_cast<char>(-128 - 'A'))));   \
            const VECTOR digit = GREATER(SET1(-128 + 10), ADD(bytes, SET1(static_cast<char>(-128 - '0'))));   \
            const VECTOR control = GREATER(SET1(-128 + 5), ADD(bytes, SET1(static_cast<char>(-128 - '\t')))); \
            const auto put = [at](VECTOR v) __attribute__((target(TARGET), always_inline)) {                  \
                return uint64_t{static_cast<uint32_t>(MOVEMASK(v))} << at;                                    \
            };                                                                                                \
            masks.letter |= put(letter);                                                                      \
            masks.upper |= put(upper);                                                                        \
            masks.digit |= put(digit);                                                                        \
            masks.space |= put(OR(blank, control));                                                           \
            masks.blank |= put(blank);                                                                        \
            masks.newline |= put(OR(EQUAL(bytes, SET1('\n')), EQUAL(bytes, SET1('\r'))));                     \
            masks.apostrophe |= put(EQUAL(bytes, SET1('\'')));                                                \
            masks.slash |= put(EQUAL(bytes, SET1('/')));                                                      \
            masks.high |= put(bytes);                                                                         \
        }                                                                                                     \
    }

LLMFAST_CLASSIFY(classify_avx2, "avx2", __m256i, 32, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_cmpeq_epi8,
                 _mm256_cmpgt_epi8, _mm256_add_epi8, _mm256_or_si256, _mm256_movemask_epi8)
LLMFAST_CLASSIFY(classify_sse2, "sse2", __m128i, 16, _mm_loadu_si128, _mm_set1_epi8, _mm_cmpeq_epi8, _mm_cmpgt_epi8,
                 _mm_add_epi8, _mm_or_si128, _mm_movemask_epi8)

#undef LLMFAST_CLASSIFY
#endif

#if defined(LLMFAST_NEON)

// ---- NEON has no movemask: one bit kept of each byte, then pairwise sums fold 64 bytes into 64 bits.

inline uint64_t fold(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t low = vpaddq_u8(vandq_u8(a, bit), vandq_u8(b, bit));
    const uint8x16_t high = vpaddq_u8(vandq_u8(c, bit), vandq_u8(d, bit));
    const uint8x16_t sums = vpaddq_u8(low, high);
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)), 0);
}

template <typename Test>
inline uint64_t mask_of(const uint8x16x4_t& bytes, Test test) {
    return fold(test(bytes.val[0]), test(bytes.val[1]), test(bytes.val[2]), test(bytes.val[3]));
}

void classify_neon(const uint8_t* text, Masks& masks) {
    const uint8x16x4_t bytes = {{vld1q_u8(text), vld1q_u8(text + 16), vld1q_u8(text + 32), vld1q_u8(text + 48)}};
    const auto equal = [&](uint8_t c) {
        return mask_of(bytes, [c](uint8x16_t v) { return vceqq_u8(v, vdupq_n_u8(c)); });
    };
    const auto within = [&](uint8_t fold_case, uint8_t from, uint8_t count) {
        return mask_of(bytes, [=](uint8x16_t v) {
            return vcltq_u8(vsubq_u8(vorrq_u8(v, vdupq_n_u8(fold_case)), vdupq_n_u8(from)), vdupq_n_u8(count));
        });
    };
    masks.letter = within(0x20, 'a', 26);
    masks.upper = within(0, 'A', 26);
    masks.digit = within(0, '0', 10);
    masks.blank = equal(' ');
    masks.space = masks.blank | within(0, '\t', 5);
    masks.newline = equal('\n') | equal('\r');
    masks.apostrophe = equal('\'');
    masks.slash = equal('/');
    masks.high = mask_of(bytes, [](uint8x16_t v) { return vcgeq_u8(v, vdupq_n_u8(0x80)); });
}

#endif

std::array<NamedClassifier, 5> find_classifiers() {
    std::array<NamedClassifier, 5> found{};
    size_t count = 0;
#if defined(LLMFAST_X86)
    if (has_avx512_vbmi()) {
        found[count++] = {"avx512", [](const uint8_t* text, Masks& masks) { classify_avx512(text, 64, masks); }};
    }
    if (has_avx2()) found[count++] = {"avx2", classify_avx2};
    found[count++] = {"sse2", classify_sse2};
#endif
#if defined(LLMFAST_NEON)
    found[count++] = {"neon", classify_neon};
#endif
    found[count] = {"portable", classify_portable};
    return found;
}

}  // namespace

const NamedClassifier* classifiers() {
    static const std::array<NamedClassifier, 5> found = find_classifiers();
    return found.data();
}

}  // namespace llmfast
