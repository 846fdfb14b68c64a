// Finds where pieces start in 64 bytes by arithmetic on bit masks, as pretokenize.cpp does one character at a time. A
// shift to the left refers to the character before, a shift to the right to the one after; an addition carries through
// runs. All bytes of a character have its classes, so that runs are runs in any script.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "pretokenize/classify.h"
#include "pretokenize/rules.h"
#include "pretokenize/unicode.h"

namespace llmfast {

inline int lowest_bit(uint64_t mask) { return std::countr_zero(mask); }
inline int highest_bit(uint64_t mask) { return 63 - std::countl_zero(mask); }
inline uint64_t bit(size_t at) { return at < 64 ? 1ull << at : 0; }
inline uint64_t run_starts(uint64_t mask) { return mask & ~(mask << 1); }

// White space that no newline follows in its run, where a newline stands before: it starts a piece (\s*[\r\n] took
// the rest). `indents` are the first bits of such candidates.
inline uint64_t without_blank_lines(uint64_t indents, uint64_t horizontal, uint64_t newline) {
    uint64_t blank_line_ends = (horizontal + indents) & ~horizontal & newline;
    for (; blank_line_ends; blank_line_ends &= blank_line_ends - 1) {
        const uint64_t below = indents & ((blank_line_ends & -blank_line_ends) - 1);
        if (below) indents &= ~(1ull << highest_bit(below));
    }
    return indents;
}

// Adds the characters among `text[0, count)` that are not ASCII to the masks; `inside` receives their bytes behind the
// first. Returns how many bytes it went over: it stops before numbers, white space and, where case splits words,
// before what a word may have on both sides of a split.
template <Rules kRules>
inline int add_other_scripts(Masks& m, uint64_t& inside, int count, const Byte* text, const Byte* text_end) {
    constexpr uint8_t kNotHere = kNumber | kSpace | (kRules.case_splits ? kMark : 0);
    uint64_t either_case = 0;
    for (uint64_t rest = m.high & (~0ull >> (64 - count)); rest;) {
        const int at = lowest_bit(rest);
        const Character character = character_at(text + at, text_end);
        const int size = static_cast<int>(character.size);
        if ((character.classes & kNotHere) || at + size > count) {
            count = at;
            break;
        }
        const uint64_t bytes = ((1ull << size) - 1) << at;
        rest &= ~bytes;
        inside |= bytes & (bytes << 1);
        if (character.classes & kLetter) m.letter |= bytes;
        if constexpr (kRules.case_splits) {
            if (!(character.classes & kLower)) m.upper |= bytes & m.letter;
            if ((character.classes & kLower) && (character.classes & kUpper)) either_case |= bytes;
        }
    }
    const uint64_t unclear = m.upper & either_case << 1;
    return unclear ? std::min(count, lowest_bit(unclear)) : count;
}

// The bytes `text[0, count)`, count <= 64, classified in `m`, and `inside` a character, start a piece at bit 0. Returns
// the bits > 0 where other pieces start for certain, whatever follows: those too near to the end or to a character that
// is left to pretokenize.cpp are not among them, nor are those inside white space that reaches it.
template <Rules kRules>
inline uint64_t piece_starts(const Masks& m, uint64_t inside, int count, const Byte* text, const Byte* text_end) {
    if (count < 4) return 0;
    const uint64_t valid = ~0ull >> (64 - count);
    const uint64_t letter = m.letter & valid, digit = m.digit & valid, space = m.space & valid;
    const uint64_t after_blank = m.blank << 1;
    uint64_t other = valid & ~(letter | digit | space);
    if (space == valid) return 0;
    const int last_certain = std::min(highest_bit(valid & ~space), count - 3);

    uint64_t starts, opening;  // `opening`: an [^\s\p{L}\p{N}] that starts a piece
    if constexpr (!kRules.letters_take_any_prefix) {
        opening = run_starts(other) & ~after_blank;
        starts = opening | ((run_starts(letter) | run_starts(digit)) & ~after_blank);
        starts |= run_starts(space) | (space & ~(space >> 1));
    } else {
        const uint64_t newline = m.newline & valid;
        // Newlines right behind punctuation belong to it; in o200k slashes among them too.
        const uint64_t tail = kRules.case_splits ? newline | (m.slash & valid) : newline;
        const uint64_t tail_starts = newline & (other << 1);
        const uint64_t taken = (tail & ~(tail + tail_starts)) | tail_starts;
        other &= ~taken;
        opening = run_starts(other) & ~after_blank;

        const uint64_t white = space & ~taken;
        const uint64_t horizontal = white & ~newline;
        starts = opening | run_starts(white) | (horizontal & ~(space >> 1));
        starts |= without_blank_lines(horizontal & ((newline & ~taken) << 1), horizontal, newline);
        const uint64_t behind_opening = (inside + (opening << 1)) & ~inside;
        starts |= run_starts(letter) & ~(horizontal << 1) & ~behind_opening;

        if constexpr (kRules.longest_number == 1) {
            starts |= digit;
        } else {
            const uint64_t fourth = digit & digit << 1 & digit << 2 & digit << 3;
            for (uint64_t number = run_starts(digit); number; number = number << 3 & fourth) starts |= number;
        }
    }

    if constexpr (!kRules.case_splits) {  // a contraction is a piece
        for (uint64_t quotes = m.apostrophe & opening; quotes; quotes &= quotes - 1) {
            const size_t at = static_cast<size_t>(lowest_bit(quotes));
            const size_t length = contraction_length<kRules.letters_take_any_prefix>(text + at, text_end);
            if (length > 0) starts = (starts & ~(2ull << at)) | bit(at + length);
        }
    } else {  // a contraction ends the word before it; one right behind another does not
        starts |= m.upper & (letter & ~m.upper) << 1;
        size_t behind_contraction = 0;
        for (uint64_t quotes = m.apostrophe & letter << 1 & valid; quotes; quotes &= quotes - 1) {
            const size_t at = static_cast<size_t>(lowest_bit(quotes));
            if (at == behind_contraction) continue;
            const size_t length = contraction_length<true>(text + at, text_end);
            if (length == 0) continue;
            behind_contraction = at + length;
            starts = (starts & ~(7ull << at)) | bit(behind_contraction);
        }
    }
    return last_certain < 1 ? 0 : starts & ~(~1ull << last_certain) & ~1ull;
}

}  // namespace llmfast
