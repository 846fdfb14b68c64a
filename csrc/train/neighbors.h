// What stands beside the places where a token arises.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "system/interrupt.h"
#include "train/symbols.h"

namespace llmfast {

// For each token, where its sum stands in the Neighbors that are being counted; kNowhere for all others, and for all
// between uses. A thread has one of these, however many Neighbors it fills.
class IndexOfToken {
public:
    static constexpr std::uint32_t kNowhere = 0xFFFFFFFF;

    explicit IndexOfToken(std::size_t tokens) : indices_(tokens, kNowhere) {}
    std::uint32_t& operator[](Token token) { return indices_[token]; }

private:
    std::vector<std::uint32_t> indices_;
};

// One side of a token's places: for every neighbor the weight and the places of the pair of the two.
class Neighbors {
public:
    struct Sum {
        std::uint64_t weight;
        Token neighbor;
        std::uint32_t n_places;
        Position* next;  // where the next place is written; nullptr while none is
    };

    // `place` is where the pair of the two starts.
    void add(IndexOfToken& index_of, Token neighbor, std::uint64_t weight, Position place) {
        const std::uint32_t index = find(index_of, neighbor);
        sums_[index].weight += weight;
        ++sums_[index].n_places;
        places_.push_back({index, place});
    }

    // To be called after the last add().
    void forget(IndexOfToken& index_of) const {
        for (const Sum& sum : sums_) index_of[sum.neighbor] = IndexOfToken::kNowhere;
    }

    // Takes over what `other` has, whose places come after those of this one.
    void absorb(IndexOfToken& index_of, Neighbors& other) {
        for (std::uint32_t i = 0; i < sums_.size(); ++i) index_of[sums_[i].neighbor] = i;
        std::vector<std::uint32_t> here;
        here.reserve(other.sums_.size());
        for (const Sum& from : other.sums_) {
            const std::uint32_t index = find(index_of, from.neighbor);
            sums_[index].weight += from.weight;
            sums_[index].n_places += from.n_places;
            here.push_back(index);
        }
        for (const Place& place : other.places_) {
            if (places_.size() % kLooks == 0) check_interrupt();
            places_.push_back({here[place.sum], place.start});
        }
        forget(index_of);
        other.clear();
    }

    const std::vector<Sum>& sums() const { return sums_; }

    // Calls use(neighbor, weight, places, n_places) for each that has at least `min_weight`, its places in the order
    // in which they were added.
    template <class Use>
    void lay_out(std::uint64_t min_weight, Use use) {
        bool any = false;
        for (Sum& sum : sums_) {
            if (sum.weight < min_weight) continue;
            sum.next = new Position[sum.n_places];
            use(sum.neighbor, sum.weight, std::unique_ptr<Position[]>(sum.next), sum.n_places);
            any = true;
        }
        if (!any) return;
        for (const Place& place : places_) {
            if ((&place - places_.data()) % kLooks == 0) check_interrupt();
            if (Position*& next = sums_[place.sum].next) *next++ = place.start;
        }
    }

    void clear() {
        sums_.clear();
        places_.clear();
    }

private:
    static constexpr std::ptrdiff_t kLooks = 1 << 14;  // places between two looks at whether the caller still wants the result

    struct Place {
        std::uint32_t sum;
        Position start;
    };

    std::uint32_t find(IndexOfToken& index_of, Token neighbor) {
        std::uint32_t& index = index_of[neighbor];
        if (index == IndexOfToken::kNowhere) {
            index = static_cast<std::uint32_t>(sums_.size());
            sums_.push_back({0, neighbor, 0, nullptr});
        }
        return index;
    }

    std::vector<Sum> sums_;
    std::vector<Place> places_;
};

}  // namespace llmfast
