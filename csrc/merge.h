// Byte-pair merging of one piece: the pair whose bytes have the lowest rank, leftmost first, until none is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "pair_table.h"
#include "vocabulary.h"

namespace llmfast {

// Arrays that merging long pieces reuses.
struct MergeScratch {
    std::vector<uint32_t> next, previous, rank;
    std::vector<uint64_t> queue;
};

// Writes the ids of a piece to `out`, which has room for one a byte, and returns how many. Throws
// std::invalid_argument for a byte that is no token.
size_t merge(const Vocabulary& vocabulary, const PairTable& pairs, std::string_view piece, uint32_t* out,
             MergeScratch& scratch);

// Merges `count` adjacent tokens in place and returns how many are left.
size_t merge_tokens(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch);

// The same as `merge`, looking up the bytes of each pair: for a vocabulary that is not ordered.
size_t merge_by_bytes(const Vocabulary& vocabulary, std::string_view piece, uint32_t* out, MergeScratch& scratch);

}  // namespace llmfast
