// Merging sixteen pieces at once, one in each lane of AVX-512's vectors: what is done for one piece is done for all of
// them by the same instructions, and no branch depends on what merges.
#pragma once

#include <cstddef>
#include <span>

#include "merge.h"
#include "pair_table.h"

namespace llmfast {

constexpr size_t kLanes = 16;
constexpr size_t kMostLaneParts = 32;

// Whether this machine can.
bool has_lanes();

// Merges pieces of 1 to 32 parts, which are best sorted by how many.
void merge_lanes(const PairTable& pairs, std::span<Piece* const> pieces);

}  // namespace llmfast
