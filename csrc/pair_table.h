// Which two adjacent tokens merge into which: one entry for each token that merging can reach.
//
// A token is reached through one pair only, the last merge when its bytes are merged by themselves: merging inside a
// stretch of bytes does not depend on what is around it until something crosses its ends. Other ways to cut the token
// into two never come up.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "pages.h"
#include "prefetch.h"
#include "vocabulary.h"

namespace llmfast {

class PairTable {
  public:
    explicit PairTable(const Vocabulary& vocabulary);

    // False for most pairs that do not merge.
    bool may_have(uint32_t left, uint32_t right) const { return passes(scramble(left, right)); }

    // Asks for the memory that the pair is looked up in.
    void prefetch(uint32_t left, uint32_t right) const { prefetch_line(entries() + (scramble(left, right) >> shift_)); }

    // The token that `left` and `right` merge into, or kNoToken.
    uint32_t find(uint32_t left, uint32_t right) const {
        return may_have(left, right) ? find_likely(left, right) : kNoToken;
    }

    // The same for a pair that may_have() holds likely.
    uint32_t find_likely(uint32_t left, uint32_t right) const {
        const uint64_t pair = scramble(left, right);
        const uint64_t tag = pair << 24;
        const uint64_t* const home = entries() + (pair >> shift_);
        for (const uint64_t* entry = home; entry <= home + kFurthest && *entry != 0; ++entry) {
            if ((*entry ^ tag) < (1u << 24)) return static_cast<uint32_t>(*entry & 0xFFFFFF);
        }
        return kNoToken;
    }

    // What two tokens below 256, as the bytes mostly are, merge into, times 64; kNoLowPair where they do not merge.
    static constexpr int32_t kNoLowPair = INT32_MAX;
    int32_t low_pair(uint32_t left, uint32_t right) const { return low_pairs_[size_t{left} << 8 | right]; }

    // The token of a byte, or kNoToken.
    uint32_t byte(uint8_t byte) const { return bytes_[byte]; }

    // The token that the bytes of a character of two or three bytes merge into, or kNoToken. Merging may start from
    // it only if ranks grow from merge to merge, as training makes them; where they do not, there are none.
    uint32_t character(uint32_t point) const { return point < characters_.size() ? characters_[point] : kNoToken; }

    // Whether some token spans a character boundary between these two bytes without starting and ending on one.
    bool straddles(uint8_t before, uint8_t behind) const { return straddles_[size_t{before} << 8 | behind]; }

  private:
    // A pair as 48 bits, mixed so that nothing is lost. The upper ones say where it belongs; the lower 40 are kept
    // beside the 24 bits of the token, and tell pairs apart that are not further than kFurthest from there.
    static constexpr size_t kFurthest = 255;
    static uint64_t scramble(uint32_t left, uint32_t right) {
        return ((uint64_t{left} << 24 | right) * 0x9E3779B97F4B) & ((1ull << 48) - 1);
    }
    bool passes(uint64_t pair) const {
        const uint64_t bit = pair >> (shift_ - 3);
        return filter()[bit >> 6] >> (bit & 63) & 1;
    }
    uint64_t* entries() const { return static_cast<uint64_t*>(entries_->data()); }
    uint64_t* filter() const { return static_cast<uint64_t*>(filter_->data()); }

    bool fill(const Vocabulary& vocabulary, const std::vector<uint32_t>& ids, int bits);
    bool insert(uint32_t left, uint32_t right, uint32_t merged);
    void add_character(std::string_view token, uint32_t id);

    int shift_;                        // from a scrambled pair to its place
    std::unique_ptr<Pages> entries_;   // 0: empty
    std::unique_ptr<Pages> filter_;    // a bit for an eighth of a place: most lookups end in this nearer memory
    std::vector<int32_t> low_pairs_;
    std::array<uint32_t, 256> bytes_;
    std::vector<uint32_t> characters_;
    std::bitset<65536> straddles_;
};

}  // namespace llmfast
