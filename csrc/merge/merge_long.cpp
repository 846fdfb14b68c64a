#include "merge/merge_long.h"

#include <algorithm>
#include <functional>

#include "merge/merge_short.h"
#include "merge/piece.h"
#include "system/interrupt.h"
#include "system/termination.h"

namespace llmfast {
namespace {

// Merges any number of parts by merges below `limit`, and writes where the remaining parts start. The parts are a
// linked list, each named by where it starts. The queue holds pairs of rank and start; an outdated entry is skipped
// when it comes up. Takes O(n log n) time.
size_t merge_queued(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t* starts, MergeScratch& scratch,
                    uint32_t limit = kNoToken) {
    const uint32_t end = static_cast<uint32_t>(count);
    uint32_t *const next = scratch.next.reset(count), *const previous = scratch.previous.reset(count);
    uint32_t* const rank = scratch.rank.reset(count);
    Buffer<uint64_t>& queue = scratch.queue;
    queue.clear();
    InterruptCounter counter;
    const auto look_up = [&](uint32_t part) {
        rank[part] = next[part] == end ? kNoToken : pairs.find(ids[part], ids[next[part]]);
        if (rank[part] >= limit) return;
        queue.push_back(uint64_t{rank[part]} << 32 | part);
        std::push_heap(queue.data(), queue.data() + queue.size(), std::greater<>());
    };
    for (uint32_t part = 0; part < end; ++part) {
        counter.add(1);
        next[part] = part + 1;
        previous[part] = part - 1;
        look_up(part);
    }

    // Termination: each merge removes one of the parts and adds at most two entries to the queue; every iteration
    // removes one entry.
    Decreasing left(3 * count + 1);
    for (size_t parts = count; !queue.empty();) {
        left.require(2 * parts + queue.size());
        counter.add(1);
        const uint64_t best = queue[0];
        std::pop_heap(queue.data(), queue.data() + queue.size(), std::greater<>());
        queue.pop_back();
        const uint32_t part = static_cast<uint32_t>(best);
        if (rank[part] != best >> 32) continue;  // merged into another part, or with another one, since
        --parts;
        const uint32_t gone = next[part];
        ids[part] = rank[part];
        rank[gone] = kNoToken;
        next[part] = next[gone];
        if (next[part] != end) previous[next[part]] = part;
        look_up(part);
        if (part > 0) look_up(previous[part]);
    }
    size_t kept = 0;
    for (uint32_t part = 0; part < end; part = next[part]) {
        counter.add(1);
        starts[kept] = part;
        ids[kept++] = ids[part];
    }
    return kept;
}

// Merges a long piece window by window, so that the work stays in the nearest cache and is linear in the piece's
// length.
//
// A sequence of tokens is the result of merging if each two neighbors are the result of merging their bytes alone: the
// first merge across the end of a token would depend on nothing but that token and its neighbor. So two windows may
// overlap in one token: if both find it, the tokens of the first up to it and those of the second from it are the
// result. If they do not, the next window starts one token earlier and is twice as wide; windows become narrower again
// only behind the last place where one failed.
//
// Termination: `spent`, the sum of the sizes of all windows, grows with every window and stays below kPatience * count.
// If windows fail so often that the next one would take more than kPatience times the parts seen so far, the queue
// merges the whole piece.
size_t merge_by_windows(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch) {
    constexpr size_t kPatience = 6;
    IdBuffer &window = scratch.window, &starts = scratch.starts, &done_starts = scratch.done_starts;
    const uint32_t* const source = scratch.source.reset(count);
    copy_in_windows(ids, count, scratch.source.data());
    done_starts.clear();  // of the tokens in ids[0, done); ids[done] is what the window before found at `at`
    size_t done = 0, at = 0, usual_width = kMostShort, width = kMostShort;
    size_t spent = 0, furthest = 0, failed_at = 0;
    InterruptCounter counter;
    Decreasing left(kPatience * count + 1);
    while (true) {
        const size_t size = std::min(width, count - at);
        furthest = std::max(furthest, at + size);
        spent += size;
        if (spent > kPatience * furthest) {
            copy_in_windows(source, count, ids);
            return merge_queued(pairs, ids, count, starts.reset(count), scratch);
        }
        left.require(kPatience * count - spent);
        counter.add(size);
        copy_in_windows(source + at, size, window.reset(size));
        starts.reset(size);
        const size_t found = size <= kMostShort ? merge_short(pairs, window.data(), size, starts.data())
                                                : merge_queued(pairs, window.data(), size, starts.data(), scratch);
        if (at > 0 && window[0] != ids[done]) {
            failed_at = std::max(failed_at, at);
            at = done_starts[--done];
            done_starts.pop_back();
            width = std::min(2 * width, count);
            continue;
        }
        if (at + size == count) {
            copy_in_windows(window.data(), found, ids + done);
            return done + found;
        }
        size_t shared = found - 1;  // the last token that ends well before the window does
        while (shared > 0 && (shared + 1 == found || starts[shared + 1] > size / 4 * 3)) --shared;
        if (shared == 0) {  // long tokens
            usual_width = width = std::min(4 * width, count);
            continue;
        }
        for (size_t i = 0; i < shared; ++i) done_starts.push_back(static_cast<uint32_t>(at) + starts[i]);
        copy_in_windows(window.data(), shared + 1, ids + done);
        done += shared;
        at += starts[shared];
        if (at > failed_at) width = std::max(usual_width, width / 2);
    }
}

// Whether the parts change so seldom that they are worth merging as runs.
bool has_few_runs(const uint32_t* ids, size_t count, size_t most) {
    size_t runs = 1;
    InterruptCounter counter;
    for (size_t i = 1; i < count && runs <= most; ++i) {
        counter.add(1);
        runs += ids[i] != ids[i - 1];
    }
    return runs <= most;
}

// Merges a piece of few runs of equal parts, such as spaces, newlines and ruled lines, however long it is. All pairs
// within a run merge at once unless a pair that arises meanwhile would be merged first. Returns 0 if it takes more runs
// or steps than with a vocabulary that training made.
size_t merge_runs(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch) {
    constexpr size_t kMostRuns = 32, kMostSteps = 256, kWorthIt = 4;  // kWorthIt: parts per run
    std::vector<Run>&runs = scratch.runs, &merged = scratch.merged_runs;
    const auto append = [&merged](uint32_t id, size_t times) {
        if (times == 0) return;
        if (!merged.empty() && merged.back().id == id) {
            merged.back().count += times;
        } else {
            merged.push_back({id, times});
        }
    };
    if (!has_few_runs(ids, count, std::min(kMostRuns, count / kWorthIt))) return 0;
    runs.clear();
    InterruptCounter counter;
    for (size_t from = 0, to; from < count; from = to) {
        for (to = from + 1; to < count && ids[to] == ids[from]; ++to) counter.add(1);
        runs.push_back({ids[from], to - from});
    }
    for (size_t step = 0; step < kMostSteps && runs.size() <= kMostRuns; ++step) {
        uint32_t best = kNoToken;
        size_t at = 0;
        bool within = false;
        for (size_t i = 0; i < runs.size(); ++i) {
            const auto offer = [&](uint32_t pair, bool is_within) {
                if (pair < best) best = pair, at = i, within = is_within;
            };
            if (runs[i].count > 1) offer(pairs.find(runs[i].id, runs[i].id), true);
            if (i + 1 < runs.size()) offer(pairs.find(runs[i].id, runs[i + 1].id), false);
        }
        if (best == kNoToken) {
            uint32_t* out = ids;
            for (const Run& run : runs) {
                in_windows(run.count, [&](size_t begin, size_t end) { out = std::fill_n(out, end - begin, run.id); });
            }
            return static_cast<size_t>(out - ids);
        }
        merged.clear();
        for (size_t i = 0; i < at; ++i) append(runs[i].id, runs[i].count);
        const auto [id, times] = runs[at];
        if (within) {
            const bool at_once = pairs.find(best, best) > best && pairs.find(best, id) > best &&
                                 (at == 0 || pairs.find(runs[at - 1].id, best) > best);
            const size_t merges = at_once ? times / 2 : 1;
            append(best, merges);
            append(id, times - 2 * merges);
        } else {
            append(id, times - 1);
            append(best, 1);
            ++at;
            append(runs[at].id, runs[at].count - 1);
        }
        for (size_t i = at + 1; i < runs.size(); ++i) append(runs[i].id, runs[i].count);
        runs.swap(merged);
    }
    return 0;
}

}  // namespace

size_t merge_long(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch) {
    in_windows(count, [ids](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) ids[i] &= ~kCut;
    });
    if (const size_t kept = merge_runs(pairs, ids, count, scratch)) return kept;
    return count <= kMostShort ? merge_short(pairs, ids, count) : merge_by_windows(pairs, ids, count, scratch);
}

size_t merge_below(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t limit, MergeScratch& scratch) {
    return merge_queued(pairs, ids, count, scratch.starts.reset(count), scratch, limit);
}

}  // namespace llmfast
