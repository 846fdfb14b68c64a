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

// The `count` <= 8 bytes at `at` as a number. Loads overlap: a copy of so many bytes would be a call.
inline uint64_t load_some(const char* at, size_t count) {
    const auto load = [at]<typename Word>(Word word, size_t offset) {
        std::memcpy(&word, at + offset, sizeof word);
        return uint64_t{word} << 8 * offset;
    };
    if (count == 8) return load(uint64_t{}, 0);
    if (count >= 4) return load(uint32_t{}, 0) | load(uint32_t{}, count - 4);
    return count == 0 ? 0 : load(uint8_t{}, 0) | load(uint8_t{}, count / 2) | load(uint8_t{}, count - 1);
}

inline uint64_t hash_bytes(std::string_view bytes) {
    uint64_t hash = bytes.size();
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) hash = hash_words(load_some(bytes.data() + at, 8), hash);
    return hash_words(load_some(bytes.data() + at, bytes.size() - at), hash);
}

}  // namespace llmfast
