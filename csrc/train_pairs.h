// The pairs of tokens that training chooses from, and the queue that hands out the best one.

#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstdint>
#include <memory>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "prefetch.h"
#include "train.h"

namespace llmfast {

using Token = std::uint32_t;
using Position = std::uint32_t;

// The bytes of every token, comparable in byte order.
class TokenBytes {
public:
    explicit TokenBytes(const std::array<std::uint8_t, 256>& byte_order) {
        for (std::uint8_t byte : byte_order) append(std::string(1, static_cast<char>(byte)));
    }
    Token append_joined(Token left, Token right) { return append(bytes_[left] + bytes_[right]); }
    std::uint32_t length(Token token) const { return lengths_[token]; }

    // < 0, 0, > 0 as the bytes of `a` come before, are, or come after those of `b`.
    int compare(Token a, Token b) const {
        if (prefixes_[a] != prefixes_[b]) return prefixes_[a] < prefixes_[b] ? -1 : 1;
        return a == b ? 0 : bytes_[a].compare(bytes_[b]);
    }

private:
    Token append(std::string bytes) {
        std::uint64_t prefix = 0;  // the first 8 bytes, big-endian: decides nearly every comparison
        for (std::size_t i = 0; i < 8; ++i) {
            prefix = prefix << 8 | (i < bytes.size() ? static_cast<std::uint8_t>(bytes[i]) : 0);
        }
        prefixes_.push_back(prefix);
        lengths_.push_back(static_cast<std::uint32_t>(bytes.size()));
        bytes_.push_back(std::move(bytes));
        return static_cast<Token>(bytes_.size() - 1);
    }

    std::vector<std::uint64_t> prefixes_;
    std::vector<std::uint32_t> lengths_;
    std::vector<std::string> bytes_;
};

inline std::uint64_t pair_key(Token left, Token right) { return std::uint64_t{left} << 32 | right; }

// A pair of tokens that are adjacent somewhere. All its places arise in one step, when the younger of its tokens is
// made; from then on its count only falls. So the list of places is written once, and a place may have gone stale.
struct Pair {
    std::uint64_t count;
    Token left, right;
    std::unique_ptr<Position[]> places;
    std::uint32_t n_places;
};

class PairTable {
public:
    struct Loss {
        Token left, right;
        std::uint64_t weight;
    };

    PairTable() : slots_(1 << 16, kEmpty) {}

    Pair& operator[](std::uint32_t index) { return pairs_[index]; }
    const Pair& operator[](std::uint32_t index) const { return pairs_[index]; }

    // The pair must be new.
    std::uint32_t insert(Pair pair) {
        if ((pairs_.size() + 1) * 2 > slots_.size()) grow();
        const auto index = static_cast<std::uint32_t>(pairs_.size());
        place(pair.left, pair.right, index);
        pairs_.push_back(std::move(pair));
        return index;
    }

    // Takes loss_of(item).weight off the count of a pair, for every item; a pair that was too rare to be kept is
    // passed over. All are looked up at once, so that they wait for memory together.
    template <class Items, class LossOf>
    void reduce(const Items& items, LossOf loss_of) {
        for (auto item : items) {
            const Loss loss = loss_of(item);
            prefetch_line(&slots_[start(loss.left, loss.right)]);
        }
        for (auto item : items) {
            const Loss loss = loss_of(item);
            const std::uint32_t index = slots_[start(loss.left, loss.right)];
            if (index != kEmpty) prefetch_line(&pairs_[index]);
        }
        for (auto item : items) {
            const Loss loss = loss_of(item);
            const std::uint32_t index = find(loss.left, loss.right);
            if (index == kEmpty) continue;
            assert(pairs_[index].count >= loss.weight);
            pairs_[index].count -= loss.weight;
        }
    }

private:
    static constexpr std::uint32_t kEmpty = 0xFFFFFFFF;

    std::size_t start(Token left, Token right) const {
        return (pair_key(left, right) * 0x9E3779B97F4A7C15u >> 20) & (slots_.size() - 1);
    }
    std::uint32_t find(Token left, Token right) const {
        for (std::size_t i = start(left, right);; i = (i + 1) & (slots_.size() - 1)) {
            if (slots_[i] == kEmpty) return kEmpty;
            const Pair& pair = pairs_[slots_[i]];
            if (pair.left == left && pair.right == right) return slots_[i];
        }
    }
    void place(Token left, Token right, std::uint32_t index) {
        std::size_t i = start(left, right);
        while (slots_[i] != kEmpty) i = (i + 1) & (slots_.size() - 1);
        slots_[i] = index;
    }
    void grow() {
        slots_.assign(slots_.size() * 2, kEmpty);
        for (std::uint32_t index = 0; index < pairs_.size(); ++index) {
            place(pairs_[index].left, pairs_[index].right, index);
        }
    }

    std::vector<Pair> pairs_;
    std::vector<std::uint32_t> slots_;
};

// Hands out pairs, most frequent first. Counts fall behind its back, so it looks again before it hands one out.
// Pairs wait unordered in buckets of similar counts; only the bucket in front is a heap.
class PairQueue {
public:
    PairQueue(const PairTable& pairs, const TokenBytes& tokens, const TrainOptions& options)
        : pairs_(pairs), options_(options), front_(Later{pairs, tokens, options.tie_break}), buckets_(bucket(~0ull) + 1) {
        current_ = buckets_.size() - 1;
    }

    void push(std::uint32_t index) {
        const std::uint64_t count = pairs_[index].count;
        if (count < options_.min_frequency) return;
        const std::size_t b = bucket(count);
        assert(b <= current_);
        if (b == current_) {
            front_.push({count, index});
        } else {
            buckets_[b].push_back(index);
        }
    }

    // False when none is left.
    bool pop(std::uint32_t& index) {
        while (true) {
            while (front_.empty()) {
                if (current_ == 0) return false;
                const std::vector<std::uint32_t> waiting = std::move(buckets_[--current_]);
                for (std::uint32_t i : waiting) push(i);
            }
            const Entry top = front_.top();
            front_.pop();
            index = top.index;
            if (pairs_[index].count == top.count) return true;
            push(index);
        }
    }

private:
    struct Entry {
        std::uint64_t count;
        std::uint32_t index;
    };

    // Heap order: true if `a` comes out after `b`.
    struct Later {
        const PairTable& pairs;
        const TokenBytes& tokens;
        TieBreak tie_break;

        bool operator()(const Entry& a, const Entry& b) const {
            if (a.count != b.count) return a.count < b.count;
            const Pair &x = pairs[a.index], &y = pairs[b.index];
            if (tie_break == TieBreak::smallest_ids) return pair_key(x.left, x.right) > pair_key(y.left, y.right);
            const int left = tokens.compare(x.left, y.left);
            return left != 0 ? left < 0 : tokens.compare(x.right, y.right) < 0;
        }
    };

    // 32 buckets for each power of two: exact below 64, about 3 % wide above.
    static std::size_t bucket(std::uint64_t count) {
        const int shift = std::max(0, static_cast<int>(std::bit_width(count)) - 6);
        return static_cast<std::size_t>(shift) * 32 + (count >> shift);
    }

    const PairTable& pairs_;
    const TrainOptions& options_;
    std::priority_queue<Entry, std::vector<Entry>, Later> front_;
    std::vector<std::vector<std::uint32_t>> buckets_;
    std::size_t current_;
};

}  // namespace llmfast
