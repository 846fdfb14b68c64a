#include "train.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <limits>
#include <memory>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

namespace llmfast {
namespace {

using Token = std::uint32_t;
using Position = std::uint32_t;

constexpr Token kNoToken = 0xFFFFFFFF;  // stands between words
constexpr Token kInside = 0xFFFFFFFE;   // a byte inside a token, neither its first nor its last

std::uint64_t key_of(Token left, Token right) { return std::uint64_t{left} << 32 | right; }

// ---------------------------------------------------------------------------------------------------- tokens

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

// --------------------------------------------------------------------------------------------------- symbols

// All words behind one another, one cell a byte. A token is written at its first and at its last byte, so both
// neighbours of a token are found without links: the right one starts at the next byte, the left one ends at the
// byte before. kNoToken separates words.
class Symbols {
public:
    Symbols(const std::vector<Word>& words, const std::array<std::uint8_t, 256>& byte_order) {
        std::array<Token, 256> id_of_byte{};
        for (Token id = 0; id < 256; ++id) id_of_byte[byte_order[id]] = id;

        std::size_t cells = 1;
        for (const Word& word : words) cells += (word.bytes.size() + 1) * copies(word.count);
        if (cells >= kInside) throw std::length_error("the distinct words have 2^32 bytes or more");

        cells_.reserve(cells);
        cells_.push_back({kNoToken, 0});
        for (const Word& word : words) {
            for (std::uint64_t left = word.count; left > 0;) {
                const std::uint64_t weight = std::min(left, kMaxWeight);
                left -= weight;
                for (char byte : word.bytes) {
                    cells_.push_back({id_of_byte[static_cast<std::uint8_t>(byte)], static_cast<std::uint32_t>(weight)});
                }
                cells_.push_back({kNoToken, 0});
            }
        }
    }

    Position size() const { return static_cast<Position>(cells_.size()); }
    Token at(Position p) const { return cells_[p].token; }
    std::uint32_t weight(Position p) const { return cells_[p].weight; }
    void prefetch(Position p) const { __builtin_prefetch(&cells_[p]); }

    // Replaces the tokens at `p` and `middle` by one that ends before `end`.
    void join(Position p, Position middle, Position end, Token token) {
        cells_[middle - 1].token = kInside;
        cells_[middle].token = kInside;
        cells_[p].token = token;
        cells_[end - 1].token = token;
    }

private:
    // 32 bits of weight sit beside each token; a word that is heavier is laid out several times.
    static constexpr std::uint64_t kMaxWeight = std::numeric_limits<std::uint32_t>::max();
    static std::uint64_t copies(std::uint64_t count) { return (count + kMaxWeight - 1) / kMaxWeight; }

    struct Cell {
        Token token;
        std::uint32_t weight;
    };
    std::vector<Cell> cells_;
};

// ----------------------------------------------------------------------------------------------------- pairs

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

    // Takes `weight` off the pair's count; does nothing for a pair that was too rare to be kept.
    void reduce(Token left, Token right, std::uint64_t weight) {
        for (std::size_t i = start(left, right);; i = (i + 1) & (slots_.size() - 1)) {
            if (slots_[i] == kEmpty) return;
            Pair& pair = pairs_[slots_[i]];
            if (pair.left == left && pair.right == right) {
                assert(pair.count >= weight);
                pair.count -= weight;
                return;
            }
        }
    }

private:
    static constexpr std::uint32_t kEmpty = 0xFFFFFFFF;

    std::size_t start(Token left, Token right) const {
        return (key_of(left, right) * 0x9E3779B97F4A7C15u >> 20) & (slots_.size() - 1);
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

// ----------------------------------------------------------------------------------------------------- queue

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
            if (tie_break == TieBreak::smallest_ids) return key_of(x.left, x.right) > key_of(y.left, y.right);
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

// --------------------------------------------------------------------------------------------------- trainer

// What stands on one side of a token's places: for every neighbour, the weight and the places.
class Neighbours {
public:
    // `place` is where the pair of the two starts.
    void add(Token neighbour, std::uint32_t weight, Position place) {
        if (neighbour >= sums_.size()) sums_.resize(std::max<std::size_t>(neighbour + 1, sums_.size() * 2));
        Sum& sum = sums_[neighbour];
        if (sum.n_places == 0) seen_.push_back(neighbour);
        sum.weight += weight;
        ++sum.n_places;
        places_.push_back({neighbour, place});
    }

    // Calls use(neighbour, weight, places, n_places) for each, then forgets all. `places` is null for a neighbour
    // whose weight is below `min_weight`.
    template <class Use>
    void drain(std::uint64_t min_weight, Use use) {
        for (Token neighbour : seen_) {
            Sum& sum = sums_[neighbour];
            if (sum.weight < min_weight) continue;
            sum.places.reset(new Position[sum.n_places]);
            sum.next = sum.places.get();
        }
        for (const auto& [neighbour, place] : places_) {
            Sum& sum = sums_[neighbour];
            if (sum.next) *sum.next++ = place;
        }
        for (Token neighbour : seen_) {
            Sum sum = std::exchange(sums_[neighbour], Sum{});
            use(neighbour, sum.weight, std::move(sum.places), sum.n_places);
        }
        seen_.clear();
        places_.clear();
    }

private:
    struct Sum {
        std::uint64_t weight = 0;
        std::uint32_t n_places = 0;
        Position* next = nullptr;
        std::unique_ptr<Position[]> places;
    };
    struct Place {
        Token neighbour;
        Position place;
    };
    std::vector<Sum> sums_;     // by neighbour
    std::vector<Token> seen_;   // neighbours that have a sum
    std::vector<Place> places_;
};

class Trainer {
public:
    Trainer(const std::vector<Word>& words, const TrainOptions& options)
        : options_(options),
          tokens_(options.byte_order),
          symbols_(words, options.byte_order),
          queue_(pairs_, tokens_, options_) {
        find_byte_pairs();
    }

    std::vector<Merge> run() {
        std::vector<Merge> merges;
        merges.reserve(options_.merges);
        std::uint32_t index;
        while (merges.size() < options_.merges && queue_.pop(index)) {
            if (options_.progress && merges.size() % 256 == 0) options_.progress(merges.size());
            merges.push_back({pairs_[index].left, pairs_[index].right, pairs_[index].count});
            merge(index);
        }
        return merges;
    }

private:
    void find_byte_pairs() {
        std::vector<std::uint64_t> counts(1 << 16), n_places(1 << 16);
        for_each_byte_pair([&](Token left, Token right, Position p) {
            counts[left << 8 | right] += symbols_.weight(p);
            ++n_places[left << 8 | right];
        });
        std::vector<Position*> next(1 << 16);
        std::vector<std::uint32_t> found;
        for (Token pair = 0; pair < 1 << 16; ++pair) {
            if (counts[pair] < options_.min_frequency || counts[pair] == 0) continue;
            std::unique_ptr<Position[]> places(new Position[n_places[pair]]);
            next[pair] = places.get();
            found.push_back(pairs_.insert({counts[pair], pair >> 8, pair & 255, std::move(places),
                                           static_cast<std::uint32_t>(n_places[pair])}));
        }
        for_each_byte_pair([&](Token left, Token right, Position p) {
            if (Position*& place = next[left << 8 | right]) *place++ = p;
        });
        for (std::uint32_t index : found) queue_.push(index);
    }

    template <class Use>
    void for_each_byte_pair(Use use) const {
        for (Position p = 1; p + 1 < symbols_.size(); ++p) {
            const Token left = symbols_.at(p), right = symbols_.at(p + 1);
            if (left != kNoToken && right != kNoToken) use(left, right, p);
        }
    }

    void merge(std::uint32_t index) {
        const Token left = pairs_[index].left, right = pairs_[index].right;
        const Token token = tokens_.append_joined(left, right);
        join_places(index, token);
        count_neighbours(left, right, token);
        update_pairs(left, right, token);
        pairs_[index].count = 0;
    }

    // Joins the pair wherever it still stands; joined_ gets those places, in ascending order like all lists of places.
    void join_places(std::uint32_t index, Token token) {
        const Pair& pair = pairs_[index];
        const std::uint32_t left_length = tokens_.length(pair.left), length = tokens_.length(token);
        constexpr std::uint32_t kAhead = 12;
        joined_.clear();
        for (std::uint32_t i = 0; i < pair.n_places; ++i) {
            if (i + kAhead < pair.n_places) symbols_.prefetch(pair.places[i + kAhead]);
            const Position p = pair.places[i], middle = p + left_length;
            if (symbols_.at(p) != pair.left || symbols_.at(middle) != pair.right) continue;
            symbols_.join(p, middle, p + length, token);
            joined_.push_back(p);
        }
        pairs_[index].places.reset();
    }

    void count_neighbours(Token left, Token right, Token token) {
        const std::uint32_t length = tokens_.length(token);
        std::uint64_t twins = 0;  // weight of places where the new token follows itself
        for (Position p : joined_) {
            const std::uint32_t weight = symbols_.weight(p);
            const Token before = symbols_.at(p - 1), after = symbols_.at(p + length);
            if (before != kNoToken) {
                before_.add(before, weight, p - tokens_.length(before));
                if (before == token) twins += weight;
            }
            if (after != kNoToken && after != token) after_.add(after, weight, p);
        }
        if (twins > 0) pairs_.reduce(right, left, twins);  // they were ... left right | left right ...
    }

    void update_pairs(Token left, Token right, Token token) {
        before_.drain(options_.min_frequency, [&](Token before, std::uint64_t weight, auto places, std::uint32_t n) {
            if (before != token) pairs_.reduce(before, left, weight);
            if (places) queue_.push(pairs_.insert({weight, before, token, std::move(places), n}));
        });
        after_.drain(options_.min_frequency, [&](Token after, std::uint64_t weight, auto places, std::uint32_t n) {
            pairs_.reduce(right, after, weight);
            if (places) queue_.push(pairs_.insert({weight, token, after, std::move(places), n}));
        });
    }

    const TrainOptions& options_;
    TokenBytes tokens_;
    Symbols symbols_;
    PairTable pairs_;
    PairQueue queue_;
    std::vector<Position> joined_;
    Neighbours before_, after_;
};

}  // namespace

std::vector<Merge> learn_merges(const std::vector<Word>& words, const TrainOptions& options) {
    return Trainer(words, options).run();
}

}  // namespace llmfast
