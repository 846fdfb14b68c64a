// Byte-pair merging of one piece: the pair whose bytes have the lowest rank, leftmost first, until none is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "merge_long.h"
#include "pair_table.h"

namespace llmfast {

// A piece as parts, at least one of them; merging changes both.
struct Piece {
    uint32_t* ids;
    size_t count;
};

// One token a byte; false for a byte that is none.
bool byte_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out);

// Beside the id of a part: no token reaches over the beginning of this part.
constexpr uint32_t kCut = 1u << 31;

// Writes the parts that merging a piece starts from to `out`, which has room for one a byte: characters where they are
// certain to come about, else bytes. Returns how many. Throws std::invalid_argument for a byte that is no token.
size_t parts_of(const PairTable& pairs, std::string_view piece, uint32_t* out);

// Merges the parts of many pieces, which takes less time than one after another.
void merge_parts(const PairTable& pairs, std::span<Piece> pieces, MergeScratch& scratch);

}  // namespace llmfast
