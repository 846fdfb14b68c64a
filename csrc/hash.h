// Hashing by one wide multiplication, both halves folded together.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace llmfast {

inline uint64_t hash_words(uint64_t low, uint64_t high) {
    low ^= 0x9E3779B97F4A7C15ull;
    high ^= 0xD6E8FEB86659FD93ull;
#if defined(_MSC_VER)
    uint64_t upper = 0;
    const uint64_t lower = _umul128(low, high, &upper);
    return lower ^ upper;
#else
    __extension__ using Wide = unsigned __int128;
    const Wide product = Wide{low} * high;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#endif
}

inline uint64_t hash_bytes(std::string_view bytes) {
    uint64_t hash = bytes.size();
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) {
        uint64_t word;
        std::memcpy(&word, bytes.data() + at, 8);
        hash = hash_words(word, hash);
    }
    uint64_t rest = 0;
    std::memcpy(&rest, bytes.data() + at, bytes.size() - at);
    return hash_words(rest, hash);
}

}  // namespace llmfast
