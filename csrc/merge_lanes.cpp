#include "merge_lanes.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define LLMFAST_LANES __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,bmi,bmi2,popcnt,lzcnt")))
#define LLMFAST_IN_LANES LLMFAST_LANES __attribute__((always_inline))

namespace llmfast {
namespace {

using Lanes = __m512i;  // a number of 32 bits for each piece

// Pairs to look up, one a lane where `wanted` says so, and the rows that their keys are for.
struct Pairs {
    Lanes left, right, row;
    __mmask16 wanted;
};

// A pair as a number whose smallest is the next to merge: the rank, and in the lower five bits the row.
LLMFAST_IN_LANES inline Lanes key_of(Lanes merged, Lanes row) { return _mm512_or_si512(_mm512_slli_epi32(merged, 5), row); }

LLMFAST_IN_LANES inline Lanes no_key() { return _mm512_set1_epi32(-1); }  // above every key: ids have 24 bits

// PairPlaces::find, and key_of what it finds.
LLMFAST_IN_LANES inline Lanes find(const PairPlaces& places, const Pairs& pairs) {
    const Lanes right_hash = _mm512_mullo_epi32(pairs.right, _mm512_set1_epi32(static_cast<int>(PairPlaces::kRight)));
    const Lanes left_hash = _mm512_mullo_epi32(pairs.left, _mm512_set1_epi32(static_cast<int>(PairPlaces::kLeft)));
    const Lanes upper = _mm512_and_si512(_mm512_add_epi32(left_hash, _mm512_srli_epi32(right_hash, 8)), _mm512_set1_epi32(0xFFFFFF));
    const Lanes bucket = _mm512_srl_epi32(upper, _mm_cvtsi32_si128(places.shift));
    const Lanes word = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), pairs.wanted, bucket, places.buckets, 2);
    const Lanes low_byte = _mm512_and_si512(upper, _mm512_set1_epi32(0xFF));
    const Lanes which = _mm512_srli_epi32(_mm512_add_epi32(low_byte, _mm512_add_epi32(low_byte, low_byte)), 7);
    const Lanes likely_bit = _mm512_sllv_epi32(_mm512_set1_epi32(PairPlaces::kSeeds), which);
    const __mmask16 likely = _mm512_test_epi32_mask(word, likely_bit);

    const Lanes upper_tag = _mm512_and_si512(upper, _mm512_set1_epi32(0xFFFF));
    const Lanes turned = _mm512_rorv_epi32(_mm512_xor_si512(right_hash, upper_tag), _mm512_and_si512(word, _mm512_set1_epi32(31)));
    const Lanes flip = _mm512_slli_epi32(_mm512_srli_epi32(word, 5), 1);
    const Lanes offset = _mm512_and_si512(_mm512_xor_si512(turned, flip), _mm512_set1_epi32(PairPlaces::kWindow - 1));
    const Lanes at = _mm512_add_epi32(_mm512_add_epi32(bucket, bucket), offset);
    const __m256i at_low = _mm512_castsi512_si256(at), at_high = _mm512_extracti64x4_epi64(at, 1);
    const __m512i none = _mm512_setzero_si512();
    const __m512i low = _mm512_mask_i32gather_epi64(none, static_cast<__mmask8>(likely), at_low, places.entries, 8);
    const __m512i high = _mm512_mask_i32gather_epi64(none, static_cast<__mmask8>(likely >> 8), at_high, places.entries, 8);

    // The entries' lower and upper halves.
    const Lanes even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const Lanes entry_low = _mm512_permutex2var_epi32(low, even, high);
    const Lanes entry_high = _mm512_permutex2var_epi32(low, _mm512_or_si512(even, _mm512_set1_epi32(1)), high);
    const Lanes tag_low = _mm512_slli_epi32(pairs.right, 24);
    const Lanes tag_high = _mm512_or_si512(_mm512_slli_epi32(upper_tag, 16), _mm512_srli_epi32(pairs.right, 8));
    const Lanes merged = _mm512_xor_si512(entry_low, tag_low);
    const __mmask16 same = _mm512_mask_cmpeq_epi32_mask(likely, entry_high, tag_high);
    const __mmask16 also = _mm512_mask_cmplt_epu32_mask(same, merged, _mm512_set1_epi32(1 << 24));
    const __mmask16 found = _mm512_mask_test_epi32_mask(also, _mm512_or_si512(entry_low, entry_high), no_key());
    return _mm512_mask_mov_epi32(no_key(), found, key_of(merged, pairs.row));
}

LLMFAST_IN_LANES inline Lanes lowest_bit(Lanes bits) {
    return _mm512_and_si512(bits, _mm512_sub_epi32(_mm512_setzero_si512(), bits));
}

LLMFAST_IN_LANES inline Lanes place_of_highest(Lanes bits) {
    return _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_lzcnt_epi32(bits));
}

}  // namespace

bool has_lanes() {
    static const bool has = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("bmi2");
    }();
    return has;
}

// A row holds the parts that stand at one place of their pieces, or their keys.
LLMFAST_LANES void merge_lanes(const PairTable& pairs, Piece* const* pieces, size_t count) {
    const PairPlaces places = pairs.places();
    const Lanes zero = _mm512_setzero_si512(), one = _mm512_set1_epi32(1);
    const Lanes lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    Lanes ids[kMostLaneParts + 1], keys[kMostLaneParts];
    uint32_t* const flat = reinterpret_cast<uint32_t*>(ids);

    size_t rows = 0;
    for (size_t i = 0; i < count; ++i) rows = std::max(rows, pieces[i]->count);
    std::fill_n(ids, rows + 1, zero);
    alignas(64) uint32_t left_of[kLanes] = {};
    uint32_t all = 0;
    for (size_t i = 0; i < count; ++i) {
        left_of[i] = ~0u >> (32 - pieces[i]->count);
        for (size_t row = 0; row < pieces[i]->count; ++row) {
            const uint32_t id = pieces[i]->ids[row];
            flat[row * kLanes + i] = id;
            all |= id;
        }
    }
    Lanes left = _mm512_load_si512(left_of);  // a bit for each row: whether a part is left there

    Lanes best = no_key();
    for (size_t row = 0; row + 1 < rows; ++row) {
        const __mmask16 wanted = _mm512_test_epi32_mask(left, _mm512_set1_epi32(static_cast<int>(2u << row)));
        const Lanes here = _mm512_set1_epi32(static_cast<int>(row));
        if (all < 256) {
            const Lanes at = _mm512_or_si512(_mm512_slli_epi32(ids[row], 8), ids[row + 1]);
            keys[row] = key_of(_mm512_mask_i32gather_epi32(no_key(), wanted, at, places.low_pairs, 4), here);
        } else {
            keys[row] = find(places, {ids[row], ids[row + 1], here, wanted});
        }
        best = _mm512_min_epu32(best, keys[row]);
    }

    while (const __mmask16 busy = _mm512_cmplt_epu32_mask(best, _mm512_set1_epi32(1 << 29))) {
        const Lanes row = _mm512_mask_and_epi32(no_key(), busy, best, _mm512_set1_epi32(31));
        const Lanes merged = _mm512_srli_epi32(best, 5);
        const Lanes bit = _mm512_sllv_epi32(one, row);  // 0 in a lane that is done
        const Lanes above = _mm512_and_si512(left, _mm512_sub_epi32(zero, _mm512_add_epi32(bit, bit)));
        const Lanes gone = lowest_bit(above);
        const Lanes behind = _mm512_xor_si512(above, gone);
        const Lanes before = _mm512_and_si512(left, _mm512_sub_epi32(bit, one));
        const __mmask16 has_behind = _mm512_mask_test_epi32_mask(busy, behind, behind);
        const __mmask16 has_before = _mm512_mask_test_epi32_mask(busy, before, before);
        left = _mm512_xor_si512(left, gone);

        const auto flat_at = [&](Lanes place) LLMFAST_IN_LANES { return _mm512_add_epi32(_mm512_slli_epi32(place, 4), lane); };
        const Lanes gone_row = place_of_highest(gone);  // -1 where there is none
        const Lanes previous_row = _mm512_mask_mov_epi32(no_key(), has_before, place_of_highest(before));
        _mm512_mask_i32scatter_epi32(ids, busy, flat_at(row), merged, 4);
        const Lanes next_id = _mm512_mask_i32gather_epi32(zero, has_behind, flat_at(place_of_highest(lowest_bit(behind))), ids, 4);
        const Lanes previous_id = _mm512_mask_i32gather_epi32(zero, has_before, flat_at(previous_row), ids, 4);
        const Lanes key = find(places, {merged, next_id, row, has_behind});
        const Lanes previous_key = find(places, {previous_id, merged, previous_row, has_before});

        best = no_key();
        for (size_t i = 0; i + 1 < rows; ++i) {
            const Lanes here = _mm512_set1_epi32(static_cast<int>(i));
            Lanes renewed = keys[i];
            renewed = _mm512_mask_mov_epi32(renewed, _mm512_cmpeq_epi32_mask(row, here), key);
            renewed = _mm512_mask_mov_epi32(renewed, _mm512_cmpeq_epi32_mask(gone_row, here), no_key());
            renewed = _mm512_mask_mov_epi32(renewed, _mm512_cmpeq_epi32_mask(previous_row, here), previous_key);
            keys[i] = renewed;
            best = _mm512_min_epu32(best, renewed);
        }
    }

    _mm512_store_si512(left_of, left);
    for (size_t i = 0; i < count; ++i) {
        size_t kept = 0;
        for (uint32_t rest = left_of[i]; rest; rest &= rest - 1) {
            pieces[i]->ids[kept++] = flat[static_cast<size_t>(std::countr_zero(rest)) * kLanes + i];
        }
        pieces[i]->count = kept;
    }
}

}  // namespace llmfast

#else

namespace llmfast {

bool has_lanes() { return false; }
void merge_lanes(const PairTable&, Piece* const*, size_t) {}

}  // namespace llmfast

#endif
