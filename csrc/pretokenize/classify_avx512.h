// classify.h for AVX-512 since Ice Lake and Zen 4. It is in a header so that it can be inlined into the splitting loop.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "pretokenize/classify.h"
#include "system/cpu_features.h"

#if defined(LLMFAST_X86)
#include <immintrin.h>

namespace llmfast {

// Classifies the first `size` bytes, 1 to 64, and reads no others. One instruction looks them up in the class bits of
// ASCII, and a test of one bit gives a mask.
LLMFAST_AVX512_VBMI inline void classify_avx512(const uint8_t* text, int size, Masks& masks) {
    const __m512i bytes = size == 64 ? _mm512_loadu_si512(text) : _mm512_maskz_loadu_epi8(~0ull >> (64 - size), text);
    masks.high = _mm512_movepi8_mask(bytes);
    const __m512i classes = _mm512_maskz_permutex2var_epi8(~masks.high, _mm512_loadu_si512(kClassBits.data()), bytes,
                                                           _mm512_loadu_si512(kClassBits.data() + 64));
    const auto with = [&](ClassBit bit) __attribute__((target(LLMFAST_AVX512_VBMI_TARGET), always_inline)) {
        return _mm512_test_epi8_mask(classes, _mm512_set1_epi8(static_cast<char>(bit)));
    };
    masks.letter = with(kLetterBit);
    masks.upper = with(kUpperBit);
    masks.digit = with(kDigitBit);
    masks.space = with(kSpaceBit);
    masks.blank = with(kBlankBit);
    masks.newline = with(kNewlineBit);
    masks.apostrophe = with(kQuoteBit);
    masks.slash = with(kSlashBit);
}

// Writes `offset` plus the index of each bit that is set, and returns how many there are. Up to 15 more elements are
// overwritten.
LLMFAST_AVX512_VBMI inline size_t write_bits_avx512(uint64_t bits, uint32_t offset, uint32_t* out) {
    alignas(64) static constexpr uint8_t kPlaces[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                        16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                                        32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                                        48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    const size_t count = static_cast<size_t>(std::popcount(bits));
    const __m512i all = _mm512_maskz_compress_epi8(bits, _mm512_load_si512(kPlaces));
    alignas(64) uint8_t places[64];
    _mm512_store_si512(places, all);
    for (size_t i = 0; i < count; i += 16) {
        const __m512i some =
            _mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_load_si128(reinterpret_cast<const __m128i*>(places + i)));
        _mm512_storeu_si512(out + i, _mm512_add_epi32(some, _mm512_set1_epi32(static_cast<int>(offset))));
    }
    return count;
}

}  // namespace llmfast

#endif
