// Short byte strings as two machine words, which are compared and hashed in a few instructions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "system/hash.h"

namespace llmfast {

constexpr size_t kLongestShortKey = 15;

// Up to 15 bytes, zero-padded, with their number in the last byte.
struct Key {
    uint64_t low, high;
    bool operator==(const Key& other) const { return low == other.low && high == other.high; }
};

constexpr uint64_t kNoKey = ~1ull;  // no key is this high

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
        words[0] = load_some(at, length < 8 ? length : 8);
        if (length > 8) words[1] = load_some(at + 8, length - 8);
    }
    return {words[0] & kKeep[0][length], (words[1] & kKeep[1][length]) | uint64_t{length} << 56};
}

// Of the result, the high bits are the best distributed.
inline uint64_t hash_key(const Key& key, const HashSecret& secret = kHashSecret) {
    return hash_words(key.low, key.high, secret);
}

// The bytes of a key.
inline std::string_view bytes_of(const Key& key) {
    return {reinterpret_cast<const char*>(&key), static_cast<size_t>(key.high >> 56)};
}

}  // namespace llmfast
