#include "merge/merge_lanes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>

#include "merge/merge_lanes_avx512.h"
#include "system/cpu_features.h"

namespace llmfast {
namespace {

// The key of a pair: its rank, and in the lower five bits its row. The smallest key of a piece is the next pair to
// merge. kNoToken gives a key of at least kNoKey.
uint32_t key_of(uint32_t merged, size_t row) { return merged << 5 | static_cast<uint32_t>(row - 1); }
constexpr uint32_t kNoKey = (kLargestId + 1) << 5;

// A group of up to 16 pieces. Row i holds the i-th part of each piece, or the key of that part and the next. Row 0 is a
// dummy that receives what is written for parts that do not exist.
class PortableLanes {
  public:
    void start(const PairPlaces& places, std::span<Piece* const> pieces) {
        pieces_ = pieces;
        rows_ = pieces.back()->count;
        for (const Piece* piece : pieces) rows_ = std::max(rows_, piece->count);
        std::fill_n(&ids_[0][0], (rows_ + 1) * kLanes, 0);
        std::fill_n(&keys_[0][0], (rows_ + 1) * kLanes, kNoKey);
        std::fill_n(left_, kLanes, 0);
        new_pairs_ = {};
        uint32_t all = 0;
        for (size_t lane = 0; lane < pieces.size(); ++lane) {
            const Piece& piece = *pieces[lane];
            left_[lane] = ~0u >> (32 - piece.count);
            for (size_t i = 0; i < piece.count; ++i) all |= ids_[i + 1][lane] = piece.ids[i] & ~kCut;
        }
        for (size_t row = 1; row < rows_; ++row) {
            uint32_t wanted = 0;
            for (size_t lane = 0; lane < kLanes; ++lane) wanted |= (left_[lane] >> row & 1) << lane;
            if (all < 256) {
                for (; wanted; wanted &= wanted - 1) {
                    const size_t lane = static_cast<size_t>(std::countr_zero(wanted));
                    keys_[row][lane] = key_of(places.low_pairs[ids_[row][lane] << 8 | ids_[row + 1][lane]], row);
                }
            } else {
                std::copy_n(ids_[row], kLanes, new_pairs_.left);
                std::copy_n(ids_[row + 1], kLanes, new_pairs_.right);
                std::fill_n(new_pairs_.row, kLanes, static_cast<uint32_t>(row));
                hash_new(places, kLanes);
                wanted_ = wanted;
                find_keys(places, kLanes);
            }
        }
        find_best();
    }

    bool is_done() const { return busy_ == 0; }

    // The first of three steps that merge the next pair of each piece: replaces the pair by its token.
    void merge_best(const PairPlaces& places) {
        wanted_ = 0;
        for (uint32_t rest = busy_; rest; rest &= rest - 1) {
            const size_t lane = static_cast<size_t>(std::countr_zero(rest));
            const uint32_t bit = 1u << (best_[lane] & 31), merged = best_[lane] >> 5;
            const uint32_t above = left_[lane] & (0 - 2 * bit), gone = above & (0 - above), behind = above ^ gone;
            const uint32_t before = left_[lane] & (bit - 1);
            left_[lane] ^= gone;
            const size_t row = row_of(bit), previous_row = row_of(before);
            new_pairs_.left[lane] = new_pairs_.right[kLanes + lane] = merged;
            new_pairs_.right[lane] = ids_[row_of(behind & (0 - behind))][lane];
            new_pairs_.left[kLanes + lane] = ids_[previous_row][lane];
            new_pairs_.row[lane] = static_cast<uint32_t>(row);
            new_pairs_.row[kLanes + lane] = static_cast<uint32_t>(previous_row);
            wanted_ |= uint32_t{behind != 0} << lane | uint32_t{before != 0} << (kLanes + lane);
            ids_[row][lane] = merged;
            keys_[row][lane] = keys_[row_of(gone)][lane] = keys_[previous_row][lane] = kNoKey;
        }
        hash_new(places, 2 * kLanes);
    }

    // The second step: looks up the first `count` new pairs, after excluding those that certainly do not merge.
    void find_keys(const PairPlaces& places, size_t count = 2 * kLanes) {
        uint32_t likely = 0;
        for (size_t i = 0; i < count; ++i) {
            likely |= uint32_t{(places.buckets[new_pairs_.bucket[i]] & new_pairs_.likely_bit[i]) != 0} << i;
        }
        for (uint32_t rest = likely & wanted_; rest; rest &= rest - 1) {
            const size_t i = static_cast<size_t>(std::countr_zero(rest));
            const uint32_t merged = places.find_likely(new_pairs_.upper[i], new_pairs_.right[i]);
            keys_[new_pairs_.row[i]][i % kLanes] = key_of(merged, new_pairs_.row[i]);
        }
    }

    // The third step: finds the smallest key of each piece.
    void find_best() {
        std::fill_n(best_, kLanes, kNoKey);
        for (size_t row = 1; row < rows_; ++row) {
            for (size_t lane = 0; lane < kLanes; ++lane) best_[lane] = std::min(best_[lane], keys_[row][lane]);
        }
        busy_ = 0;
        for (size_t lane = 0; lane < kLanes; ++lane) busy_ |= uint32_t{best_[lane] < kNoKey} << lane;
    }

    // Writes the remaining ids to the pieces.
    void finish() {
        for (size_t lane = 0; lane < pieces_.size(); ++lane) {
            Piece& piece = *pieces_[lane];
            piece.count = 0;
            for (uint32_t rest = left_[lane]; rest; rest &= rest - 1)
                piece.ids[piece.count++] = ids_[row_of(rest & (0 - rest))][lane];
        }
    }

  private:
    void hash_new(const PairPlaces& places, size_t count) {
        for (size_t i = 0; i < count; ++i) {
            const uint32_t upper = new_pairs_.upper[i] = PairPlaces::upper(new_pairs_.left[i], new_pairs_.right[i]);
            new_pairs_.bucket[i] = upper >> places.shift;
            new_pairs_.likely_bit[i] = PairPlaces::likely_bit(upper);
        }
    }

    // The row of the highest bit; row 0 if there is none.
    static size_t row_of(uint32_t bits) { return static_cast<size_t>(std::bit_width(bits)); }

    std::span<Piece* const> pieces_;
    size_t rows_;
    uint32_t left_[kLanes];   // a bit for each row: whether a part starts there
    uint32_t busy_, wanted_;  // a bit for each lane; for each new pair, those with what is behind first
    alignas(64) uint32_t best_[kLanes];
    struct {
        alignas(64) uint32_t left[2 * kLanes], right[2 * kLanes], row[2 * kLanes];
        alignas(64) uint32_t upper[2 * kLanes], bucket[2 * kLanes], likely_bit[2 * kLanes];
    } new_pairs_;
    alignas(64) uint32_t ids_[kMostLaneParts + 1][kLanes];
    alignas(64) uint32_t keys_[kMostLaneParts + 1][kLanes];
};

// Merges a few groups of 16 in turn, so that the cache misses of one overlap with the work of the others.
template <typename Group>
void merge_in_turn(const PairPlaces& places, std::span<Piece* const> pieces) {
    constexpr size_t kGroups = 4;
    Group groups[kGroups];
    Group* working[kGroups];
    const auto start_next = [&](Group& group) {
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

LLMFAST_AVX2 void merge_lanes_avx2(const PairPlaces& places, std::span<Piece* const> pieces) {
    merge_in_turn<PortableLanes>(places, pieces);
}

std::array<NamedLaneMerger, 4> find_lane_mergers() {
    std::array<NamedLaneMerger, 4> found{};
    size_t count = 0;
#if defined(LLMFAST_X86)
    if (has_avx512()) found[count++] = {"avx512", merge_in_turn<Avx512Lanes>};
#endif
    if (has_avx2()) found[count++] = {"avx2", merge_lanes_avx2};
    found[count] = {"portable", merge_in_turn<PortableLanes>};
    return found;
}

}  // namespace

const NamedLaneMerger* lane_mergers() {
    static const std::array<NamedLaneMerger, 4> found = find_lane_mergers();
    return found.data();
}

}  // namespace llmfast
