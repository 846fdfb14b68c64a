// Scans runs of characters one character at a time: the parts that the splitting patterns consist of.
#pragma once

#include <cstddef>

#include "pretokenize/rules.h"
#include "pretokenize/unicode.h"
#include "system/interrupt.h"

namespace llmfast {

// Characters to scan between two checks for an interrupt.
constexpr size_t kWindow = 1 << 18;

inline bool is_ascii_letter(Byte byte) { return static_cast<Byte>((byte | 0x20) - 'a') < 26; }

// Checks for an interrupt and returns how many characters may follow until the next check. Not inlined, since most runs
// have only a few characters.
#if defined(__GNUC__)
__attribute__((noinline, cold))
#endif
inline size_t next_window() {
    check_interrupt();
    return kWindow;
}

// The end of the run of characters from `at` for which `belongs` is true. It ends because every character has at least
// one byte, and none reaches beyond `end`.
template <typename Belongs>
inline const Byte* run_end(const Byte* at, const Byte* end, Belongs belongs) {
    for (size_t window = kWindow; at < end; --window) {
        if (window == 0) window = next_window();
        const Character character = character_at(at, end);
        if (!belongs(character)) break;
        at += character.size;
    }
    return at;
}

inline const Byte* skip(const Byte* at, const Byte* end, uint8_t classes) {
    return run_end(at, end, [classes](const Character& character) { return (character.classes & classes) != 0; });
}

// The end of a run of [^\s\p{L}\p{N}].
inline const Byte* skip_other(const Byte* at, const Byte* end) {
    return run_end(at, end,
                   [](const Character& character) { return (character.classes & (kLetter | kNumber | kSpace)) == 0; });
}

// A run of \s.
struct SpaceRun {
    const Byte* last;         // where its last character starts
    const Byte* newline_end;  // behind its last newline; its start where it has none
    const Byte* stop;
};

inline SpaceRun space_run(const Byte* at, const Byte* end) {
    SpaceRun run = {at, at, at};
    run_end(at, end, [&run](const Character& character) {
        if (!(character.classes & kSpace)) return false;
        run.last = run.stop;
        run.stop += character.size;
        if (character.classes & kNewline) run.newline_end = run.stop;
        return true;
    });
    return run;
}

// The end of \p{N}{1,longest_number}, or of \p{N}+ where the longest number is 0.
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

}  // namespace llmfast
