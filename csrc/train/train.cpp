#include "train/train.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include "system/interrupt.h"
#include "system/parallel.h"
#include "system/prefetch.h"
#include "system/termination.h"
#include "train/neighbors.h"
#include "train/pairs.h"
#include "train/symbols.h"

namespace llmfast {
namespace {

// One merge: a pair and the token it becomes.
struct Step {
    uint32_t index;
    Token left, right, token;
    uint32_t left_length, length;
    uint64_t count;

    PairQueue::Rank rank() const { return {count, left, right}; }
};

constexpr size_t kBefore = 0, kAfter = 1;
constexpr size_t kSides[] = {kBefore, kAfter};

// What a step finds at its positions. Several threads write to an array of these: none shares a cache line with
// another.
struct alignas(128) Occurrences {
    std::vector<Position> positions;  // where the pair still is
    std::array<Neighbors, 2> neighbors;
    std::array<std::vector<NewPair>, 2> new_pairs;  // of the new token with its `neighbors`
    uint64_t self_pairs = 0;                        // the weight of positions where the new token follows itself
    size_t counter = 0;                             // the thread that counted the step
    bool touches_batch = false;  // whether a new token of an earlier step of the batch is among the neighbors

    void clear() {
        positions.clear();
        for (size_t side : kSides) {
            neighbors[side].clear();
            new_pairs[side].clear();
        }
        self_pairs = 0;
        touches_batch = false;
    }
};

struct Decrease {
    uint32_t pair;
    uint64_t weight;
};

// The pair of a token and its neighbor on one side.
struct OrderedPair {
    Token left, right;
    OrderedPair(size_t side, Token neighbor, Token own)
        : left(side == kBefore ? neighbor : own), right(side == kBefore ? own : neighbor) {}
};

// Merges are made in batches. The best pairs of the queue form a batch as long as no left token of one is a right token
// of another: then their positions do not overlap, and merging one does not change the count of another. The threads
// count the neighbors that each new token will have, as if the steps before it were merged, but without changing a
// symbol yet. If a new pair turns out to rank before a later step, the batch ends before that step: so the result is
// the same as when merging one pair at a time. Then all steps of the batch are merged in parallel.
class Trainer {
  public:
    Trainer(const std::vector<Word>& words, const TrainOptions& options)
        : words_(words),
          options_(options),
          team_(options.threads),
          tokens_(options.byte_order),
          symbols_(words, options.byte_order, team_),
          queue_(pairs_, tokens_, options_.tie_break),
          most_merges_(std::min<size_t>(options.merges, symbols_.size())),  // each removes a token
          roles_(256 + most_merges_),
          found_(std::max(kLongestBatch, team_.size())),
          index_of_(team_.size(), {IndexOfToken(256 + most_merges_), IndexOfToken(256 + most_merges_)}),
          decreases_(team_.size()) {
        if (roles_.size() > Symbols::kMostTokens) throw std::length_error("more than 2^24 tokens cannot be learned");
    }

    std::vector<Merge> run() {
        std::vector<Merge> merges;
        size_t next_report = 0;
        find_pairs(first_min_count());
        Decreasing rarest(SIZE_MAX);  // a batch without merges is followed by a search for rarer pairs
        while (merges.size() < most_merges_) {
            check_interrupt();
            if (options_.progress && merges.size() >= next_report) {
                options_.progress(merges.size());
                next_report = merges.size() + 256;
            }
            choose_batch(most_merges_ - merges.size());
            if (batch_.empty()) {
                if (min_count_ == options_.min_frequency) break;
                rarest.require(min_count_);
                find_pairs(std::max(options_.min_frequency, min_count_ / 8));
                continue;
            }
            if (is_large(batch_[0])) {
                count_large();
            } else {
                count_batch();
            }
            merge_batch();
            for (const Step& step : batch_) merges.push_back({step.left, step.right, step.count});
        }
        return merges;
    }

  private:
    static constexpr size_t kLongestBatch = 64, kFewSteps = 16;
    static constexpr uint64_t kMostPositions = 1 << 14;  // of a batch, so that its cells stay in a core's cache
    static constexpr uint64_t kFewPositions = 256;
    static constexpr uint32_t kAhead = 12;  // positions whose cells are prefetched
    static constexpr uint8_t kIsLeft = 1, kIsRight = 2;

    // ---- Finding pairs

    // The rarest pair that is merged usually has more than a hundredth of the average weight per merge. If it has less,
    // the symbols are searched once more.
    uint64_t first_min_count() const {
        uint64_t weight = 0;
        InterruptCounter counter;
        for (const Word& word : words_) {
            counter.add(1);
            weight += word.bytes.size() * word.count;
        }
        return std::max(options_.min_frequency, weight / (most_merges_ + 1) / 128);
    }

    // Most pairs are too rare ever to be merged: only those of at least `min_count` are kept. When these are used up,
    // the symbols are searched again for rarer ones. Each thread counts a share of the words; then each writes its
    // positions after those of the threads before it.
    void find_pairs(uint64_t min_count) {
        min_count_ = min_count;
        pairs_.clear();
        queue_.restart(min_count);
        std::vector<PairCounts> shares(team_.size());
        team_.run(shares.size(), [&](size_t i, size_t) {
            for_each_pair(i, [&](Token left, Token right, Position p) {
                PairCounts::Sum& sum = shares[i].sum_of(left, right);
                sum.count += symbols_.weight(p);
                ++sum.n_positions;
            });
        });
        PairCounts all;
        for (const PairCounts& share : shares) all.add(share);
        std::vector<NewPair> found;
        InterruptCounter counter;
        for (PairCounts::Sum& sum : all.sums()) {
            counter.add(1);
            if (sum.count < min_count) continue;
            sum.next = new Position[sum.n_positions];
            found.push_back({sum.count, sum.left, sum.right, std::unique_ptr<Position[]>(sum.next), sum.n_positions});
        }
        for (PairCounts& share : shares) {
            for (PairCounts::Sum& sum : share.sums()) {
                counter.add(1);
                Position*& next = all.sum_of(sum.left, sum.right).next;
                sum.next = next;
                if (next) next += sum.n_positions;
            }
        }
        team_.run(shares.size(), [&](size_t i, size_t) {
            for_each_pair(i, [&](Token left, Token right, Position p) {
                if (Position*& next = shares[i].sum_of(left, right).next) *next++ = p;
            });
        });
        insert(found);
    }

    // Calls use(left, right, position) for the pairs in a share of the words; there is one share per thread.
    template <typename Use>
    void for_each_pair(size_t share, Use use) const {
        const Position last = symbols_.size() - 1;
        const auto cut = [&](uint64_t part) {
            return symbols_.border(static_cast<Position>(last * part / team_.size()), last);
        };
        const Position end = cut(share + 1);
        const bool only_bytes = tokens_.size() == 256;  // whose length is known without a cache miss
        Token left = Symbols::kBorder;
        InterruptCounter counter;
        for (Position p = cut(share), next; p < end; p = next) {
            counter.add(1);
            next = p + (only_bytes || left == Symbols::kBorder ? 1 : tokens_.length(left));
            const Token right = symbols_.at(next);
            if (left != Symbols::kBorder && right != Symbols::kBorder) use(left, right, p);
            left = right;
        }
    }

    void insert(std::vector<NewPair>& pairs) {
        InterruptCounter counter;
        for (const NewPair& pair : pairs) pairs_.prefetch(pair.left, pair.right);
        for (NewPair& pair : pairs) {
            counter.add(1);
            queue_.push(pairs_.insert(std::move(pair)));
        }
        pairs.clear();
    }

    // ---- Choosing a batch

    bool is_large(const Step& step) const { return pairs_[step.index].n_positions >= options_.worth_sharing; }

    // Fills batch_ with the best pairs that may be merged together, `most` at most. A pair with many positions is a
    // batch of its own, whose positions the threads share; so is a pair of equal tokens, whose positions may overlap.
    void choose_batch(size_t most) {
        batch_.clear();
        most = std::min({most, kLongestBatch, expected_length_});
        uint32_t index;
        batch_positions_ = 0;
        while (batch_.size() < most && queue_.best(index)) {
            const TrainingPairs::Pair& pair = pairs_[index];
            const bool alone = pair.left == pair.right || pair.n_positions >= options_.worth_sharing;
            if (!batch_.empty()) {
                if (alone || batch_positions_ + pair.n_positions > kMostPositions) break;
                if ((roles_[pair.left] & kIsRight) || (roles_[pair.right] & kIsLeft)) break;
            }
            queue_.pop();
            prefetch_line(pair.positions.get());
            batch_positions_ += pair.n_positions;
            const Token token = tokens_.append_joined(pair.left, pair.right);
            batch_.push_back(
                {index, pair.left, pair.right, token, tokens_.length(pair.left), tokens_.length(token), pair.now()});
            roles_[pair.left] |= kIsLeft;
            roles_[pair.right] |= kIsRight;
            if (alone) break;
        }
    }

    // Ends the batch before step `end`, and returns the steps after it to the queue.
    void cut_batch(size_t end) {
        for (const Step& step : batch_) roles_[step.left] = roles_[step.right] = 0;
        for (size_t i = end; i < batch_.size(); ++i) {
            queue_.push(batch_[i].index);
            found_[i].clear();
        }
        tokens_.truncate(batch_[0].token + static_cast<Token>(end));
        batch_.resize(end);
    }

    // Runs task(i, member) for 0 <= i < count on the team, or on this thread if starting the team would take longer.
    template <typename Task>
    void share(size_t count, Task task) {
        if (batch_positions_ >= std::min<uint64_t>(kFewPositions, options_.worth_sharing))
            return team_.run(count, task);
        for (size_t i = 0; i < count; ++i) task(i, 0);
    }

    // ---- Counting

    // Counts the neighbors of every step, and ends the batch before the first step that a new pair outranks.
    void count_batch() {
        std::atomic<size_t> end = batch_.size();
        share(batch_.size(), [&](size_t i, size_t member) {
            if (i >= end) return;
            if (i + team_.size() < batch_.size()) prefetch_positions(batch_[i + team_.size()]);
            const TrainingPairs::Pair& pair = pairs_[batch_[i].index];
            count_positions(batch_[i], pair.positions.get(), pair.positions.get() + pair.n_positions, found_[i],
                            member);
            reset(found_[i], member);
            found_[i].counter = member;
            const size_t outranked = first_outranked(i);
            for (size_t known = end; outranked < known && !end.compare_exchange_weak(known, outranked);) {
            }
        });
        cut_batch(end);
        expected_length_ = 2 * batch_.size() + kFewSteps;
    }

    void prefetch_positions(const Step& step) const {
        const TrainingPairs::Pair& pair = pairs_[step.index];
        for (uint32_t i = 0; i < std::min(pair.n_positions, kAhead); ++i) symbols_.prefetch(pair.positions[i]);
    }

    // Counts the neighbors of the only step and merges it, a block of positions at a time.
    void count_large() {
        constexpr ptrdiff_t kBlock = 512;
        const std::vector<const Position*> cuts = split_positions(pairs_[batch_[0].index]);
        const size_t shares = cuts.size() - 1;
        team_.run(shares, [&](size_t i, size_t member) {
            for (const Position *begin = cuts[i], *end; begin != cuts[i + 1]; begin = end) {
                check_interrupt();
                end = begin + std::min(kBlock, cuts[i + 1] - begin);
                count_positions(batch_[0], begin, end, found_[i], member);
                join(batch_[0], found_[i]);
            }
            reset(found_[i], member);
        });
        if (shares > 1) {
            team_.run(2, [&](size_t side, size_t member) {
                for (size_t i = 1; i < shares; ++i) {
                    found_[0].neighbors[side].append(index_of_[member][side], found_[i].neighbors[side]);
                }
            });
            for (size_t i = 1; i < shares; ++i) found_[0].self_pairs += std::exchange(found_[i].self_pairs, 0);
        }
        cut_batch(1);
    }

    // Divides the positions among the threads so that no word is in two shares. Only a bounded number of symbols is
    // searched for the end of a word: words may be as long as the text.
    std::vector<const Position*> split_positions(const TrainingPairs::Pair& pair) const {
        constexpr ptrdiff_t kTries = 64;
        constexpr Position kFar = 256;
        const Position *const begin = pair.positions.get(), *const end = begin + pair.n_positions;
        std::vector<const Position*> cuts{begin};
        for (size_t i = 1; i < team_.size(); ++i) {
            const Position* cut = std::max(begin + uint64_t{pair.n_positions} * i / team_.size(), cuts.back() + 1);
            const Position* const last = cut + std::min(kTries, end - cut);
            while (cut < last && symbols_.border(std::max(cut[-1], *cut - std::min(*cut, kFar)), *cut) == *cut) ++cut;
            if (cut >= last) return {begin, end};
            cuts.push_back(cut);
        }
        cuts.push_back(end);
        return cuts;
    }

    // Counts the neighbors that the new token will have once the batch up to this step is merged, at those of the given
    // positions, in ascending order, where the pair still is.
    void count_positions(const Step& step, const Position* begin, const Position* end, Occurrences& found,
                         size_t member) {
        auto& [index_before, index_after] = index_of_[member];
        Position joined_to = 0;  // the end of the last new token
        for (const Position* place = begin; place != end; ++place) {
            if (end - place > kAhead) symbols_.prefetch(place[kAhead]);
            const Position p = *place;
            const bool stands = symbols_.at(p) == step.left && symbols_.at(p + step.left_length) == step.right;
            if (!stands || p < joined_to) continue;
            const uint64_t weight = symbols_.weight(p);
            const Token before = p == joined_to ? step.token : token_before(p, step);
            const Token after = token_after(p + step.length, step);
            joined_to = p + step.length;
            found.positions.push_back(p);
            if (before == step.token) found.self_pairs += weight;
            if (before != Symbols::kBorder) {
                found.neighbors[kBefore].add(index_before, before, weight, p - tokens_.length(before));
            }
            if (after != Symbols::kBorder && after != step.token) {
                found.neighbors[kAfter].add(index_after, after, weight, p);
            }
        }
    }

    // The token that will end before `p`: the new token of a step up to this one, or the present token.
    Token token_before(Position p, const Step& step) const {
        const Token token = symbols_.at(p - 1);
        if (token == Symbols::kBorder || !(roles_[token] & kIsRight)) return token;
        const Token one_further = symbols_.at(p - tokens_.length(token) - 1);
        for (const Step* other = batch_.data(); other <= &step; ++other) {
            if (other->right == token && other->left == one_further) return other->token;
        }
        return token;
    }

    // The same for the token that will start at `p`.
    Token token_after(Position p, const Step& step) const {
        const Token token = symbols_.at(p);
        if (token == Symbols::kBorder || !(roles_[token] & kIsLeft)) return token;
        const Token one_further = symbols_.at(p + tokens_.length(token));
        for (const Step* other = batch_.data(); other <= &step; ++other) {
            if (other->left == token && other->right == one_further) return other->token;
        }
        return token;
    }

    void reset(const Occurrences& found, size_t member) {
        for (size_t side : kSides) found.neighbors[side].reset(index_of_[member][side]);
    }

    // The first step of the batch that ranks after some new pair of step `i`.
    size_t first_outranked(size_t i) {
        const Token token = batch_[i].token;
        size_t first = batch_.size();
        for (size_t side : kSides) {
            for (const Neighbors::Sum& sum : found_[i].neighbors[side].sums()) {
                if (sum.neighbor >= batch_[0].token && sum.neighbor != token) found_[i].touches_batch = true;
                const OrderedPair pair(side, sum.neighbor, token);
                while (first > i + 1 && sum.weight >= batch_[first - 1].count &&
                       queue_.outranks({sum.weight, pair.left, pair.right}, batch_[first - 1].rank())) {
                    --first;
                }
            }
        }
        return first;
    }

    // ---- Merging

    void join(const Step& step, Occurrences& found) {
        for (Position p : found.positions) symbols_.join(p, p + step.left_length, p + step.length, step.token);
        found.positions.clear();
    }

    void merge_batch() {
        if (batch_.size() == 1) {
            share(2, [&](size_t side, size_t member) { write_positions(0, side, member); });
        } else {
            // The thread that counted a step usually merges it too, as its cells are in that core's cache.
            share(team_.size(), [&](size_t counter, size_t member) {
                for (size_t i = 0; i < batch_.size(); ++i) {
                    if (found_[i].counter != counter) continue;
                    for (size_t side : kSides) write_positions(i, side, member);
                }
            });
        }
        for (size_t i = 0; i < batch_.size(); ++i) {
            if (found_[i].touches_batch) reduce_new_pairs(i);
            for (size_t side : kSides) insert(found_[i].new_pairs[side]);
            found_[i].clear();
        }
    }

    // Writes the new pairs on one side of the new token, and decreases the counts of the pairs that they replace: those
    // of its left part with the token before it, or of its right part with the token after it.
    void write_positions(size_t i, size_t side, size_t member) {
        const Step& step = batch_[i];
        Occurrences& found = found_[i];
        if (side == kBefore) {
            join(step, found);
        } else {
            pairs_[step.index].count = 0;
            pairs_[step.index].positions.reset();
        }
        const Token part = side == kBefore ? step.left : step.right;
        Neighbors& neighbors = found.neighbors[side];
        for (const Neighbors::Sum& sum : neighbors.sums()) {
            const OrderedPair lost(side, sum.neighbor, part);
            pairs_.prefetch(lost.left, lost.right);
        }
        std::vector<Decrease>& decreases = decreases_[member];
        decreases.clear();
        for (const Neighbors::Sum& sum : neighbors.sums()) {
            const OrderedPair lost(side, sum.neighbor, part);
            look_up(lost.left, lost.right, sum.weight, decreases);
        }
        // Where the new token follows itself, there was ... left right | left right ...
        if (side == kBefore && found.self_pairs > 0) look_up(step.right, step.left, found.self_pairs, decreases);
        for (const Decrease& loss : decreases)
            pairs_[loss.pair].count.fetch_sub(loss.weight, std::memory_order_relaxed);

        neighbors.write_positions(min_count_, [&](Token neighbor, uint64_t count, auto positions, uint32_t n) {
            const OrderedPair pair(side, neighbor, step.token);
            found.new_pairs[side].push_back({count, pair.left, pair.right, std::move(positions), n});
        });
    }

    // Adds what the count of a pair decreases by, unless the pair was too rare to be kept.
    void look_up(Token left, Token right, uint64_t weight, std::vector<Decrease>& decreases) const {
        const uint32_t pair = pairs_.find(left, right);
        if (pair == TrainingPairs::kNone) return;
        pairs_.prefetch(pair);
        decreases.push_back({pair, weight});
    }

    // Pairs that this batch makes can be decreased only after they were inserted.
    void reduce_new_pairs(size_t i) {
        const Step& step = batch_[i];
        for (size_t side : kSides) {
            for (const Neighbors::Sum& sum : found_[i].neighbors[side].sums()) {
                if (sum.neighbor < batch_[0].token || sum.neighbor == step.token) continue;
                const OrderedPair lost(side, sum.neighbor, side == kBefore ? step.left : step.right);
                const uint32_t pair = pairs_.find(lost.left, lost.right);
                if (pair != TrainingPairs::kNone) pairs_[pair].count -= sum.weight;
            }
        }
    }

    const std::vector<Word>& words_;
    const TrainOptions& options_;
    Team team_;
    TokenBytes tokens_;
    Symbols symbols_;
    TrainingPairs pairs_;
    PairQueue queue_;
    size_t most_merges_;
    uint64_t min_count_ = 0;  // of the pairs in pairs_

    std::vector<Step> batch_;
    uint64_t batch_positions_ = 0;        // of the batch
    std::vector<uint8_t> roles_;          // by token: on which sides of the batch's pairs it is
    std::vector<Occurrences> found_;      // by step, or by thread if the threads share a step
    size_t expected_length_ = kFewSteps;  // of the next batch, and some more

    // By thread:
    std::vector<std::array<IndexOfToken, 2>> index_of_;
    std::vector<std::vector<Decrease>> decreases_;
};

}  // namespace

std::vector<Merge> learn_merges(const std::vector<Word>& words, const TrainOptions& options) {
    return Trainer(words, options).run();
}

}  // namespace llmfast
