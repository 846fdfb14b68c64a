// Hashing by a 128-bit multiplication whose halves are combined, with a secret per process: nobody can construct inputs
// that collide.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace llmfast {

// Drawn at random when the library is loaded. Hashes decide where things are stored, never what a result is.
struct HashSecret {
    uint64_t low, high;
};
extern const HashSecret kHashSecret;

inline uint64_t hash_words(uint64_t low, uint64_t high, const HashSecret& secret = kHashSecret) {
    low ^= secret.low;
    high ^= secret.high;
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

// The `count` <= 8 bytes at `at` as a number. The loads overlap: copying a variable number of bytes would be a call.
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
    const HashSecret secret = kHashSecret;
    uint64_t hash = bytes.size();
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) hash = hash_words(load_some(bytes.data() + at, 8), hash, secret);
    return hash_words(load_some(bytes.data() + at, bytes.size() - at), hash, secret);
}

}  // namespace llmfast
