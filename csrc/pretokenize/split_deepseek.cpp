// DeepSeek splits three times in sequence: numbers are cut out, then runs of kanji and kana, and each stretch that
// remains is split by a third expression, for which the text ends where the stretch does. A piece can be found from
// where it starts alone: only what the third expression scans anyway decides where its stretch ends.
#include "pretokenize/split_deepseek.h"

#include "pretokenize/piece_limit.h"
#include "pretokenize/rules.h"
#include "pretokenize/scan.h"
#include "pretokenize/unicode.h"
#include "system/termination.h"

namespace llmfast {
namespace {

inline bool is_kanji_or_kana(uint32_t point) {
    return (point >= 0x4E00 && point <= 0x9FA5) || (point >= 0x3040 && point <= 0x30FF);
}

inline bool is_ascii_punctuation(Byte byte) { return byte < 0x80 && (kUnicodeClasses[byte] & kPunctuation); }

// A stretch without numbers, all of kanji and kana or all of other characters, up to the end of the text.
struct Stretch {
    const Byte* end;
    bool kanji_or_kana;

    Stretch(const Character& first, const Byte* text_end)
        : end(text_end), kanji_or_kana(is_kanji_or_kana(first.point)) {}

    bool has(const Character& character) const {
        return !(character.classes & kNumber) && is_kanji_or_kana(character.point) == kanji_or_kana;
    }
    bool ends_at(const Byte* at) const { return at == end || !has(character_at(at, end)); }
    const Byte* skip(const Byte* at, uint8_t classes) const {
        return run_end(at, end,
                       [&](const Character& character) { return (character.classes & classes) && has(character); });
    }
};

// The end of a punctuation character at `at` and the ASCII letters behind it, or `at` where these are not there.
inline const Byte* punctuated_word(const Byte* at, const Byte* end) {
    if (!is_ascii_punctuation(*at)) return at;
    const Byte* const stop = run_end(at + 1, end, [](const Character& character) {
        return character.point < 0x80 && is_ascii_letter(static_cast<Byte>(character.point));
    });
    return stop > at + 1 ? stop : at;
}

// The end of the match of the third expression at `at`, inside the stretch, or `at` where it has none.
const Byte* match_end(const Byte* at, const Stretch& stretch) {
    if (const Byte* const stop = punctuated_word(at, stretch.end); stop > at) return stop;
    const Character first = character_at(at, stretch.end);
    const Byte* const after = at + first.size;
    if (!(first.classes & (kNewline | kLetter | kPunctuation))) {
        const Byte* const stop = stretch.skip(after, kLetter | kMark);
        if (stop > after) return stop;
    }
    if (first.classes & (kLetter | kMark)) return stretch.skip(at, kLetter | kMark);
    const Byte* const body = *at == ' ' ? after : at;
    const Byte* stop = stretch.skip(body, kPunctuation);
    if (stop > body) {
        return stretch.kanji_or_kana ? stop : run_end(stop, stretch.end, [](const Character& character) {
            return (character.classes & kNewline) != 0;
        });
    }
    if (!(first.classes & kSpace)) return at;
    const SpaceRun run = space_run(at, stretch.end);
    if (run.newline_end > at) return run.newline_end;
    return run.last == at || stretch.ends_at(run.stop) ? run.stop : run.last;
}

// The end of the piece that starts at `at`.
const Byte* piece_end(const Byte* at, const Byte* end) {
    const Byte* const behind_number = number_piece<kLlama3>(at, end);
    if (behind_number > at) return behind_number;
    const Character first = character_at(at, end);
    const Stretch stretch(first, end);
    const Byte* stop = match_end(at, stretch);
    if (stop > at) return stop;
    // What the expression does not match, up to its next match or the end of the stretch, is a piece too.
    stop = at + first.size;
    while (!stretch.ends_at(stop) && match_end(stop, stretch) == stop) stop += character_at(stop, end).size;
    return stop;
}

}  // namespace

size_t split_deepseek(const char* text, size_t length, uint32_t* ends, size_t capacity) {
    const Byte* const begin = reinterpret_cast<const Byte*>(text);
    const Byte* const end = begin + length;
    const Byte* at = begin;
    size_t count = 0;
    Decreasing left(length + 1);
    while (at < end && count < capacity) {
        left.require(static_cast<size_t>(end - at));
        at = piece_end(at, end);
        const size_t offset = static_cast<size_t>(at - begin);
        if (offset > UINT32_MAX) {
            if (count == 0) throw_piece_too_long(offset);
            break;
        }
        ends[count++] = static_cast<uint32_t>(offset);
    }
    return count;
}

}  // namespace llmfast
