#include "pretokenize/pretokenize.h"

#include <algorithm>
#include <cstring>

#include "pretokenize/classify.h"
#include "pretokenize/classify_avx512.h"
#include "pretokenize/other_scripts_avx512.h"
#include "pretokenize/piece_limit.h"
#include "pretokenize/piece_starts.h"
#include "pretokenize/rules.h"
#include "pretokenize/scan.h"
#include "pretokenize/split_deepseek.h"
#include "pretokenize/unicode.h"
#include "system/cpu_features.h"
#include "system/termination.h"

namespace llmfast {
namespace {

// The end of o200k's [upper]*[lower]+ from `at`, or nullptr. Marks and letters without case are in both classes, so
// the greedy [upper]* may have to give some back.
inline const Byte* lower_word(const Byte* at, const Byte* end) {
    const Byte* last_lower_end = nullptr;
    for (size_t window = kWindow; at < end; --window) {
        if (window == 0) window = next_window();
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

// The end of the piece of white space at `at`: \s+$|\s*[\r\n]+|\s+(?!\S)|\s+, as far as the pattern has these.
template <Rules kRules>
inline const Byte* space_piece(const Byte* at, const Byte* end) {
    const SpaceRun run = space_run(at, end);
    if (run.stop == end && kRules.trailing_space_whole) return run.stop;
    if (kRules.letters_take_any_prefix && run.newline_end > at) return run.newline_end;
    return run.stop == end || run.last == at ? run.stop : run.last;
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
    const bool prefix_allowed =
        kRules.letters_take_any_prefix ? !(first.classes & (kLetter | kNumber | kNewline)) : *at == ' ';
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

// The operations on blocks that depend on the instruction set: making the masks, adding characters that are not ASCII,
// and listing the bits of a mask. The list is written in steps of fixed size, since a misprediction of its end costs
// more than the excess.
struct PortableBlocks {
    Classifier classify_block = best_classifier();
    void classify(const Byte* text, int size, Masks& masks) const {
        if (size == 64) return classify_block(text, masks);
        Byte block[64] = {};
        std::memcpy(block, text, static_cast<size_t>(size));
        classify_block(block, masks);
    }
    template <Rules kRules>
    static int add_other_scripts(Masks& masks, uint64_t& inside, int count, const Byte* text, const Byte* text_end) {
        return llmfast::add_other_scripts<kRules>(masks, inside, count, text, text_end);
    }
    static size_t write_bits(uint64_t bits, uint32_t offset, uint32_t* out) {
        const size_t count = static_cast<size_t>(std::popcount(bits));
        for (size_t i = 0; i < count; i += 8) {
            for (size_t j = i; j < i + 8; ++j, bits &= bits - 1)
                out[j] = offset + static_cast<uint32_t>(lowest_bit(bits));
        }
        return count;
    }
};

#if defined(LLMFAST_X86)
struct Avx512Blocks {
    static void classify(const Byte* text, int size, Masks& masks) { classify_avx512(text, size, masks); }
    template <Rules kRules>
    static int add_other_scripts(Masks& masks, uint64_t& inside, int count, const Byte* text, const Byte* text_end) {
        constexpr int kFew = 8;  // bytes, for which one character after another is faster
        if (count == 64 && std::popcount(masks.high) > kFew) {
            const int known = add_other_scripts_avx512<kRules>(masks, inside, text);
            if (known >= 0) return known;
        }
        return llmfast::add_other_scripts<kRules>(masks, inside, count, text, text_end);
    }
    static size_t write_bits(uint64_t bits, uint32_t offset, uint32_t* out) {
        return write_bits_avx512(bits, offset, out);
    }
};
#endif

template <Rules kRules, typename Blocks>
inline size_t split_by(const char* text, size_t length, uint32_t* ends, size_t capacity, Blocks blocks) {
    const Byte* const begin = reinterpret_cast<const Byte*>(text);
    const Byte* const end = begin + std::min<size_t>(length, UINT32_MAX);
    const Byte* const text_end = begin + length;
    const Byte* at = begin;
    size_t count = 0;
    Decreasing left(length + 1);
    while (at < end && count < capacity) {
        left.require(static_cast<size_t>(text_end - at));
        // Splits by blocks, each of at most 63 pieces, and one character at a time if a block has no end of a piece.
        if (capacity - count < 64 && capacity >= 64) break;
        if (capacity - count >= 64 && end - at > 3) {
            const int size = static_cast<int>(std::min<ptrdiff_t>(end - at, 64));
            Masks masks;
            blocks.classify(at, size, masks);
            uint64_t inside = 0;
            const int known =
                masks.high ? blocks.template add_other_scripts<kRules>(masks, inside, size, at, text_end) : size;
            const uint64_t starts = piece_starts<kRules>(masks, inside, known, at, text_end);
            if (starts) {
                count += blocks.write_bits(starts, static_cast<uint32_t>(at - begin), ends + count);
                at += highest_bit(starts);
                continue;
            }
        }
        at = next_piece<kRules>(at, text_end);
        const size_t offset = static_cast<size_t>(at - begin);
        if (offset > UINT32_MAX) {
            if (count == 0) throw_piece_too_long(offset);
            break;
        }
        ends[count++] = static_cast<uint32_t>(offset);
    }
    return count;
}

#if defined(LLMFAST_X86)
template <Rules kRules>
LLMFAST_AVX512_VBMI size_t split_avx512(const char* text, size_t length, uint32_t* ends, size_t capacity) {
    return split_by<kRules>(text, length, ends, capacity, Avx512Blocks());
}
#endif

template <Rules kRules>
LLMFAST_AVX2 size_t split_avx2(const char* text, size_t length, uint32_t* ends, size_t capacity) {
    return split_by<kRules>(text, length, ends, capacity, PortableBlocks());
}

template <Rules kRules>
size_t split_best(const char* text, size_t length, uint32_t* ends, size_t capacity) {
#if defined(LLMFAST_X86)
    if (has_avx512_vbmi()) return split_avx512<kRules>(text, length, ends, capacity);
#endif
    return has_avx2() ? split_avx2<kRules>(text, length, ends, capacity)
                      : split_by<kRules>(text, length, ends, capacity, PortableBlocks());
}

size_t split_none(size_t length, uint32_t* ends) {
    if (length > kLongestPiece) throw_piece_too_long(length);
    ends[0] = static_cast<uint32_t>(length);
    return length > 0;
}

}  // namespace

size_t split(Pattern pattern, const char* text, size_t length, uint32_t* ends, size_t capacity) {
    switch (pattern) {
        case Pattern::none: return split_none(length, ends);
        case Pattern::gpt2: return split_best<kGpt2>(text, length, ends, capacity);
        case Pattern::cl100k: return split_best<kCl100k>(text, length, ends, capacity);
        case Pattern::llama3: return split_best<kLlama3>(text, length, ends, capacity);
        case Pattern::qwen2: return split_best<kQwen2>(text, length, ends, capacity);
        case Pattern::o200k: return split_best<kO200k>(text, length, ends, capacity);
        case Pattern::deepseek: return split_deepseek(text, length, ends, capacity);
    }
    return 0;
}

size_t certain_boundary(Pattern pattern, const char* text, size_t length, size_t from) {
    if (pattern == Pattern::none) return length;
    const Byte* const begin = reinterpret_cast<const Byte*>(text);
    for (size_t at = std::max<size_t>(from, 1); at < length; ++at) {
        if (at % kWindow == 0) check_interrupt();
        const Byte here = begin[at], before = begin[at - 1];
        // White space behind a letter starts a piece under every pattern, and what stands before a letter ends with it.
        if ((here == ' ' || here == '\n') && is_ascii_letter(before)) return at;
        // So does what follows a newline; but white space would be one with it, and o200k takes slashes along. More
        // white space before the newline could be cut otherwise at the end of a text.
        if (before == '\n' && at > 1 && here != '/' && !(character_at(begin + at, begin + length).classes & kSpace) &&
            !is_continuation(here) && !(character_before(begin + at - 1, begin).classes & kSpace)) {
            return at;
        }
    }
    return length;
}

}  // namespace llmfast
