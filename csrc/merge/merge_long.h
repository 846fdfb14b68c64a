// Merges one piece of any number of parts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "merge/pair_table.h"
#include "system/buffer.h"

namespace llmfast {

// A token and how often it is repeated.
struct Run {
    uint32_t id;
    size_t count;
};

// Arrays that merging reuses.
struct MergeScratch {
    IdBuffer source, window, starts, done_starts;  // of merge_by_windows()
    IdBuffer next, previous, rank;                 // of merge_queued()
    Buffer<uint64_t> queue;
    std::vector<Run> runs, merged_runs;  // of merge_runs()
};

// Merges `count` parts, some of them perhaps with kCut, in place and returns how many are left. Can be stopped
// (interrupt.h). Takes O(n log n) time, and time proportional to n for ordinary text.
size_t merge_long(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch);

// The same, but only with merges of a rank below `limit`. A merge's rank is the id of the token that it makes.
size_t merge_below(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t limit, MergeScratch& scratch);

}  // namespace llmfast
