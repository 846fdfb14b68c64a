#include "train.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>

#include "prefetch.h"
#include "team.h"
#include "train_pairs.h"

namespace llmfast {
namespace {

constexpr Token kNoToken = 0xFFFFFFFF;  // stands between words
constexpr Token kInside = 0xFFFFFFFE;   // a byte inside a token, neither its first nor its last

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
    void prefetch(Position p) const { prefetch_line(&cells_[p]); }

    // Whether the places are in different words, as far as a short look tells.
    bool separated(Position p, Position later) const {
        const Position end = std::min(later, p + 256);
        while (p < end && cells_[p].token != kNoToken) ++p;
        return p < end;
    }

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

// What stands on one side of a token's places: for every neighbour, the weight and the places.
class Neighbours {
public:
    // `place` is where the pair of the two starts.
    void add(Token neighbour, std::uint32_t weight, Position place) {
        Sum& sum = sum_of(neighbour);
        sum.weight += weight;
        ++sum.n_places;
        places_.push_back({neighbour, place});
    }

    // Takes over what `other` has, whose places come after those of this one.
    void absorb(Neighbours& other) {
        for (Token neighbour : other.seen_) {
            const Sum from = std::exchange(other.sums_[neighbour], Sum{});
            Sum& sum = sum_of(neighbour);
            sum.weight += from.weight;
            sum.n_places += from.n_places;
        }
        places_.insert(places_.end(), other.places_.begin(), other.places_.end());
        other.seen_.clear();
        other.places_.clear();
    }

    const std::vector<Token>& seen() const { return seen_; }
    std::uint64_t weight(Token neighbour) const { return sums_[neighbour].weight; }

    // Calls use(neighbour, weight, places, n_places) for each that has at least `min_weight`, then forgets all.
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
            Sum& sum = sums_[neighbour];
            if (sum.places) use(neighbour, sum.weight, std::move(sum.places), sum.n_places);
            sum = Sum{};
        }
        seen_.clear();
        places_.clear();
    }

private:
    struct Sum {
        std::uint64_t weight = 0;
        std::uint32_t n_places = 0;
        Position* next = nullptr;
        std::unique_ptr<Position[]> places = nullptr;
    };
    struct Place {
        Token neighbour;
        Position place;
    };

    Sum& sum_of(Token neighbour) {
        if (neighbour >= sums_.size()) sums_.resize(std::max<std::size_t>(neighbour + 1, sums_.size() * 2));
        if (sums_[neighbour].n_places == 0) seen_.push_back(neighbour);
        return sums_[neighbour];
    }

    std::vector<Sum> sums_;     // by neighbour
    std::vector<Token> seen_;   // neighbours that have a sum
    std::vector<Place> places_;
};

// What a thread finds beside the token being made.
struct Sides {
    Neighbours before, after;
    std::uint64_t twins = 0;  // the weight of places where the token follows itself

    void absorb(Sides& other) {
        before.absorb(other.before);
        after.absorb(other.after);
        twins += std::exchange(other.twins, 0);
    }
};

class Trainer {
public:
    Trainer(const std::vector<Word>& words, const TrainOptions& options)
        : options_(options),
          tokens_(options.byte_order),
          symbols_(words, options.byte_order),
          queue_(pairs_, tokens_, options_),
          sides_(std::max(1u, options.threads)),
          team_(std::max(1u, options.threads)) {
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
    // Each thread takes a share of the cells: first all count, then all write their places behind one another's.
    void find_byte_pairs() {
        struct Share {
            std::vector<std::uint64_t> counts = std::vector<std::uint64_t>(1 << 16);
            std::vector<std::uint32_t> n_places = std::vector<std::uint32_t>(1 << 16);
            std::vector<Position*> next = std::vector<Position*>(1 << 16);
        };
        std::vector<Share> shares(team_.size());
        team_.run([&](unsigned member) {
            Share& share = shares[member];
            for_each_byte_pair(member, [&](Token pair, Position p) {
                share.counts[pair] += symbols_.weight(p);
                ++share.n_places[pair];
            });
        });
        std::vector<std::uint32_t> found;
        for (Token pair = 0; pair < 1 << 16; ++pair) {
            std::uint64_t count = 0;
            std::uint32_t n_places = 0;
            for (const Share& share : shares) {
                count += share.counts[pair];
                n_places += share.n_places[pair];
            }
            if (count == 0 || count < options_.min_frequency) continue;
            std::unique_ptr<Position[]> places(new Position[n_places]);
            Position* next = places.get();
            for (Share& share : shares) next = (share.next[pair] = next) + share.n_places[pair];
            found.push_back(pairs_.insert({count, pair >> 8, pair & 255, std::move(places), n_places}));
        }
        team_.run([&](unsigned member) {
            for_each_byte_pair(member, [&](Token pair, Position p) {
                if (Position*& next = shares[member].next[pair]) *next++ = p;
            });
        });
        for (std::uint32_t index : found) queue_.push(index);
    }

    // Calls use(left << 8 | right, position of left) for the pairs that start in the member's share of the cells.
    template <class Use>
    void for_each_byte_pair(unsigned member, Use use) const {
        const std::uint64_t cells = symbols_.size() - 1;
        const auto end = static_cast<Position>(cells * (member + 1) / team_.size());
        for (auto p = static_cast<Position>(cells * member / team_.size()); p < end; ++p) {
            const Token left = symbols_.at(p), right = symbols_.at(p + 1);
            if (left != kNoToken && right != kNoToken) use(left << 8 | right, p);
        }
    }

    void merge(std::uint32_t index) {
        const Token left = pairs_[index].left, right = pairs_[index].right;
        const Token token = tokens_.append_joined(left, right);
        const std::vector<std::uint32_t> cuts = share_places(pairs_[index]);
        if (cuts.size() == 2) {
            join_places(pairs_[index], cuts[0], cuts[1], token, sides_[0]);
        } else {
            team_.run([&](unsigned i) { join_places(pairs_[index], cuts[i], cuts[i + 1], token, sides_[i]); });
            for (unsigned i = 1; i < team_.size(); ++i) sides_[0].absorb(sides_[i]);
        }
        update_pairs(left, right, token);
        pairs_[index].count = 0;
        pairs_[index].places.reset();
    }

    // Where the list of places is cut so that every thread gets a share, and no word is in two shares.
    std::vector<std::uint32_t> share_places(const Pair& pair) const {
        constexpr std::uint32_t kTries = 64;
        if (team_.size() == 1 || pair.n_places < std::max(options_.worth_sharing, team_.size())) return {0, pair.n_places};
        std::vector<std::uint32_t> cuts{0};
        for (unsigned i = 1; i < team_.size(); ++i) {
            const std::uint64_t even = std::uint64_t{pair.n_places} * i / team_.size();
            std::uint32_t cut = std::max(static_cast<std::uint32_t>(even), cuts.back());
            const std::uint32_t last = std::min(cut + kTries, pair.n_places);
            while (cut < last && !symbols_.separated(pair.places[cut - 1], pair.places[cut])) ++cut;
            if (cut == last) return {0, pair.n_places};
            cuts.push_back(cut);
        }
        cuts.push_back(pair.n_places);
        return cuts;
    }

    // Joins the pair wherever it still stands among its places from `begin` to `end`, in ascending order like all
    // lists of places, and counts what then stands beside it. A place is counted after the next one is joined, which
    // may be its neighbour.
    void join_places(const Pair& pair, std::uint32_t begin, std::uint32_t end, Token token, Sides& sides) {
        const Token left = pair.left, right = pair.right;
        const std::uint32_t left_length = tokens_.length(left), length = tokens_.length(token);
        constexpr std::uint32_t kAhead = 12;
        Position last = 0;
        for (std::uint32_t i = begin; i < end; ++i) {
            if (i + kAhead < end) symbols_.prefetch(pair.places[i + kAhead]);
            const Position p = pair.places[i], middle = p + left_length;
            if (symbols_.at(p) != left || symbols_.at(middle) != right) continue;
            symbols_.join(p, middle, p + length, token);
            if (last != 0) count_neighbours(last, token, length, sides);
            last = p;
        }
        if (last != 0) count_neighbours(last, token, length, sides);
    }

    void count_neighbours(Position p, Token token, std::uint32_t length, Sides& sides) const {
        const std::uint32_t weight = symbols_.weight(p);
        const Token before = symbols_.at(p - 1), after = symbols_.at(p + length);
        if (before != kNoToken) {
            sides.before.add(before, weight, p - tokens_.length(before));
            if (before == token) sides.twins += weight;
        }
        if (after != kNoToken && after != token) sides.after.add(after, weight, p);
    }

    // Where the token stands now, its left part stood beside what is before it, and its right part beside what is
    // after it.
    void update_pairs(Token left, Token right, Token token) {
        Sides& beside = sides_[0];
        pairs_.reduce(beside.before.seen(), [&](Token neighbour) {
            return PairTable::Loss{neighbour, left, neighbour == token ? 0 : beside.before.weight(neighbour)};
        });
        pairs_.reduce(beside.after.seen(), [&](Token neighbour) {
            return PairTable::Loss{right, neighbour, beside.after.weight(neighbour)};
        });
        // A token that follows itself: they were ... left right | left right ...
        if (beside.twins > 0) pairs_.reduce(std::array{0}, [&](int) { return PairTable::Loss{right, left, beside.twins}; });

        beside.before.drain(options_.min_frequency, [&](Token neighbour, std::uint64_t weight, auto places, std::uint32_t n) {
            queue_.push(pairs_.insert({weight, neighbour, token, std::move(places), n}));
        });
        beside.after.drain(options_.min_frequency, [&](Token neighbour, std::uint64_t weight, auto places, std::uint32_t n) {
            queue_.push(pairs_.insert({weight, token, neighbour, std::move(places), n}));
        });
        beside.twins = 0;
    }

    const TrainOptions& options_;
    TokenBytes tokens_;
    Symbols symbols_;
    PairTable pairs_;
    PairQueue queue_;
    std::vector<Sides> sides_;  // one for each thread
    Team team_;
};

}  // namespace

std::vector<Merge> learn_merges(const std::vector<Word>& words, const TrainOptions& options) {
    return Trainer(words, options).run();
}

}  // namespace llmfast
