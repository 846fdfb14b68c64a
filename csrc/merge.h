// Byte-pair merging of one piece: the pair whose bytes have the lowest rank, leftmost first, until none is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vocabulary.h"

namespace llmfast {

// Arrays that merging reuses from piece to piece.
struct MergeScratch {
    std::vector<uint32_t> next, previous, rank;
    std::vector<uint64_t> queue;
};

// Writes the ids of a piece to `out`, which has room for `length` of them, and returns how many. `text_end` bounds
// what may be read behind the piece.
size_t merge(const Vocabulary& vocabulary, const char* piece, size_t length, const char* text_end, uint32_t* out,
             MergeScratch& scratch);

}  // namespace llmfast
