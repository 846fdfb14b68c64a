// The pairs of tokens that training chooses from, and a priority queue of them.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cassert>
#include <cstdint>
#include <memory>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "system/buffer.h"
#include "system/hash.h"
#include "system/interrupt.h"
#include "system/prefetch.h"
#include "train/symbols.h"
#include "train/train.h"

namespace llmfast {

// The bytes of every token, comparable in byte order.
class TokenBytes {
  public:
    explicit TokenBytes(const std::array<uint8_t, 256>& byte_order) {
        for (uint8_t byte : byte_order) append(std::string(1, static_cast<char>(byte)));
    }
    Token size() const { return static_cast<Token>(bytes_.size()); }
    Token append_joined(Token left, Token right) { return append(bytes_[left] + bytes_[right]); }
    uint32_t length(Token token) const { return lengths_[token]; }

    // Removes the tokens from `end` on.
    void truncate(Token end) {
        prefixes_.resize(end);
        lengths_.resize(end);
        bytes_.resize(end);
    }

    // < 0, 0, > 0 as the bytes of `a` come before, are, or come after those of `b`.
    int compare(Token a, Token b) const {
        if (prefixes_[a] != prefixes_[b]) return prefixes_[a] < prefixes_[b] ? -1 : 1;
        return a == b ? 0 : bytes_[a].compare(bytes_[b]);
    }

  private:
    Token append(std::string bytes) {
        uint64_t prefix = 0;  // the first 8 bytes, big-endian: decides nearly every comparison
        for (size_t i = 0; i < 8; ++i) {
            prefix = prefix << 8 | (i < bytes.size() ? static_cast<uint8_t>(bytes[i]) : 0);
        }
        prefixes_.push_back(prefix);
        lengths_.push_back(static_cast<uint32_t>(bytes.size()));
        bytes_.push_back(std::move(bytes));
        return static_cast<Token>(bytes_.size() - 1);
    }

    std::vector<uint64_t> prefixes_;
    std::vector<uint32_t> lengths_;
    std::vector<std::string> bytes_;
};

// Counts the pairs of tokens in a share of the words: a hash table.
class PairCounts {
  public:
    struct Sum {
        uint64_t count;
        Token left, right;
        uint32_t n_positions;
        Position* next;  // where the next position is written; nullptr if none is
    };

    PairCounts() { fill_slots(1 << 16); }

    std::vector<Sum>& sums() { return sums_; }

    Sum& sum_of(Token left, Token right) {
        size_t i = start(left, right);
        for (; slots_[i] != kEmpty; i = (i + 1) & (slots_.size() - 1)) {
            Sum& sum = sums_[slots_[i]];
            if (sum.left == left && sum.right == right) return sum;
        }
        slots_[i] = static_cast<uint32_t>(sums_.size());
        sums_.push_back({0, left, right, 0, nullptr});
        if (sums_.size() * 2 > slots_.size()) grow();
        return sums_.back();
    }

    void add(const PairCounts& other) {
        InterruptCounter counter;
        for (const Sum& sum : other.sums_) {
            counter.add(1);
            Sum& here = sum_of(sum.left, sum.right);
            here.count += sum.count;
            here.n_positions += sum.n_positions;
        }
    }

  private:
    static constexpr uint32_t kEmpty = 0xFFFFFFFF;

    size_t start(Token left, Token right) const { return hash_words(left, right) & (slots_.size() - 1); }
    void fill_slots(size_t count) {
        uint32_t* const slots = slots_.reset(count);
        in_windows(count, [slots](size_t begin, size_t end) { std::fill(slots + begin, slots + end, kEmpty); });
    }
    void grow() {
        fill_slots(2 * slots_.size());
        InterruptCounter counter;
        for (uint32_t index = 0; index < sums_.size(); ++index) {
            counter.add(1);
            size_t i = start(sums_[index].left, sums_[index].right);
            while (slots_[i] != kEmpty) i = (i + 1) & (slots_.size() - 1);
            slots_[i] = index;
        }
    }

    std::vector<Sum> sums_;
    Buffer<uint32_t> slots_;
};

// A pair of tokens that are adjacent somewhere. All its positions arise in one merge, the one that makes the younger of
// its tokens; from then on its count only decreases. So the list of positions is written once, and some may be
// outdated.
struct NewPair {
    uint64_t count;
    Token left, right;
    std::unique_ptr<Position[]> positions;
    uint32_t n_positions;
};

class TrainingPairs {
  public:
    // Several threads decrease counts at the same time.
    struct Pair {
        std::atomic<uint64_t> count;
        Token left, right;
        std::unique_ptr<Position[]> positions;
        uint32_t n_positions;

        explicit Pair(NewPair pair)
            : count(pair.count),
              left(pair.left),
              right(pair.right),
              positions(std::move(pair.positions)),
              n_positions(pair.n_positions) {}
        Pair(Pair&& other) noexcept
            : Pair(NewPair{other.now(), other.left, other.right, std::move(other.positions), other.n_positions}) {}

        uint64_t now() const { return count.load(std::memory_order_relaxed); }
    };

    TrainingPairs() { clear(); }

    Pair& operator[](uint32_t index) { return pairs_[index]; }
    const Pair& operator[](uint32_t index) const { return pairs_[index]; }

    void clear() {
        pairs_.clear();
        fill_slots(1 << 12);
    }

    // The pair must be new.
    uint32_t insert(NewPair pair) {
        if ((pairs_.size() + 1) * 2 > slots_.size()) grow();
        const auto index = static_cast<uint32_t>(pairs_.size());
        put(pair.left, pair.right, index);
        pairs_.emplace_back(std::move(pair));
        return index;
    }

    void prefetch(Token left, Token right) const { prefetch_line(&slots_[start(left, right)]); }
    void prefetch(uint32_t index) const { prefetch_line(&pairs_[index]); }

    // Returns kNone for a pair that was too rare to be kept.
    static constexpr uint32_t kNone = 0xFFFFFFFF;
    uint32_t find(Token left, Token right) const {
        for (size_t i = start(left, right);; i = (i + 1) & (slots_.size() - 1)) {
            const Slot& slot = slots_[i];
            if (slot.index == kNone || (slot.left == left && slot.right == right)) return slot.index;
        }
    }

  private:
    struct Slot {
        Token left = 0, right = 0;
        uint32_t index = kNone;
    };

    size_t start(Token left, Token right) const { return hash_words(left, right) & (slots_.size() - 1); }
    void put(Token left, Token right, uint32_t index) {
        size_t i = start(left, right);
        while (slots_[i].index != kNone) i = (i + 1) & (slots_.size() - 1);
        slots_[i] = {left, right, index};
    }
    void fill_slots(size_t count) {
        Slot* const slots = slots_.reset(count);
        in_windows(count, [slots](size_t begin, size_t end) { std::fill(slots + begin, slots + end, Slot{}); });
    }
    void grow() {
        fill_slots(2 * slots_.size());
        InterruptCounter counter;
        for (uint32_t index = 0; index < pairs_.size(); ++index) {
            counter.add(1);
            put(pairs_[index].left, pairs_[index].right, index);
        }
    }

    std::vector<Pair> pairs_;
    Buffer<Slot> slots_;
};

// A priority queue of pairs, the most frequent first. Counts decrease without notice to the queue, so it compares the
// count of its first entry with the current one before it returns it. Pairs wait unordered in buckets of similar
// counts; only the bucket with the highest counts is a heap.
class PairQueue {
  public:
    struct Rank {
        uint64_t count;
        Token left, right;
    };

    PairQueue(const TrainingPairs& pairs, const TokenBytes& tokens, TieBreak tie_break)
        : pairs_(pairs), tokens_(tokens), tie_break_(tie_break), front_(Later{*this}), buckets_(bucket(~0ull) + 1) {}

    // Whether `a` is merged before `b`.
    bool outranks(const Rank& a, const Rank& b) const {
        if (a.count != b.count) return a.count > b.count;
        if (tie_break_ == TieBreak::greatest_bytes) {
            const int left = tokens_.compare(a.left, b.left);
            const int order = left != 0 ? left : tokens_.compare(a.right, b.right);
            if (order != 0) return order > 0;
        }
        return std::pair(a.left, a.right) < std::pair(b.left, b.right);
    }

    void push(uint32_t index) {
        const uint64_t count = count_of(index);
        if (count < min_count_) return;
        const size_t b = bucket(count);
        if (b >= current_) {
            front_.push({count, index});
        } else {
            buckets_[b].push_back(index);
        }
    }

    // Writes the best pair, which stays in the queue until pop(); returns false if none is left.
    bool best(uint32_t& index) {
        while (true) {
            while (front_.empty()) {
                if (current_ == 0) return false;
                const std::vector<uint32_t> waiting = std::move(buckets_[--current_]);
                InterruptCounter counter;
                for (const uint32_t i : waiting) {
                    counter.add(1);
                    push(i);
                }
            }
            const Entry top = front_.top();
            index = top.index;
            if (count_of(index) == top.count) return true;
            front_.pop();
            push(index);
        }
    }
    void pop() { front_.pop(); }

    // Empties the queue; pairs below `min_count` will not be added.
    void restart(uint64_t min_count) {
        assert(front_.empty());
        min_count_ = min_count;
        current_ = buckets_.size() - 1;
    }

  private:
    struct Entry {
        uint64_t count;
        uint32_t index;
    };

    // Heap order: true if `a` comes out after `b`.
    struct Later {
        const PairQueue& queue;
        bool operator()(const Entry& a, const Entry& b) const {
            return a.count != b.count ? a.count < b.count : queue.outranks(queue.rank_of(b), queue.rank_of(a));
        }
    };

    uint64_t count_of(uint32_t index) const { return pairs_[index].now(); }
    Rank rank_of(const Entry& entry) const {
        return {entry.count, pairs_[entry.index].left, pairs_[entry.index].right};
    }

    // 32 buckets for each power of two: exact below 64, about 3 % wide above.
    static size_t bucket(uint64_t count) {
        const int shift = std::max(0, static_cast<int>(std::bit_width(count)) - 6);
        return static_cast<size_t>(shift) * 32 + (count >> shift);
    }

    const TrainingPairs& pairs_;
    const TokenBytes& tokens_;
    TieBreak tie_break_;
    std::priority_queue<Entry, std::vector<Entry>, Later> front_;
    std::vector<std::vector<uint32_t>> buckets_;
    size_t current_ = 0;
    uint64_t min_count_ = 0;
};

}  // namespace llmfast
