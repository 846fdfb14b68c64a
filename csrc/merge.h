// Byte-pair merging of one piece: the pair whose bytes have the lowest rank, leftmost first, until none is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "pair_table.h"

namespace llmfast {

// Arrays that merging long pieces reuses.
struct MergeQueue {
    std::vector<uint32_t> next, previous, rank;
    std::vector<uint64_t> queue;
};

struct MergeScratch {
    std::vector<uint32_t> source, window, starts, done_starts;
    MergeQueue queue;
};

// Writes the ids of a piece to `out`, which has room for one a byte, and returns how many. Throws
// std::invalid_argument for a byte that is no token.
size_t merge(const PairTable& pairs, std::string_view piece, uint32_t* out, MergeScratch& scratch);

// The same from bytes, though characters may be tokens: to build the pair table. Returns 0 for a byte that is no token.
size_t merge_bytes(const PairTable& pairs, std::string_view piece, uint32_t* out, MergeScratch& scratch);

}  // namespace llmfast
