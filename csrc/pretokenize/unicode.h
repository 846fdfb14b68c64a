// Character classes of Unicode code points, and UTF-8 read one character at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmfast {

enum CharacterClass : uint8_t {
    kLetter = 1,        // \p{L}
    kNumber = 2,        // \p{N}
    kSpace = 4,         // \s
    kMark = 8,          // \p{M}
    kUpper = 16,        // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
    kLower = 32,        // [\p{Ll}\p{Lm}\p{Lo}\p{M}]
    kPunctuation = 64,  // [\p{P}\p{S}]
    kNewline = 128,     // [\r\n]
};

// Two stages: the block of 128 code points, then the point in its block (csrc/tools/generate_unicode.py).
extern const uint8_t kUnicodeBlocks[];
extern const uint8_t kUnicodeClasses[];

inline uint8_t classes_of(uint32_t point) {
    return kUnicodeClasses[size_t{kUnicodeBlocks[point >> 7]} * 128 + (point & 127)];
}

struct Character {
    uint32_t size;  // bytes
    uint32_t point;
    uint8_t classes;
};

inline bool is_continuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// Length of the well-formed multi-byte sequence at `at` (Unicode, table 3-7), or 0; `point` receives the code point.
inline uint32_t multibyte_length(const uint8_t* at, const uint8_t* end, uint32_t& point) {
    const uint8_t lead = at[0];
    const ptrdiff_t left = end - at;
    if (lead < 0xC2) return 0;
    if (lead < 0xE0) {
        if (left < 2 || !is_continuation(at[1])) return 0;
        point = (lead & 0x1Fu) << 6 | (at[1] & 0x3Fu);
        return 2;
    }
    if (lead < 0xF0) {
        if (left < 3 || !is_continuation(at[1]) || !is_continuation(at[2])) return 0;
        point = (lead & 0x0Fu) << 12 | (at[1] & 0x3Fu) << 6 | (at[2] & 0x3Fu);
        return point >= 0x800 && (point < 0xD800 || point > 0xDFFF) ? 3 : 0;
    }
    if (lead > 0xF4 || left < 4) return 0;
    if (!is_continuation(at[1]) || !is_continuation(at[2]) || !is_continuation(at[3])) return 0;
    point = (lead & 0x07u) << 18 | (at[1] & 0x3Fu) << 12 | (at[2] & 0x3Fu) << 6 | (at[3] & 0x3Fu);
    return point >= 0x10000 && point <= 0x10FFFF ? 4 : 0;
}

// The character at `at` (< end). A byte that is not part of well-formed UTF-8 counts as one character of no class,
// as U+FFFD would: bytes entry points accept anything, and every byte still comes out as it went in.
inline Character character_at(const uint8_t* at, const uint8_t* end) {
    const uint8_t byte = *at;
    if (byte < 0x80) return {1, byte, kUnicodeClasses[byte]};  // the first block comes first
    uint32_t point = 0;
    const uint32_t size = multibyte_length(at, end, point);
    if (size == 0) return {1, 0xFFFD, kPunctuation};
    return {size, point, classes_of(point)};
}

// The character that ends at `end` (> begin).
inline Character character_before(const uint8_t* end, const uint8_t* begin) {
    for (const uint8_t* at = end - 1; at >= begin && end - at <= 4; --at) {
        if (is_continuation(*at)) continue;
        const Character character = character_at(at, end);
        if (at + character.size == end) return character;
        break;
    }
    return {1, 0xFFFD, kPunctuation};
}

}  // namespace llmfast
