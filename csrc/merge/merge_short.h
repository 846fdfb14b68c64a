// Merges one piece of up to 64 parts. One word has a bit for each part that is left. A pair's key has its rank in the
// upper bits and its place in the lower bits: the smallest key is the next pair to merge.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "merge/pair_table.h"
#include "merge/piece.h"
#include "system/cpu_features.h"

namespace llmfast {

constexpr size_t kMostShort = 64;  // parts

class ShortMerge {
  public:
    void start(const PairPlaces& places, uint32_t* ids, size_t count) {
        ids_ = ids;
        count_ = count;
        left_ = ~0ull >> (64 - count);
        std::fill_n(keys_, (count + 15) / 16 * 16, kNone);
        uint32_t all = 0;
        for (size_t i = 0; i < count; ++i) all |= ids[i] &= ~kCut;
        if (all < 256) {
            for (size_t i = 0; i + 1 < count; ++i) keys_[i] = key_of(places.low_pairs[ids[i] << 8 | ids[i + 1]], i);
        } else {
            for (size_t i = 0; i + 1 < count; ++i) keys_[i] = key_of(places.find(ids[i], ids[i + 1]), i);
        }
        best_ = smallest();
    }

    bool is_done() const { return best_ >= kNone; }

    // Merges the next pair in place. The minimum of the remaining keys is computed while the new pairs are fetched from
    // memory.
    void merge_best(const PairPlaces& places) {
        const size_t place = best_ & 63, gone = next(place);
        const uint32_t merged = ids_[place] = best_ >> 6;
        left_ &= ~(1ull << gone);
        const size_t behind = next(place);
        const uint64_t before = left_ & ((1ull << place) - 1);
        const size_t previous = before ? 63 - static_cast<size_t>(std::countl_zero(before)) : place;
        keys_[gone] = keys_[place] = keys_[previous] = kNone;
        best_ = smallest();
        if (behind < 64) renew(place, places.find(merged, ids_[behind]));
        if (before) renew(previous, places.find(ids_[previous], merged));
    }

    // Writes the remaining ids and, unless `starts` is null, where their parts start. Returns how many there are.
    size_t finish(uint32_t* starts) {
        size_t kept = 0;
        for (uint64_t rest = left_; rest; rest &= rest - 1) {
            const size_t place = static_cast<size_t>(std::countr_zero(rest));
            if (starts) starts[kept] = static_cast<uint32_t>(place);
            ids_[kept++] = ids_[place];
        }
        return kept;
    }

  private:
    // kNoToken gives a key of at least kNone.
    static constexpr uint32_t kNone = (kLargestId + 1) << 6;
    static uint32_t key_of(uint32_t merged, size_t place) { return merged << 6 | static_cast<uint32_t>(place); }

    void renew(size_t place, uint32_t merged) {
        keys_[place] = key_of(merged, place);
        best_ = std::min(best_, keys_[place]);
    }
    size_t next(size_t place) const {
        return static_cast<size_t>(std::countr_zero(left_ & (~1ull << place)));  // 64 where there is none
    }
    uint32_t smallest() const {
        uint32_t best = kNone;
        for (size_t at = 0; at < count_; at += 16) {
            for (size_t i = 0; i < 16; ++i) best = std::min(best, keys_[at + i]);
        }
        return best;
    }

    uint32_t* ids_;
    size_t count_;
    uint32_t best_;
    uint64_t left_;  // a bit for each place: whether a part starts there
    uint32_t keys_[kMostShort];
};

inline size_t merge_short_portable(PairPlaces places, uint32_t* ids, size_t count, uint32_t* starts) {
    ShortMerge merge;
    merge.start(places, ids, count);
    while (!merge.is_done()) {
        merge.merge_best(places);
    }
    return merge.finish(starts);
}

LLMFAST_AVX2 inline size_t merge_short_avx2(PairPlaces places, uint32_t* ids, size_t count, uint32_t* starts) {
    return merge_short_portable(places, ids, count, starts);
}

// Merges `count` parts, 1 to 64, in place and returns how many are left; `starts`, unless null, receives where they
// start.
inline size_t merge_short(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t* starts = nullptr) {
    const PairPlaces& places = pairs.places();
    return has_avx2() ? merge_short_avx2(places, ids, count, starts) : merge_short_portable(places, ids, count, starts);
}

}  // namespace llmfast
