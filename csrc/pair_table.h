// Which two adjacent tokens merge into which: one entry for each token that merging can reach.
//
// A token is reached through one pair only, the last merge when its bytes are merged by themselves; other ways to cut
// it into two tokens never come up. That holds where a token's rank is above those of its two halves, as training
// makes them; `is_ordered` says whether it does.
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

struct MergeScratch;

class PairTable {
  public:
    explicit PairTable(const Vocabulary& vocabulary);

    // False: some token has a lower rank than a half of it, and merging has to look bytes up.
    bool is_ordered() const { return ordered_; }

    // The token that `left` and `right` merge into, or kNoToken.
    uint32_t find(uint32_t left, uint32_t right) const {
        for (size_t at = index(left, right);; at = (at + 1) & mask_) {
            const Entry& entry = entries_[at];
            if (entry.left == left && entry.right == right) return entry.merged;
            if (entry.merged == kNoToken) return kNoToken;
        }
    }

    // The token of a byte, or kNoToken.
    uint32_t byte(uint8_t byte) const { return bytes_[byte]; }

    // The token that the bytes of a character of two or three bytes merge into, or kNoToken.
    uint32_t character(uint32_t point) const { return point < characters_.size() ? characters_[point] : kNoToken; }

    // Whether some token spans a character boundary between these two bytes without starting and ending on one.
    bool straddles(uint8_t before, uint8_t behind) const { return straddles_[size_t{before} << 8 | behind]; }

  private:
    struct Entry { uint32_t left, right, merged; };

    size_t index(uint32_t left, uint32_t right) const { return hash_words(uint64_t{left} << 32 | right, 0) & mask_; }
    void insert(uint32_t left, uint32_t right, uint32_t merged);
    void add_token(const Vocabulary& vocabulary, uint32_t id, MergeScratch& scratch);
    void add_character(std::string_view token, uint32_t id);

    std::vector<Entry> entries_;
    size_t mask_;
    std::array<uint32_t, 256> bytes_;
    std::vector<uint32_t> characters_;
    std::bitset<65536> straddles_;
    bool ordered_ = true;
};

}  // namespace llmfast
