// The splitting patterns of the GPT family as data: they are variations of one expression.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmfast {

using Byte = uint8_t;

// What sets one pattern of the GPT family apart from another.
struct Rules {
    bool letters_take_any_prefix;  // [^\r\n\p{L}\p{N}]?\p{L}+ rather than " ?\p{L}+"
    bool case_splits;              // o200k: a word is [upper]*[lower]+ or [upper]+[lower]*, contraction at its end
    int longest_number;            // digits in a piece; 0: any number, with a space before
    bool trailing_space_whole;     // \s+$ comes before \s*[\r\n]
};

constexpr Rules kGpt2 = {false, false, 0, true};
constexpr Rules kCl100k = {true, false, 3, true};
constexpr Rules kLlama3 = {true, false, 3, false};
constexpr Rules kQwen2 = {true, false, 1, false};
constexpr Rules kO200k = {true, true, 3, false};

// Bytes of the contraction that begins with the apostrophe at `at`, or 0. Case folding is Unicode's: \u017F is an s.
template <bool kIgnoreCase>
inline size_t contraction_length(const Byte* at, const Byte* end) {
    const ptrdiff_t left = end - at;
    if (left < 2 || at[0] != '\'') return 0;
    const Byte fold = kIgnoreCase ? 0x20 : 0;
    const Byte first = at[1] | fold;
    if (first == 's' || first == 'd' || first == 'm' || first == 't') return 2;
    if (left < 3) return 0;
    if (kIgnoreCase && at[1] == 0xC5 && at[2] == 0xBF) return 3;
    const Byte second = at[2] | fold;
    if ((first == 'l' && second == 'l') || (second == 'e' && (first == 'v' || first == 'r'))) return 3;
    return 0;
}

}  // namespace llmfast
