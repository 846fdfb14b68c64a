// The table of merges, from two adjacent tokens to the token they merge into: one entry for each token that merging can
// make.
//
// Only one pair ever makes a given token: the last merge when the token's bytes are merged by themselves. For merging
// inside a range of bytes does not depend on the bytes around it until a merge crosses an end of the range.
#pragma once

#include <array>
#include <bit>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "system/pages.h"
#include "vocabulary/vocabulary.h"

namespace llmfast {

// The layout of the hash table, in which a lookup reads one word and one entry. An invertible hash maps a pair of
// 24-bit ids to `upper` (24 bits) and `right` (24 bits). The first bits of `upper` choose a bucket, which has a word of
// 16 bits: six bits are a Bloom filter of the bucket's pairs, and ten bits are a seed. The seed decides where each pair
// of the bucket is among the 64 entries that begin at twice the bucket's number (a perfect hash). An entry has the
// lower 16 bits of `upper`, `right`, and the 24 bits of the merged token; the remaining bits of `upper` follow from the
// bucket.
struct PairPlaces {
    static constexpr uint32_t kLeft = 0x9E3779B1, kRight = 0x85EBCA77;  // odd
    static constexpr size_t kWindow = 64;
    static constexpr uint32_t kSeeds = 1 << 10;

    const uint16_t* buckets;
    const uint64_t* entries;
    const uint32_t* low_pairs;  // what two tokens below 256, as the bytes mostly are, merge into, or kNoToken
    int shift;                  // from `upper` to the bucket

    static uint32_t upper(uint32_t left, uint32_t right) { return (left * kLeft + (right * kRight >> 8)) & 0xFFFFFF; }
    static uint64_t tag(uint32_t upper, uint32_t right) { return uint64_t{upper} << 48 | uint64_t{right} << 24; }
    size_t bucket(uint32_t upper) const { return upper >> shift; }
    static uint32_t likely_bit(uint32_t upper) { return kSeeds << ((upper & 0xFF) * 3 >> 7); }

    // The index of the entry in the window of its bucket.
    static size_t offset(uint64_t tag, uint32_t seed) {
        const uint32_t right = static_cast<uint32_t>(tag >> 24) & 0xFFFFFF, upper = static_cast<uint32_t>(tag >> 48);
        return (std::rotr(right * kRight ^ upper, static_cast<int>(seed & 31)) ^ seed >> 5 << 1) % kWindow;
    }

    // Returns false for most pairs that do not merge.
    bool may_have(uint32_t upper) const { return (buckets[bucket(upper)] & likely_bit(upper)) != 0; }

    // The token that a pair merges into, or kNoToken, if may_have() is true for it. There is no branch, since it would
    // often be mispredicted.
    uint32_t find_likely(uint32_t upper, uint32_t right) const {
        const uint64_t pair = tag(upper, right);
        const uint64_t entry = entries[2 * bucket(upper) + offset(pair, buckets[bucket(upper)])];
        const uint32_t found = (entry != 0) & ((entry ^ pair) < (1u << 24));
        return static_cast<uint32_t>(entry & 0xFFFFFF) | (found - 1);
    }

    // The token that `left` and `right` merge into, or kNoToken.
    uint32_t find(uint32_t left, uint32_t right) const {
        const uint32_t up = upper(left, right);
        return may_have(up) ? find_likely(up, right) : kNoToken;
    }
};

class PairTable {
  public:
    explicit PairTable(const Vocabulary& vocabulary);

    // The token that `left` and `right` merge into, or kNoToken.
    uint32_t find(uint32_t left, uint32_t right) const { return places_.find(left, right); }
    const PairPlaces& places() const { return places_; }

    // The token of a byte, or kNoToken.
    uint32_t byte(uint8_t byte) const { return bytes_[byte]; }

    // The token that the bytes of a character of two or three bytes merge into, or kNoToken. Merging may start from
    // such tokens only if every token has a higher id than its parts, as training makes them; otherwise this is always
    // kNoToken.
    uint32_t character(uint32_t point) const { return point < characters_.size() ? characters_[point] : kNoToken; }

    // Whether some token spans a character boundary between these two bytes without starting and ending on one.
    bool straddles(uint8_t before, uint8_t behind) const { return straddles_[size_t{before} << 8 | behind]; }

    // Whether some token may contain these two characters next to each other, at least one of which is not ASCII.
    bool may_adjoin(uint32_t before, uint32_t behind) const {
        const uint32_t bit = adjoining_bit(before, behind);
        return adjoining_[bit >> 6] >> (bit & 63) & 1;
    }

  private:
    bool fill(const Vocabulary& vocabulary, const std::vector<uint32_t>& positions, int bits);
    bool insert(uint32_t left, uint32_t right, uint32_t merged);
    void prefetch(uint32_t left, uint32_t right) const;
    void add_character(std::string_view token, uint32_t id);
    void add_adjoining(std::string_view token);

    static constexpr int kAdjoiningBits = 19;
    static uint32_t adjoining_bit(uint32_t before, uint32_t behind) {
        return (before * 0x9E3779B1 + behind) * 0x85EBCA77 >> (32 - kAdjoiningBits);
    }

    PairPlaces places_;
    std::unique_ptr<Pages> buckets_, entries_;
    std::vector<uint32_t> low_pairs_;
    std::array<uint32_t, 256> bytes_;
    std::vector<uint32_t> characters_;
    std::bitset<65536> straddles_;
    std::vector<uint64_t> adjoining_;
};

}  // namespace llmfast
