// add_other_scripts() of piece_starts.h for 64 bytes at once, with AVX-512.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "pretokenize/classify.h"
#include "pretokenize/rules.h"
#include "pretokenize/unicode.h"
#include "system/cpu_features.h"

#if defined(LLMFAST_X86)
#include <immintrin.h>

namespace llmfast {

// The code points, below 0x10000, of the characters of two and three bytes among 64, in their order, from the places of
// their first bytes, of their last ones, and of the first ones of three. Where the block ends inside a character, that
// one means nothing.
LLMFAST_AVX512_VBMI inline void code_points_avx512(__m512i bytes, uint64_t leads, uint64_t last, uint64_t leads_of_3,
                                                   uint16_t* out) {
    const auto every = [&](uint64_t places) __attribute__((target(LLMFAST_AVX512_VBMI_TARGET), always_inline)) {
        const __m512i some = _mm512_maskz_compress_epi8(places, bytes);
        return _mm512_maskz_cvtepu8_epi16(~0u, _mm512_maskz_extracti64x4_epi64(0xFF, some, 0));
    };
    const __m512i six = _mm512_set1_epi16(0x3F);
    const __m512i first = every(leads), second = _mm512_and_si512(every(leads << 1), six);
    const __m512i end = _mm512_and_si512(every(last), six);
    const __mmask32 three = static_cast<__mmask32>(_pext_u64(leads_of_3, leads));
    const __m512i of_2 = _mm512_slli_epi16(_mm512_and_si512(first, _mm512_set1_epi16(0x1F)), 6);
    const __m512i of_3 = _mm512_or_si512(_mm512_slli_epi16(first, 12), _mm512_slli_epi16(second, 6));
    _mm512_storeu_si512(out, _mm512_or_si512(_mm512_mask_blend_epi16(three, of_2, of_3), end));
}

// Like add_other_scripts() for 64 bytes. Returns -1 if there are characters of four bytes or invalid UTF-8.
template <Rules kRules>
LLMFAST_AVX512_VBMI inline int add_other_scripts_avx512(Masks& m, uint64_t& inside, const Byte* text) {
    const __m512i bytes = _mm512_loadu_si512(text);
    const auto from = [&](uint8_t byte) __attribute__((target(LLMFAST_AVX512_VBMI_TARGET), always_inline)) {
        return _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8(static_cast<char>(byte)));
    };
    const auto equal = [&](uint8_t byte) __attribute__((target(LLMFAST_AVX512_VBMI_TARGET), always_inline)) {
        return _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(static_cast<char>(byte)));
    };
    const uint64_t leads = from(0xC2), of_3 = from(0xE0), continuations = m.high & ~from(0xC0);
    const uint64_t last = (leads & ~of_3) << 1 | of_3 << 2;
    const uint64_t late = from(0xA0);  // what a second byte is behind 0xE0, and is not behind 0xED
    const uint64_t wrong = (equal(0xE0) << 1 & ~late) | (equal(0xED) << 1 & late);
    if (((leads | continuations) ^ m.high) | (continuations ^ (leads << 1 | last)) | wrong | from(0xF0)) return -1;

    uint16_t points[32];
    code_points_avx512(bytes, leads, last, of_3, points);
    alignas(32) uint8_t classes[32];
    const size_t characters = static_cast<size_t>(std::popcount(leads));
    for (size_t i = 0; i < characters; ++i) classes[i] = classes_of(points[i]);
    const __m256i all = _mm256_load_si256(reinterpret_cast<const __m256i*>(classes));
    const auto with = [&](uint8_t some) __attribute__((target(LLMFAST_AVX512_VBMI_TARGET), always_inline)) {
        return _pdep_u64(_mm256_test_epi8_mask(all, _mm256_set1_epi8(static_cast<char>(some))), leads);
    };
    const auto whole = [of_3](uint64_t first) { return first | first << 1 | (first & of_3) << 2; };

    const uint64_t not_here = with(kNumber | kSpace | (kRules.case_splits ? kMark : 0));
    const uint64_t cut = (leads & ~(~0ull >> 1)) | (of_3 & ~(~0ull >> 2));  // the block ends inside of these
    const uint64_t stop = not_here | cut;
    const uint64_t known = stop ? (stop & -stop) - 1 : ~0ull;
    const uint64_t letter = with(kLetter) & known;
    inside = continuations & known;
    m.letter |= whole(letter);
    int count = std::popcount(known);
    if constexpr (kRules.case_splits) {
        const uint64_t lower = with(kLower);
        m.upper |= whole(letter & ~lower);
        const uint64_t unclear = m.upper & whole(lower & with(kUpper) & known) << 1;
        if (unclear) count = std::min(count, std::countr_zero(unclear));
    }
    return count;
}

}  // namespace llmfast

#endif
