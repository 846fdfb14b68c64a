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
#include <string_view>
#include <vector>

#include "hash.h"
#include "vocabulary.h"

namespace llmfast {

class PairTable {
  public:
    explicit PairTable(const Vocabulary& vocabulary);

    // The token that `left` and `right` merge into, or kNoToken.
    uint32_t find(uint32_t left, uint32_t right) const {
        const uint64_t hash = hash_pair(left, right);
        if (!(filter_[hash >> filter_shift_ >> 6] >> (hash >> filter_shift_ & 63) & 1)) return kNoToken;
        for (size_t at = hash & mask_;; at = (at + 1) & mask_) {
            const Entry& entry = entries_[at];
            if (entry.left == left && entry.right == right) return entry.merged;
            if (entry.merged == kNoToken) return kNoToken;
        }
    }

    // The token of a byte, or kNoToken; the token of two bytes, or kNoToken.
    uint32_t byte(uint8_t byte) const { return bytes_[byte]; }
    uint32_t byte_pair(uint8_t left, uint8_t right) const { return byte_pairs_[size_t{left} << 8 | right]; }

    // The token that the bytes of a character of two or three bytes merge into, or kNoToken. Merging may start from
    // it only if ranks grow from merge to merge, as training makes them; where they do not, there are none.
    uint32_t character(uint32_t point) const { return point < characters_.size() ? characters_[point] : kNoToken; }

    // Whether some token spans a character boundary between these two bytes without starting and ending on one.
    bool straddles(uint8_t before, uint8_t behind) const { return straddles_[size_t{before} << 8 | behind]; }

  private:
    struct Entry { uint32_t left, right, merged; };

    static uint64_t hash_pair(uint32_t left, uint32_t right) { return hash_words(uint64_t{left} << 32 | right, 0); }
    void insert(uint32_t left, uint32_t right, uint32_t merged);
    void add_character(std::string_view token, uint32_t id);

    std::vector<Entry> entries_;
    size_t mask_;
    std::vector<uint64_t> filter_;  // a bit for each hash that an entry has: most lookups end here, in nearer memory
    int filter_shift_;
    std::array<uint32_t, 256> bytes_;
    std::vector<uint32_t> byte_pairs_, characters_;
    std::bitset<65536> straddles_;
};

}  // namespace llmfast
