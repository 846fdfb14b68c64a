// Merges sixteen pieces at once with AVX-512, one in each lane.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "merge/merge_lanes.h"
#include "system/cpu_features.h"

#if defined(LLMFAST_X86)
#include <immintrin.h>

#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 finds such in its own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace llmfast {

using Lanes = __m512i;  // a number of 32 bits for each piece

LLMFAST_AVX512_INLINE inline Lanes keys_of(Lanes merged, Lanes row) {
    return _mm512_or_si512(_mm512_slli_epi32(merged, 5), row);
}

LLMFAST_AVX512_INLINE inline Lanes no_key() { return _mm512_set1_epi32(-1); }

// PairPlaces::find for a pair in each lane that is `wanted`, in two steps, so that others can be done between asking
// for memory and having it.
class Finding {
  public:
    // Reads the words of the buckets. `row` is the row of each pair, for its key.
    LLMFAST_AVX512_INLINE inline void read_words(const PairPlaces& places, Lanes left, Lanes right, Lanes row,
                                                 __mmask16 wanted) {
        const Lanes left_hash = _mm512_mullo_epi32(left, _mm512_set1_epi32(static_cast<int>(PairPlaces::kLeft)));
        row_ = row;
        right_ = right;
        right_hash_ = _mm512_mullo_epi32(right, _mm512_set1_epi32(static_cast<int>(PairPlaces::kRight)));
        upper_ = _mm512_and_si512(_mm512_add_epi32(left_hash, _mm512_srli_epi32(right_hash_, 8)),
                                  _mm512_set1_epi32(0xFFFFFF));
        bucket_ = _mm512_srl_epi32(upper_, _mm_cvtsi32_si128(places.shift));
        word_ = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), wanted, bucket_, places.buckets, 2);
    }

    // Reads the entries of those pairs that may merge, and returns the keys of all pairs.
    LLMFAST_AVX512_INLINE inline Lanes keys(const PairPlaces& places) const {
        const Lanes low_byte = _mm512_and_si512(upper_, _mm512_set1_epi32(0xFF));
        const Lanes which = _mm512_srli_epi32(_mm512_add_epi32(low_byte, _mm512_add_epi32(low_byte, low_byte)), 7);
        const __mmask16 likely =
            _mm512_test_epi32_mask(word_, _mm512_sllv_epi32(_mm512_set1_epi32(PairPlaces::kSeeds), which));
        const Lanes upper_tag = _mm512_and_si512(upper_, _mm512_set1_epi32(0xFFFF));
        const Lanes turned =
            _mm512_rorv_epi32(_mm512_xor_si512(right_hash_, upper_tag), _mm512_and_si512(word_, _mm512_set1_epi32(31)));
        const Lanes flip = _mm512_slli_epi32(_mm512_srli_epi32(word_, 5), 1);
        const Lanes offset =
            _mm512_and_si512(_mm512_xor_si512(turned, flip), _mm512_set1_epi32(PairPlaces::kWindow - 1));
        const Lanes at = _mm512_add_epi32(_mm512_add_epi32(bucket_, bucket_), offset);
        const __m256i at_low = _mm512_castsi512_si256(at), at_high = _mm512_extracti64x4_epi64(at, 1);
        const __m512i none = _mm512_setzero_si512();
        const __m512i low = _mm512_mask_i32gather_epi64(none, static_cast<__mmask8>(likely), at_low, places.entries, 8);
        const __m512i high =
            _mm512_mask_i32gather_epi64(none, static_cast<__mmask8>(likely >> 8), at_high, places.entries, 8);

        // The entries' lower and upper halves.
        const Lanes even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const Lanes entry_low = _mm512_permutex2var_epi32(low, even, high);
        const Lanes entry_high = _mm512_permutex2var_epi32(low, _mm512_or_si512(even, _mm512_set1_epi32(1)), high);
        const Lanes tag_low = _mm512_slli_epi32(right_, 24);
        const Lanes tag_high = _mm512_or_si512(_mm512_slli_epi32(upper_tag, 16), _mm512_srli_epi32(right_, 8));
        const Lanes merged = _mm512_xor_si512(entry_low, tag_low);
        const __mmask16 same = _mm512_mask_cmpeq_epi32_mask(likely, entry_high, tag_high);
        const __mmask16 also = _mm512_mask_cmplt_epu32_mask(same, merged, _mm512_set1_epi32(1 << 24));
        const __mmask16 found = _mm512_mask_test_epi32_mask(also, _mm512_or_si512(entry_low, entry_high), no_key());
        return _mm512_mask_mov_epi32(no_key(), found, keys_of(merged, row_));
    }

  private:
    Lanes row_, right_, right_hash_, upper_, bucket_, word_;
};

LLMFAST_AVX512_INLINE inline Lanes lowest_bit(Lanes bits) {
    return _mm512_and_si512(bits, _mm512_sub_epi32(_mm512_setzero_si512(), bits));
}

LLMFAST_AVX512_INLINE inline Lanes place_of_highest(Lanes bits) {
    return _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_lzcnt_epi32(bits));
}

// Transposes a matrix of 16 by 16: for each bit of the index, swaps the elements whose row and column differ in it.
LLMFAST_AVX512_INLINE inline void transpose(Lanes* rows) {
    const Lanes lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (size_t bit = 1; bit < kLanes; bit *= 2) {
        const Lanes bits = _mm512_set1_epi32(static_cast<int>(bit));
        const __mmask16 odd = _mm512_test_epi32_mask(lane, bits);
        const Lanes moved = _mm512_add_epi32(_mm512_sub_epi32(lane, bits), _mm512_set1_epi32(16));
        // Of a, and of b moved up.
        const Lanes first = _mm512_mask_mov_epi32(lane, odd, moved);
        const Lanes second =
            _mm512_mask_mov_epi32(_mm512_add_epi32(lane, bits), odd, _mm512_add_epi32(lane, _mm512_set1_epi32(16)));
#pragma GCC unroll 16
        for (size_t i = 0; i < kLanes; ++i) {
            if (i & bit) continue;
            const Lanes a = rows[i], b = rows[i | bit];
            rows[i] = _mm512_permutex2var_epi32(a, first, b);
            rows[i | bit] = _mm512_permutex2var_epi32(a, second, b);
        }
    }
}

// A group of up to 16 pieces. Row i holds the i-th part of each piece, or the key of that part and the next, as a
// vector. A key has the rank of the pair in its upper bits and the row in its lower five: the smallest of a piece is
// the next pair to merge.
class Avx512Lanes {
  public:
    LLMFAST_AVX512 void start(const PairPlaces& places, std::span<Piece* const> pieces) {
        pieces_ = pieces;
        const size_t count = pieces.size();
        rows_ = 0;
        for (size_t i = 0; i < count; ++i) rows_ = std::max(rows_, pieces[i]->count);
        alignas(64) uint32_t left_of[kLanes] = {};
        for (size_t i = 0; i < count; ++i) left_of[i] = ~0u >> (32 - pieces[i]->count);
        left_ = _mm512_load_si512(left_of);
        Lanes all = _mm512_setzero_si512();
        for (size_t from = 0; from < rows_; from += kLanes) {
            Lanes* const rows = ids_ + from;
            for (size_t i = 0; i < kLanes; ++i) {
                rows[i] = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(left_of[i] >> from),
                                                   i < count ? pieces[i]->ids + from : nullptr);
                rows[i] = _mm512_and_si512(rows[i], _mm512_set1_epi32(static_cast<int>(~kCut)));
                all = _mm512_or_si512(all, rows[i]);
            }
            transpose(rows);
        }
        const bool all_low = !_mm512_cmpge_epu32_mask(all, _mm512_set1_epi32(256));
        best_ = no_key();
        for (size_t row = 0; row + 1 < rows_; ++row) {
            const __mmask16 wanted = _mm512_test_epi32_mask(left_, _mm512_set1_epi32(static_cast<int>(2u << row)));
            const Lanes here = _mm512_set1_epi32(static_cast<int>(row));
            if (all_low) {
                const Lanes at = _mm512_or_si512(_mm512_slli_epi32(ids_[row], 8), ids_[row + 1]);
                keys_[row] = keys_of(_mm512_mask_i32gather_epi32(no_key(), wanted, at, places.low_pairs, 4), here);
            } else {
                Finding finding;
                finding.read_words(places, ids_[row], ids_[row + 1], here, wanted);
                keys_[row] = finding.keys(places);
            }
            best_ = _mm512_min_epu32(best_, keys_[row]);
        }
    }

    LLMFAST_AVX512 bool is_done() const { return !_mm512_cmplt_epu32_mask(best_, _mm512_set1_epi32(1 << 29)); }

    // The first of three steps that merge the next pair of each piece: replaces it by its token, and reads the words of
    // the new pairs' buckets.
    LLMFAST_AVX512 void merge_best(const PairPlaces& places) {
        const Lanes zero = _mm512_setzero_si512(), one = _mm512_set1_epi32(1);
        const Lanes lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __mmask16 busy = _mm512_cmplt_epu32_mask(best_, _mm512_set1_epi32(1 << 29));
        const Lanes row = _mm512_mask_and_epi32(no_key(), busy, best_, _mm512_set1_epi32(31));
        const Lanes merged = _mm512_srli_epi32(best_, 5);
        const Lanes bit = _mm512_sllv_epi32(one, row);  // 0 in a lane that is done
        const Lanes above = _mm512_and_si512(left_, _mm512_sub_epi32(zero, _mm512_add_epi32(bit, bit)));
        const Lanes gone = lowest_bit(above);
        const Lanes behind = _mm512_xor_si512(above, gone);
        const Lanes before = _mm512_and_si512(left_, _mm512_sub_epi32(bit, one));
        const __mmask16 has_behind = _mm512_mask_test_epi32_mask(busy, behind, behind);
        const __mmask16 has_before = _mm512_mask_test_epi32_mask(busy, before, before);
        left_ = _mm512_xor_si512(left_, gone);

        const auto flat = [&](Lanes place)
                              LLMFAST_AVX512_INLINE { return _mm512_add_epi32(_mm512_slli_epi32(place, 4), lane); };
        const Lanes gone_row = place_of_highest(gone);  // -1 where there is none
        const Lanes previous_row = _mm512_mask_mov_epi32(no_key(), has_before, place_of_highest(before));
        _mm512_mask_i32scatter_epi32(ids_, busy, flat(row), merged, 4);
        const Lanes next_id =
            _mm512_mask_i32gather_epi32(zero, has_behind, flat(place_of_highest(lowest_bit(behind))), ids_, 4);
        const Lanes previous_id = _mm512_mask_i32gather_epi32(zero, has_before, flat(previous_row), ids_, 4);
        behind_.read_words(places, merged, next_id, row, has_behind);
        before_.read_words(places, previous_id, merged, previous_row, has_before);
        row_ = row;
        gone_row_ = gone_row;
        previous_row_ = previous_row;
    }

    // The second step: reads the entries of the new pairs.
    LLMFAST_AVX512 void find_keys(const PairPlaces& places) {
        key_ = behind_.keys(places);
        previous_key_ = before_.keys(places);
    }

    // The third step: stores their keys and finds the smallest key of each piece.
    LLMFAST_AVX512 void find_best() {
        const Lanes row = row_, gone_row = gone_row_, previous_row = previous_row_, key = key_,
                    previous_key = previous_key_;
        best_ = no_key();
        for (size_t i = 0; i + 1 < rows_; ++i) {
            const Lanes here = _mm512_set1_epi32(static_cast<int>(i));
            Lanes renewed = keys_[i];
            renewed = _mm512_mask_mov_epi32(renewed, _mm512_cmpeq_epi32_mask(row, here), key);
            renewed = _mm512_mask_mov_epi32(renewed, _mm512_cmpeq_epi32_mask(gone_row, here), no_key());
            renewed = _mm512_mask_mov_epi32(renewed, _mm512_cmpeq_epi32_mask(previous_row, here), previous_key);
            keys_[i] = renewed;
            best_ = _mm512_min_epu32(best_, renewed);
        }
    }

    // Writes the remaining ids to the pieces.
    LLMFAST_AVX512 void finish() {
        alignas(64) uint32_t left_of[kLanes];
        _mm512_store_si512(left_of, left_);
        for (size_t i = 0; i < pieces_.size(); ++i) pieces_[i]->count = 0;
        for (size_t from = 0; from < rows_; from += kLanes) {
            Lanes* const rows = ids_ + from;
            transpose(rows);
            for (size_t i = 0; i < pieces_.size(); ++i) {
                Piece& piece = *pieces_[i];
                const __mmask16 left = static_cast<__mmask16>(left_of[i] >> from);
                const unsigned kept = static_cast<unsigned>(std::popcount(static_cast<uint32_t>(left)));
                const Lanes packed = _mm512_maskz_compress_epi32(left, rows[i]);
                _mm512_mask_storeu_epi32(piece.ids + piece.count, static_cast<__mmask16>((1u << kept) - 1), packed);
                piece.count += kept;
            }
        }
    }

  private:
    std::span<Piece* const> pieces_;
    size_t rows_;
    Lanes left_;  // a bit for each row: whether a part starts there
    Lanes best_;
    Lanes row_, gone_row_, previous_row_, key_, previous_key_;
    Finding behind_, before_;
    Lanes ids_[kMostLaneParts], keys_[kMostLaneParts];
};

}  // namespace llmfast

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif
