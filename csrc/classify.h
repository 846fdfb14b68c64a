// The characters of 64 bytes at a time as bit masks, by the widest vector instructions of the machine that runs.
#pragma once

#include <cstdint>

namespace llmfast {

// Bit i of a mask speaks of byte i.
struct Masks {
    uint64_t letter, upper, digit, space, blank, newline, apostrophe, slash;  // ASCII; blank is 0x20
    uint64_t high;                                                            // bytes of 0x80 and more
};  // piece_starts.h adds the characters of other scripts to them

// Classifies 64 bytes.
using Classifier = void (*)(const uint8_t* text, Masks& masks);

struct NamedClassifier {
    const char* name;
    Classifier classify;
};

// Those that this machine can run, best first; the last is plain C++. Ends with a null name.
const NamedClassifier* classifiers();

inline Classifier best_classifier() {
    static const Classifier best = classifiers()[0].classify;
    return best;
}

}  // namespace llmfast
