// Merging one piece of any number of parts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "merge/pair_table.h"

namespace llmfast {

// A token and how often it is repeated.
struct Run {
    uint32_t id;
    size_t count;
};

// Arrays that merging reuses.
struct MergeScratch {
    std::vector<uint32_t> source, window, starts, done_starts;  // by windows
    std::vector<uint32_t> next, previous, rank;                 // by a queue
    std::vector<uint64_t> queue;
    std::vector<Run> runs, merged_runs;  // by runs
};

// Merges `count` parts, some of them perhaps with kCut, in place and returns how many are left. Can be stopped
// (interrupt.h). Takes O(n log n) time, and time proportional to n for ordinary text.
size_t merge_long(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch);

// The same by merges below `limit` only. A rank is the id of the token that a merge makes.
size_t merge_below(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t limit, MergeScratch& scratch);

}  // namespace llmfast
