// Short byte strings as two machine words, to compare and hash at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "hash.h"

namespace llmfast {

constexpr size_t kLongestShortKey = 15;

// Up to 15 bytes, zero-padded, with their number in the last byte.
struct Key {
    uint64_t low, high;
    bool operator==(const Key& other) const { return low == other.low && high == other.high; }
};

// The key of `length` <= 15 bytes at `at`; 16 bytes are read where `readable` says that they may be.
inline Key short_key(const char* at, size_t length, bool readable) {
    static constexpr uint64_t kKeep[2][16] = {
        {0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF, ~0ull, ~0ull, ~0ull,
         ~0ull, ~0ull, ~0ull, ~0ull, ~0ull},
        {0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFF, 0xFFFFFFFFFFFF,
         0xFFFFFFFFFFFFFF}};
    uint64_t words[2] = {0, 0};
    if (readable) {
        std::memcpy(words, at, 16);
    } else {
        std::memcpy(words, at, length);
    }
    return {words[0] & kKeep[0][length], (words[1] & kKeep[1][length]) | uint64_t{length} << 56};
}

inline uint64_t hash_key(Key key) { return hash_words(key.low, key.high); }

constexpr size_t kLongestMediumKey = 31;

// Up to 31 bytes: those of a short key, or the first and the last 16, which overlap. The length is in the lowest byte of
// the last word, which is thus neither 0 nor ~0.
struct MediumKey {
    uint64_t words[4];
};

inline MediumKey medium_key(const char* at, size_t length) {
    MediumKey key;
    if (length <= kLongestShortKey) {
        const Key low = short_key(at, length, false);
        return {{low.low, low.high, 0, length}};
    }
    std::memcpy(key.words, at, 16);
    std::memcpy(key.words + 2, at + length - 16, 16);
    std::swap(key.words[2], key.words[3]);
    key.words[3] = (key.words[3] & ~uint64_t{0xFF}) | length;  // byte length - 16 stands among the first ones, too
    return key;
}

inline uint64_t hash_key(const MediumKey& key) {
    return hash_words(hash_words(key.words[0], key.words[1]) ^ key.words[2], key.words[3]);
}

}  // namespace llmfast
