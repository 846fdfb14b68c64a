// The tokens on one side of the positions where a merge makes a new token.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "system/interrupt.h"
#include "train/symbols.h"

namespace llmfast {

// The index of each token's Sum in the Neighbors that are being counted; kNowhere for tokens without one, and for all
// tokens between uses. Each thread has one of these for all the Neighbors that it fills.
class IndexOfToken {
  public:
    static constexpr uint32_t kNowhere = 0xFFFFFFFF;

    explicit IndexOfToken(size_t tokens) : indices_(tokens, kNowhere) {}
    uint32_t& operator[](Token token) { return indices_[token]; }

  private:
    std::vector<uint32_t> indices_;
};

// One side of a new token: for every token beside it, the weight and the positions of the pair of the two.
class Neighbors {
  public:
    struct Sum {
        uint64_t weight;
        Token neighbor;
        uint32_t n_positions;
        Position* next;  // where the next position is written; nullptr if none is
    };

    // `position` is where the pair of the two starts.
    void add(IndexOfToken& index_of, Token neighbor, uint64_t weight, Position position) {
        const uint32_t index = find(index_of, neighbor);
        sums_[index].weight += weight;
        ++sums_[index].n_positions;
        entries_.push_back({index, position});
    }

    // Makes `index_of` usable for other Neighbors. Call it after the last add().
    void reset(IndexOfToken& index_of) const {
        for (const Sum& sum : sums_) index_of[sum.neighbor] = IndexOfToken::kNowhere;
    }

    // Moves the content of `other`, whose positions come after all of these, to the end of this one.
    void append(IndexOfToken& index_of, Neighbors& other) {
        for (uint32_t i = 0; i < sums_.size(); ++i) index_of[sums_[i].neighbor] = i;
        std::vector<uint32_t> here;
        here.reserve(other.sums_.size());
        for (const Sum& from : other.sums_) {
            const uint32_t index = find(index_of, from.neighbor);
            sums_[index].weight += from.weight;
            sums_[index].n_positions += from.n_positions;
            here.push_back(index);
        }
        InterruptCounter counter;
        for (const Entry& entry : other.entries_) {
            counter.add(1);
            entries_.push_back({here[entry.sum], entry.start});
        }
        reset(index_of);
        other.clear();
    }

    const std::vector<Sum>& sums() const { return sums_; }

    // Calls use(neighbor, weight, positions, n_positions) for each neighbor of at least `min_weight`. Its positions are
    // in the order in which they were added.
    template <typename Use>
    void write_positions(uint64_t min_weight, Use use) {
        bool any = false;
        InterruptCounter sums_looked_at;
        for (Sum& sum : sums_) {
            sums_looked_at.add(1);
            if (sum.weight < min_weight) continue;
            sum.next = new Position[sum.n_positions];
            use(sum.neighbor, sum.weight, std::unique_ptr<Position[]>(sum.next), sum.n_positions);
            any = true;
        }
        if (!any) return;
        InterruptCounter counter;
        for (const Entry& entry : entries_) {
            counter.add(1);
            if (Position*& next = sums_[entry.sum].next) *next++ = entry.start;
        }
    }

    void clear() {
        sums_.clear();
        entries_.clear();
    }

  private:
    struct Entry {
        uint32_t sum;
        Position start;
    };

    uint32_t find(IndexOfToken& index_of, Token neighbor) {
        uint32_t& index = index_of[neighbor];
        if (index == IndexOfToken::kNowhere) {
            index = static_cast<uint32_t>(sums_.size());
            sums_.push_back({0, neighbor, 0, nullptr});
        }
        return index;
    }

    std::vector<Sum> sums_;
    std::vector<Entry> entries_;
};

}  // namespace llmfast
