// Byte-pair merging of one piece: the pair whose bytes have the lowest rank, leftmost first, until none is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "merge/merge_long.h"
#include "merge/pair_table.h"
#include "merge/piece.h"

namespace llmfast {

// One token a byte; false for a byte that is none.
bool byte_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out);

// Writes the parts that merging a piece starts from to `out`, which has room for one a byte: characters where they are
// certain to come about, else bytes. Returns how many. Throws std::invalid_argument for a byte that is no token.
size_t parts_of(const PairTable& pairs, std::string_view piece, uint32_t* out);

// Merges the parts of many pieces, which takes less time than one after another.
void merge_parts(const PairTable& pairs, std::span<Piece> pieces, MergeScratch& scratch);

}  // namespace llmfast
