#include "merge/merge_lanes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>

#include "merge/merge_lanes_avx512.h"
#include "merge/merge_short.h"
#include "system/cpu_features.h"

namespace llmfast {
namespace {

// Merges pieces one by one, a few of them in turn, so that the cache misses of one overlap with the work of the others.
inline void merge_in_turn(const PairPlaces& places, std::span<Piece* const> pieces) {
    constexpr size_t kInTurn = 4;
    ShortMerge merges[kInTurn];
    struct {
        ShortMerge* merge;
        Piece* piece;
    } working[kInTurn];
    size_t busy = 0;
    const auto start_next = [&](auto& one) {
        if (pieces.empty()) return false;
        one.piece = pieces.front();
        one.merge->start(places, one.piece->ids, one.piece->count);
        pieces = pieces.subspan(1);
        return true;
    };
    for (; busy < kInTurn; ++busy) {
        working[busy].merge = &merges[busy];
        if (!start_next(working[busy])) break;
    }
    while (busy > 0) {
        for (size_t i = 0; i < busy;) {
            auto& one = working[i];
            if (!one.merge->is_done()) {
                one.merge->merge_best(places);
                ++i;
            } else {
                one.piece->count = one.merge->finish(nullptr);
                if (!start_next(one)) std::swap(one, working[--busy]);
            }
        }
    }
}

void merge_portable(const PairPlaces& places, std::span<Piece* const> pieces) { merge_in_turn(places, pieces); }

LLMFAST_AVX2 void merge_avx2(const PairPlaces& places, std::span<Piece* const> pieces) {
    merge_in_turn(places, pieces);
}

#if defined(LLMFAST_X86)
// Merges a few groups of 16 in turn, so that the cache misses of one overlap with the work of the others.
void merge_avx512(const PairPlaces& places, std::span<Piece* const> pieces) {
    constexpr size_t kGroups = 4;
    Avx512Lanes groups[kGroups];
    Avx512Lanes* working[kGroups];
    const auto start_next = [&](Avx512Lanes& group) {
        if (pieces.empty()) return false;
        const size_t count = std::min(kLanes, pieces.size());
        group.start(places, pieces.first(count));
        pieces = pieces.subspan(count);
        return true;
    };
    size_t busy = 0;
    for (; busy < kGroups && start_next(groups[busy]); ++busy) working[busy] = &groups[busy];
    while (busy > 0) {
        for (size_t i = 0; i < busy; ++i) working[i]->merge_best(places);
        for (size_t i = 0; i < busy; ++i) working[i]->find_keys(places);
        for (size_t i = 0; i < busy; ++i) working[i]->find_best();
        for (size_t i = 0; i < busy;) {
            if (!working[i]->is_done()) {
                ++i;
            } else {
                working[i]->finish();
                if (!start_next(*working[i])) std::swap(working[i], working[--busy]);
            }
        }
    }
}
#endif

std::array<NamedLaneMerger, 4> find_lane_mergers() {
    std::array<NamedLaneMerger, 4> found{};
    size_t count = 0;
#if defined(LLMFAST_X86)
    if (has_avx512()) found[count++] = {"avx512", merge_avx512};
#endif
    if (has_avx2()) found[count++] = {"avx2", merge_avx2};
    found[count] = {"portable", merge_portable};
    return found;
}

}  // namespace

const NamedLaneMerger* lane_mergers() {
    static const std::array<NamedLaneMerger, 4> found = find_lane_mergers();
    return found.data();
}

}  // namespace llmfast
