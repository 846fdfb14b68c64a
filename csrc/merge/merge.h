// Byte-pair merging: repeatedly merges the pair of lowest rank, the leftmost of equals, until no pair can merge.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "merge/merge_long.h"
#include "merge/pair_table.h"
#include "merge/piece.h"

namespace llmfast {

// Writes one token per byte; returns false if a byte is not a token.
bool byte_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out);

// Writes the parts that merging of a piece starts from to `out`, which has room for one part per byte: whole characters
// if merging certainly makes them, else bytes. Returns how many. Throws std::invalid_argument for a byte that is not a
// token.
size_t parts_of(const PairTable& pairs, std::string_view piece, uint32_t* out);

// Merges the parts of many pieces together, which is faster than one after another.
void merge_parts(const PairTable& pairs, std::span<Piece> pieces, MergeScratch& scratch);

}  // namespace llmfast
