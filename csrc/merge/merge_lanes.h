// Merging sixteen pieces at once, one in each lane: what is done for one piece is done for all of them by the same
// instructions, and no branch depends on what merges.
#pragma once

#include <cstddef>
#include <span>

#include "merge/pair_table.h"
#include "merge/piece.h"

namespace llmfast {

constexpr size_t kLanes = 16;
constexpr size_t kMostLaneParts = 32;

// Merges pieces of 1 to 32 parts, which are best sorted by how many.
using LaneMerger = void (*)(const PairPlaces& places, std::span<Piece* const> pieces);

struct NamedLaneMerger {
    const char* name;
    LaneMerger merge;
};

// Those that this machine can run, best first; the last is plain C++. Ends with a null name.
const NamedLaneMerger* lane_mergers();

inline LaneMerger best_lane_merger() {
    static const LaneMerger best = lane_mergers()[0].merge;
    return best;
}

}  // namespace llmfast
