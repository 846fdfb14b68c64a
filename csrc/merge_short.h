// Merging one piece of up to 64 parts: which are left is one word, and a pair is a number whose smallest is the next to
// merge, rank in the upper bits and place in the lower.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "newer_machines.h"
#include "pair_table.h"

namespace llmfast {

constexpr size_t kMostShort = 64;  // parts

class ShortMerge {
  public:
    ShortMerge(const PairTable& pairs, uint32_t* ids, size_t count)
        : pairs_(pairs), ids_(ids), count_(count), left_(~0ull >> (64 - count)) {
        std::fill_n(keys_, (count + 15) / 16 * 16, kNone);
        for (size_t i = 0; i + 1 < count; ++i) keys_[i] = key(i, ids[i], ids[i + 1]);
    }

    // Merges the next pair in place; false if there is none.
    bool step() {
        const int32_t best = smallest();
        if (best == kNone) return false;
        const size_t place = static_cast<size_t>(best) & 63;
        const size_t gone = next(place);
        ids_[place] = static_cast<uint32_t>(best) >> 6;
        left_ &= ~(1ull << gone);
        const size_t behind = next(place);
        keys_[gone] = kNone;
        keys_[place] = behind < 64 ? key(place, ids_[place], ids_[behind]) : kNone;
        const uint64_t before = left_ & ((1ull << place) - 1);
        if (before) {
            const size_t previous = 63 - static_cast<size_t>(std::countl_zero(before));
            keys_[previous] = key(previous, ids_[previous], ids_[place]);
        }
        return true;
    }

    // Packs the ids that are left and, if asked, where their parts start. Returns how many there are.
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
    static constexpr int32_t kNone = INT32_MAX;  // above every pair: ids have 24 bits

    int32_t key(size_t place, uint32_t left, uint32_t right) const {
        const uint32_t merged = pairs_.find(left, right);
        return merged == kNoToken ? kNone : static_cast<int32_t>(merged << 6 | place);
    }
    size_t next(size_t place) const {
        return static_cast<size_t>(std::countr_zero(left_ & (~1ull << place)));  // 64 where there is none
    }
    int32_t smallest() const {
        int32_t best = kNone;
        for (size_t at = 0; at < count_; at += 16) {
            for (size_t i = 0; i < 16; ++i) best = std::min(best, keys_[at + i]);
        }
        return best;
    }

    const PairTable& pairs_;
    uint32_t* const ids_;
    const size_t count_;
    uint64_t left_;  // a bit for each place: whether a part starts there
    int32_t keys_[kMostShort];
};

inline size_t merge_short_anywhere(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t* starts) {
    ShortMerge merge(pairs, ids, count);
    while (merge.step()) {
    }
    return merge.finish(starts);
}

LLMFAST_NEWER inline size_t merge_short_newer(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t* starts) {
    return merge_short_anywhere(pairs, ids, count, starts);
}

// Merges `count` parts, 1 to 64, in place and returns how many are left; `starts`, unless null, receives where they start.
inline size_t merge_short(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t* starts = nullptr) {
    return is_newer() ? merge_short_newer(pairs, ids, count, starts) : merge_short_anywhere(pairs, ids, count, starts);
}

}  // namespace llmfast
