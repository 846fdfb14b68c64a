// Classifies the characters of 64 bytes at a time into bit masks, with the widest vector instructions of the CPU.
#pragma once

#include <array>
#include <cstdint>

namespace llmfast {

// Bit i of each mask is about byte i.
struct Masks {
    uint64_t letter, upper, digit, space, blank, newline, apostrophe, slash;  // ASCII; blank is 0x20
    uint64_t high;                                                            // bytes of 0x80 and more
};  // piece_starts.h adds the characters of other scripts to them

// The classes of one byte, as bits.
enum ClassBit : uint8_t {
    kLetterBit = 1,
    kUpperBit = 2,
    kDigitBit = 4,
    kSpaceBit = 8,
    kBlankBit = 16,
    kNewlineBit = 32,
    kQuoteBit = 64,
    kSlashBit = 128
};

constexpr std::array<uint8_t, 256> class_bits() {
    std::array<uint8_t, 256> bits{};
    for (int c = 'a'; c <= 'z'; ++c) bits[c] = kLetterBit;
    for (int c = 'A'; c <= 'Z'; ++c) bits[c] = kLetterBit | kUpperBit;
    for (int c = '0'; c <= '9'; ++c) bits[c] = kDigitBit;
    for (int c = '\t'; c <= '\r'; ++c) bits[c] = kSpaceBit;
    bits['\n'] |= kNewlineBit;
    bits['\r'] |= kNewlineBit;
    bits[' '] = kSpaceBit | kBlankBit;
    bits['\''] = kQuoteBit;
    bits['/'] = kSlashBit;
    return bits;
}

inline constexpr std::array<uint8_t, 256> kClassBits = class_bits();

// Classifies 64 bytes.
using Classifier = void (*)(const uint8_t* text, Masks& masks);

struct NamedClassifier {
    const char* name;
    Classifier classify;
};

// The ones that this CPU supports, the fastest first; the last is portable C++. The list ends with a null name.
const NamedClassifier* classifiers();

inline Classifier best_classifier() {
    static const Classifier best = classifiers()[0].classify;
    return best;
}

}  // namespace llmfast
