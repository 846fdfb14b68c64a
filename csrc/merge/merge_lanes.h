// Merges many short pieces. With AVX-512, sixteen at once, one in each vector lane: the same instructions work on all
// of them, and no branch depends on which pairs merge. Without it, one by one, a few of them in turn.
#pragma once

#include <cstddef>
#include <span>

#include "merge/pair_table.h"
#include "merge/piece.h"

namespace llmfast {

constexpr size_t kLanes = 16;
constexpr size_t kMostLaneParts = 32;

// Merges pieces of 1 to 32 parts. It is fastest if they are sorted by their number of parts.
using LaneMerger = void (*)(const PairPlaces& places, std::span<Piece* const> pieces);

struct NamedLaneMerger {
    const char* name;
    LaneMerger merge;
};

// The ones that this CPU supports, the fastest first; the last is portable C++. The list ends with a null name.
const NamedLaneMerger* lane_mergers();

inline LaneMerger best_lane_merger() {
    static const LaneMerger best = lane_mergers()[0].merge;
    return best;
}

}  // namespace llmfast
