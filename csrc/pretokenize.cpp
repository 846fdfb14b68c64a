#include "pretokenize.h"

#include <stdexcept>

#include "unicode.h"

namespace llmfast {
namespace {

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

using Byte = uint8_t;

inline const Byte* skip(const Byte* at, const Byte* end, uint8_t classes) {
    while (at < end) {
        const Character character = character_at(at, end);
        if (!(character.classes & classes)) break;
        at += character.size;
    }
    return at;
}

// The end of a run of [^\s\p{L}\p{N}].
inline const Byte* skip_other(const Byte* at, const Byte* end) {
    while (at < end) {
        const Character character = character_at(at, end);
        if (character.classes & (kLetter | kNumber | kSpace)) break;
        at += character.size;
    }
    return at;
}

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

// The end of o200k's [upper]*[lower]+ from `at`, or nullptr. Marks and letters without case are in both classes, so
// the greedy [upper]* may have to give some back.
inline const Byte* lower_word(const Byte* at, const Byte* end) {
    const Byte* last_lower_end = nullptr;
    while (at < end) {
        const Character character = character_at(at, end);
        if (!(character.classes & kUpper)) break;
        at += character.size;
        if (character.classes & kLower) last_lower_end = at;
    }
    const Byte* stop = skip(at, end, kLower);
    return stop > at ? stop : last_lower_end;
}

// The end of o200k's [upper]+[lower]* from `at`, or nullptr.
inline const Byte* upper_word(const Byte* at, const Byte* end) {
    const Byte* stop = skip(at, end, kUpper);
    return stop > at ? skip(stop, end, kLower) : nullptr;
}

// The end of the o200k word at `at`, or nullptr; `after` is behind the character that may be a prefix.
inline const Byte* cased_word(const Byte* at, const Byte* after, const Byte* end, bool prefix_allowed) {
    const Byte* stop = nullptr;
    if (prefix_allowed) stop = lower_word(after, end);
    if (!stop) stop = lower_word(at, end);
    if (!stop && prefix_allowed) stop = upper_word(after, end);
    if (!stop) stop = upper_word(at, end);
    return stop ? stop + contraction_length<true>(stop, end) : nullptr;
}

template <Rules kRules>
inline const Byte* space_piece(const Byte* at, const Byte* end) {
    const Byte* last = at;           // the last character of the run
    const Byte* newline_end = at;    // behind its last newline
    const Byte* stop = at;
    while (stop < end) {
        const Character character = character_at(stop, end);
        if (!(character.classes & kSpace)) break;
        last = stop;
        stop += character.size;
        if (character.classes & kNewline) newline_end = stop;
    }
    if (stop == end && kRules.trailing_space_whole) return stop;
    if (kRules.letters_take_any_prefix && newline_end > at) return newline_end;
    return stop == end || last == at ? stop : last;
}

template <Rules kRules>
inline const Byte* number_piece(const Byte* at, const Byte* end) {
    if (kRules.longest_number == 0) return skip(at, end, kNumber);
    for (int digits = 0; digits < kRules.longest_number && at < end; ++digits) {
        const Character character = character_at(at, end);
        if (!(character.classes & kNumber)) break;
        at += character.size;
    }
    return at;
}

// The end of the piece that starts at `at` < end: the alternatives of the regular expression, in its order.
template <Rules kRules>
inline const Byte* next_piece(const Byte* at, const Byte* end) {
    const Character first = character_at(at, end);
    const Byte* after = at + first.size;

    if constexpr (!kRules.case_splits) {
        if (*at == '\'') {
            if (const size_t length = contraction_length<kRules.letters_take_any_prefix>(at, end)) return at + length;
        }
    }
    const bool prefix_allowed = kRules.letters_take_any_prefix
                                    ? !(first.classes & (kLetter | kNumber | kNewline))
                                    : *at == ' ';
    if constexpr (kRules.case_splits) {
        if (!(first.classes & (kNumber | kNewline))) {
            if (const Byte* stop = cased_word(at, after, end, prefix_allowed)) return stop;
        }
    } else {
        const Byte* letters = prefix_allowed ? after : at;
        const Byte* stop = skip(letters, end, kLetter);
        if (stop > letters) return stop;
    }

    if (first.classes & kNumber) return number_piece<kRules>(at, end);
    const Byte* body = *at == ' ' ? after : at;
    if constexpr (kRules.longest_number == 0) {
        const Byte* stop = skip(body, end, kNumber);
        if (stop > body) return stop;
    }
    const Byte* stop = skip_other(body, end);
    if (stop > body) {
        if constexpr (kRules.letters_take_any_prefix) {
            while (stop < end && (*stop == '\r' || *stop == '\n' || (kRules.case_splits && *stop == '/'))) ++stop;
        }
        return stop;
    }
    return space_piece<kRules>(at, end);
}

template <Rules kRules>
size_t split_by(const char* text, size_t length, uint32_t* ends, size_t capacity) {
    const Byte* const begin = reinterpret_cast<const Byte*>(text);
    const Byte* const end = begin + length;
    const Byte* at = begin;
    size_t count = 0;
    while (at < end && count < capacity) {
        at = next_piece<kRules>(at, end);
        const size_t offset = static_cast<size_t>(at - begin);
        if (offset > UINT32_MAX) {
            if (count == 0) throw std::length_error("a piece of 4 GiB or more cannot be encoded");
            break;
        }
        ends[count++] = static_cast<uint32_t>(offset);
    }
    return count;
}

size_t split_none(size_t length, uint32_t* ends) {
    if (length > UINT32_MAX) throw std::length_error("a piece of 4 GiB or more cannot be encoded");
    ends[0] = static_cast<uint32_t>(length);
    return length > 0;
}

// ---- DeepSeek: numbers, then runs of kanji and kana, are cut out first; the rest is split by itself.

inline bool is_kanji_or_kana(uint32_t point) {
    return (point >= 0x4E00 && point <= 0x9FA5) || (point >= 0x3040 && point <= 0x30FF);
}

inline bool is_ascii_letter(Byte byte) { return static_cast<Byte>((byte | 0x20) - 'a') < 26; }

inline bool is_ascii_punctuation(Byte byte) {
    return byte < 0x80 && (kUnicodeClasses[byte] & kPunctuation);
}

const Byte* skip_kanji_and_kana(const Byte* at, const Byte* end) {
    while (at < end) {
        const Character character = character_at(at, end);
        if (!is_kanji_or_kana(character.point)) break;
        at += character.size;
    }
    return at;
}

// The end of the stretch without numbers, kanji and kana.
const Byte* deepseek_segment(const Byte* at, const Byte* end) {
    while (at < end) {
        const Character character = character_at(at, end);
        if ((character.classes & kNumber) || is_kanji_or_kana(character.point)) break;
        at += character.size;
    }
    return at;
}

// The end of the match of the third expression at `at`, or `at` where it has none. `end` ends the segment.
const Byte* deepseek_match(const Byte* at, const Byte* end) {
    const Character first = character_at(at, end);
    const Byte* after = at + first.size;
    if (is_ascii_punctuation(*at) && after < end && is_ascii_letter(*after)) {
        while (after < end && is_ascii_letter(*after)) ++after;
        return after;
    }
    if (!(first.classes & (kNewline | kLetter | kPunctuation))) {
        const Byte* stop = skip(after, end, kLetter | kMark);
        if (stop > after) return stop;
    }
    if (first.classes & (kLetter | kMark)) return skip(at, end, kLetter | kMark);
    const Byte* body = *at == ' ' ? after : at;
    const Byte* stop = skip(body, end, kPunctuation);
    if (stop > body) {
        while (stop < end && (*stop == '\r' || *stop == '\n')) ++stop;
        return stop;
    }
    return first.classes & kSpace ? space_piece<kLlama3>(at, end) : at;
}

size_t split_deepseek(const char* text, size_t length, uint32_t* ends, size_t capacity) {
    const Byte* const begin = reinterpret_cast<const Byte*>(text);
    const Byte* const end = begin + length;
    const Byte* at = begin;
    const Byte* segment = begin;
    size_t count = 0;
    while (at < end && count < capacity) {
        if (at == segment) segment = deepseek_segment(at, end);
        if (at == segment) {  // a number, kanji or kana
            const Byte* stop = number_piece<kLlama3>(at, end);
            at = segment = stop > at ? stop : skip_kanji_and_kana(at, end);
        } else {
            const Byte* stop = deepseek_match(at, segment);
            if (stop == at) {  // what the expression does not match, up to its next match, is a piece too
                do stop += character_at(stop, segment).size;
                while (stop < segment && deepseek_match(stop, segment) == stop);
            }
            at = stop;
        }
        const size_t offset = static_cast<size_t>(at - begin);
        if (offset > UINT32_MAX) {
            if (count == 0) throw std::length_error("a piece of 4 GiB or more cannot be encoded");
            break;
        }
        ends[count++] = static_cast<uint32_t>(offset);
    }
    return count;
}

}  // namespace

size_t split(Pattern pattern, const char* text, size_t length, uint32_t* ends, size_t capacity) {
    switch (pattern) {
        case Pattern::none: return split_none(length, ends);
        case Pattern::gpt2: return split_by<kGpt2>(text, length, ends, capacity);
        case Pattern::cl100k: return split_by<kCl100k>(text, length, ends, capacity);
        case Pattern::llama3: return split_by<kLlama3>(text, length, ends, capacity);
        case Pattern::qwen2: return split_by<kQwen2>(text, length, ends, capacity);
        case Pattern::o200k: return split_by<kO200k>(text, length, ends, capacity);
        case Pattern::deepseek: return split_deepseek(text, length, ends, capacity);
    }
    return 0;
}

size_t certain_boundary(Pattern pattern, const char* text, size_t length, size_t from) {
    if (pattern == Pattern::none) return length;
    // White space behind a letter starts a piece under every pattern, and what stands before a letter ends with it.
    for (size_t at = from > 0 ? from : 1; at < length; ++at) {
        const Byte here = static_cast<Byte>(text[at]);
        const Byte before = static_cast<Byte>(text[at - 1]);
        if ((here == ' ' || here == '\n') && static_cast<Byte>((before | 0x20) - 'a') < 26) return at;
    }
    return length;
}

}  // namespace llmfast
