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

// A pair while it is merged, and the token it becomes.
struct Step {
    std::uint32_t index;
    Token left, right, token;
    std::uint32_t left_length, length;
    std::uint64_t count;

    PairQueue::Rank rank() const { return {count, left, right}; }
};

constexpr std::size_t kBefore = 0, kAfter = 1;
constexpr std::size_t kSides[] = {kBefore, kAfter};

// What a step finds at its places. Threads write to neighboring ones, so none shares a cache line with another.
struct alignas(128) Found {
    std::vector<Position> places;  // those where the pair still stands
    std::array<Neighbors, 2> beside;
    std::array<std::vector<NewPair>, 2> new_pairs;  // what `beside` becomes
    std::uint64_t twins = 0;                        // the weight of places where the token follows itself
    std::size_t counter = 0;   // the member of the team that found it
    bool beside_step = false;  // whether a token that an earlier step of the batch makes is among the neighbors

    void clear() {
        places.clear();
        for (std::size_t side : kSides) {
            beside[side].clear();
            new_pairs[side].clear();
        }
        twins = 0;
        beside_step = false;
    }
};

struct Loss {
    std::uint32_t pair;
    std::uint64_t weight;
};

// A pair of tokens by what is on one side of the other.
struct Adjacent {
    Token left, right;
    Adjacent(std::size_t side, Token neighbor, Token own)
        : left(side == kBefore ? neighbor : own), right(side == kBefore ? own : neighbor) {}
};

// Merges are made in batches. The best pairs of the queue make a batch as long as none has a token on its left that
// another one has on its right: then no place of one overlaps a place of another, and merging one does not change the
// count of another. The threads count what will stand beside each, still without changing a symbol, as if the ones
// before it were merged. If a new pair turns out to go before a later step, the batch ends there: so each step is what
// merging one by one comes to. Then all are merged at once.
class Trainer {
public:
    Trainer(const std::vector<Word>& words, const TrainOptions& options)
        : words_(words),
          options_(options),
          team_(options.threads),
          tokens_(options.byte_order),
          symbols_(words, options.byte_order, team_),
          queue_(pairs_, tokens_, options_.tie_break),
          most_merges_(std::min<std::size_t>(options.merges, symbols_.size())),  // each takes a token away
          roles_(256 + most_merges_),
          found_(std::max(kLongestBatch, team_.size())),
          index_of_(team_.size(), {IndexOfToken(256 + most_merges_), IndexOfToken(256 + most_merges_)}),
          losses_(team_.size()) {
        if (roles_.size() > Symbols::kMostTokens) throw std::length_error("more than 2^24 tokens cannot be learnt");
    }

    std::vector<Merge> run() {
        std::vector<Merge> merges;
        std::size_t next_report = 0;
        find_pairs(first_min_count());
        Decreasing rarest(SIZE_MAX);  // each batch has a merge, or else rarer pairs are searched
        while (merges.size() < most_merges_) {
            check_interrupt();
            if (options_.progress && merges.size() >= next_report) {
                options_.progress(merges.size());
                next_report = merges.size() + 256;
            }
            choose_batch(most_merges_ - merges.size());
            if (batch_.empty()) {
                if (kept_ == options_.min_frequency) break;
                rarest.require(kept_);
                find_pairs(std::max(options_.min_frequency, kept_ / 8));
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
    static constexpr std::size_t kLongestBatch = 64, kFewSteps = 16;
    static constexpr std::uint64_t kMostPlaces = 1 << 14;  // of a batch, so that its cells stay in a core's cache
    static constexpr std::uint64_t kFewPlaces = 256;
    static constexpr std::uint32_t kAhead = 12;            // places whose cells are prefetched
    static constexpr Position kLooks = 1 << 14;            // places between two looks at whether the caller still wants the result
    static constexpr std::uint8_t kIsLeft = 1, kIsRight = 2;

    // ---- Finding pairs

    // The rarest pair merged has mostly more than a hundredth of an even share of all weight; if it has less, the
    // symbols are searched once more.
    std::uint64_t first_min_count() const {
        std::uint64_t weight = 0;
        for (const Word& word : words_) weight += word.bytes.size() * word.count;
        return std::max(options_.min_frequency, weight / (most_merges_ + 1) / 128);
    }

    // Most pairs are too rare to be merged ever: only those of `min_count` are kept. When they are used up, the
    // symbols are searched again for rarer ones. All threads count, each a share of the words, then all write
    // their places behind one another's.
    void find_pairs(std::uint64_t min_count) {
        kept_ = min_count;
        pairs_.clear();
        queue_.restart(min_count);
        std::vector<PairCounts> shares(team_.size());
        team_.run(shares.size(), [&](std::size_t i, std::size_t) {
            for_each_pair(i, [&](Token left, Token right, Position p) {
                PairCounts::Sum& sum = shares[i].sum_of(left, right);
                sum.count += symbols_.weight(p);
                ++sum.n_places;
            });
        });
        PairCounts all;
        for (const PairCounts& share : shares) all.add(share);
        std::vector<NewPair> found;
        for (PairCounts::Sum& sum : all.sums()) {
            if (sum.count < min_count) continue;
            sum.next = new Position[sum.n_places];
            found.push_back({sum.count, sum.left, sum.right, std::unique_ptr<Position[]>(sum.next), sum.n_places});
        }
        for (PairCounts& share : shares) {
            for (PairCounts::Sum& sum : share.sums()) {
                Position*& next = all.sum_of(sum.left, sum.right).next;
                sum.next = next;
                if (next) next += sum.n_places;
            }
        }
        team_.run(shares.size(), [&](std::size_t i, std::size_t) {
            for_each_pair(i, [&](Token left, Token right, Position p) {
                if (Position*& next = shares[i].sum_of(left, right).next) *next++ = p;
            });
        });
        insert(found);
    }

    // Calls use(left, right, place) for the pairs in a share of the words, one of as many as there are threads.
    template <class Use>
    void for_each_pair(std::size_t share, Use use) const {
        const Position last = symbols_.size() - 1;
        const auto cut = [&](std::uint64_t part) {
            return symbols_.border(static_cast<Position>(last * part / team_.size()), last);
        };
        const Position end = cut(share + 1);
        const bool only_bytes = tokens_.size() == 256;  // their length need not be waited for
        Token left = Symbols::kBorder;
        for (Position p = cut(share), next, look = p; p < end; p = next) {
            if (p >= look) {
                check_interrupt();
                look = p + kLooks;
            }
            next = p + (only_bytes || left == Symbols::kBorder ? 1 : tokens_.length(left));
            const Token right = symbols_.at(next);
            if (left != Symbols::kBorder && right != Symbols::kBorder) use(left, right, p);
            left = right;
        }
    }

    void insert(std::vector<NewPair>& pairs) {
        for (const NewPair& pair : pairs) pairs_.prefetch(pair.left, pair.right);
        for (NewPair& pair : pairs) queue_.push(pairs_.insert(std::move(pair)));
        pairs.clear();
    }

    // ---- Choosing a batch

    bool is_large(const Step& step) const { return pairs_[step.index].n_places >= options_.worth_sharing; }

    // Fills batch_ with the best pairs that may be merged together, `most` at most. One with many places goes alone:
    // the threads share them. So does a token that follows itself, for the places of the pair may overlap.
    void choose_batch(std::size_t most) {
        batch_.clear();
        most = std::min({most, kLongestBatch, likely_length_});
        std::uint32_t index;
        places_ = 0;
        while (batch_.size() < most && queue_.best(index)) {
            const TrainingPairs::Pair& pair = pairs_[index];
            const bool alone = pair.left == pair.right || pair.n_places >= options_.worth_sharing;
            if (!batch_.empty()) {
                if (alone || places_ + pair.n_places > kMostPlaces) break;
                if ((roles_[pair.left] & kIsRight) || (roles_[pair.right] & kIsLeft)) break;
            }
            queue_.pop();
            prefetch_line(pair.places.get());
            places_ += pair.n_places;
            const Token token = tokens_.append_joined(pair.left, pair.right);
            batch_.push_back({index, pair.left, pair.right, token, tokens_.length(pair.left), tokens_.length(token),
                              pair.now()});
            roles_[pair.left] |= kIsLeft;
            roles_[pair.right] |= kIsRight;
            if (alone) break;
        }
    }

    // Ends the batch before step `end`; the others go back.
    void cut_batch(std::size_t end) {
        for (const Step& step : batch_) roles_[step.left] = roles_[step.right] = 0;
        for (std::size_t i = end; i < batch_.size(); ++i) {
            queue_.push(batch_[i].index);
            found_[i].clear();
        }
        tokens_.cut(batch_[0].token + static_cast<Token>(end));
        batch_.resize(end);
    }

    // Has the threads do task(i, member) for 0 <= i < count, or this one if it is done before another knows of it.
    template <class Task>
    void share(std::size_t count, Task task) {
        if (places_ >= std::min<std::uint64_t>(kFewPlaces, options_.worth_sharing)) return team_.run(count, task);
        for (std::size_t i = 0; i < count; ++i) task(i, 0);
    }

    // ---- Counting

    // Counts the neighbors of every step, and cuts the batch before the first that a new pair outranks.
    void count_batch() {
        std::atomic<std::size_t> end = batch_.size();
        share(batch_.size(), [&](std::size_t i, std::size_t member) {
            if (i >= end) return;
            if (i + team_.size() < batch_.size()) prefetch_places(batch_[i + team_.size()]);
            const TrainingPairs::Pair& pair = pairs_[batch_[i].index];
            count_places(batch_[i], pair.places.get(), pair.places.get() + pair.n_places, found_[i], member);
            forget(found_[i], member);
            found_[i].counter = member;
            const std::size_t outranked = first_outranked(i);
            for (std::size_t known = end; outranked < known && !end.compare_exchange_weak(known, outranked);) {}
        });
        cut_batch(end);
        likely_length_ = 2 * batch_.size() + kFewSteps;
    }

    void prefetch_places(const Step& step) const {
        const TrainingPairs::Pair& pair = pairs_[step.index];
        for (std::uint32_t i = 0; i < std::min(pair.n_places, kAhead); ++i) symbols_.prefetch(pair.places[i]);
    }

    // Counts the neighbors of the only step and merges it, some places at a time.
    void count_large() {
        constexpr std::ptrdiff_t kBlock = 512;
        const std::vector<const Position*> cuts = share_places(pairs_[batch_[0].index]);
        const std::size_t shares = cuts.size() - 1;
        team_.run(shares, [&](std::size_t i, std::size_t member) {
            for (const Position *begin = cuts[i], *end; begin != cuts[i + 1]; begin = end) {
                check_interrupt();
                end = begin + std::min(kBlock, cuts[i + 1] - begin);
                count_places(batch_[0], begin, end, found_[i], member);
                join(batch_[0], found_[i]);
            }
            forget(found_[i], member);
        });
        if (shares > 1) {
            team_.run(2, [&](std::size_t side, std::size_t member) {
                for (std::size_t i = 1; i < shares; ++i) {
                    found_[0].beside[side].absorb(index_of_[member][side], found_[i].beside[side]);
                }
            });
            for (std::size_t i = 1; i < shares; ++i) found_[0].twins += std::exchange(found_[i].twins, 0);
        }
        cut_batch(1);
    }

    // Where the list of places is cut so that every thread gets a share, and no word is in two shares. Only a bounded
    // number of symbols is searched for the end of a word: words may be as long as the text.
    std::vector<const Position*> share_places(const TrainingPairs::Pair& pair) const {
        constexpr std::ptrdiff_t kTries = 64;
        constexpr Position kFar = 256;
        const Position *const begin = pair.places.get(), *const end = begin + pair.n_places;
        std::vector<const Position*> cuts{begin};
        for (std::size_t i = 1; i < team_.size(); ++i) {
            const Position* cut = std::max(begin + std::uint64_t{pair.n_places} * i / team_.size(), cuts.back() + 1);
            const Position* const last = cut + std::min(kTries, end - cut);
            while (cut < last && symbols_.border(std::max(cut[-1], *cut - std::min(*cut, kFar)), *cut) == *cut) ++cut;
            if (cut >= last) return {begin, end};
            cuts.push_back(cut);
        }
        cuts.push_back(end);
        return cuts;
    }

    // Counts what will stand beside the pair once the batch up to this step is merged, wherever the pair still stands
    // among these places, which ascend.
    void count_places(const Step& step, const Position* begin, const Position* end, Found& found, std::size_t member) {
        auto& [index_before, index_after] = index_of_[member];
        Position joined_to = 0;  // the end of the last place
        for (const Position* place = begin; place != end; ++place) {
            if (end - place > kAhead) symbols_.prefetch(place[kAhead]);
            const Position p = *place;
            const bool stands = symbols_.at(p) == step.left && symbols_.at(p + step.left_length) == step.right;
            if (!stands || p < joined_to) continue;
            const std::uint64_t weight = symbols_.weight(p);
            const Token before = p == joined_to ? step.token : token_before(p, step);
            const Token after = token_after(p + step.length, step);
            joined_to = p + step.length;
            found.places.push_back(p);
            if (before == step.token) found.twins += weight;
            if (before != Symbols::kBorder) {
                found.beside[kBefore].add(index_before, before, weight, p - tokens_.length(before));
            }
            if (after != Symbols::kBorder && after != step.token) {
                found.beside[kAfter].add(index_after, after, weight, p);
            }
        }
    }

    // The token that will end before `p`: that of a step, up to this one, or what stands there now.
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

    void forget(const Found& found, std::size_t member) {
        for (std::size_t side : kSides) found.beside[side].forget(index_of_[member][side]);
    }

    // The first step of the batch that goes after some new pair of step `i`.
    std::size_t first_outranked(std::size_t i) {
        const Token token = batch_[i].token;
        std::size_t first = batch_.size();
        for (std::size_t side : kSides) {
            for (const Neighbors::Sum& sum : found_[i].beside[side].sums()) {
                if (sum.neighbor >= batch_[0].token && sum.neighbor != token) found_[i].beside_step = true;
                const Adjacent pair(side, sum.neighbor, token);
                while (first > i + 1 && sum.weight >= batch_[first - 1].count &&
                       queue_.outranks({sum.weight, pair.left, pair.right}, batch_[first - 1].rank())) {
                    --first;
                }
            }
        }
        return first;
    }

    // ---- Merging

    void join(const Step& step, Found& found) {
        for (Position p : found.places) symbols_.join(p, p + step.left_length, p + step.length, step.token);
        found.places.clear();
    }

    void merge_batch() {
        if (batch_.size() == 1) {
            share(2, [&](std::size_t side, std::size_t member) { lay_out(0, side, member); });
        } else {
            // Who counted a step mostly merges it, too, for its cells are in that core's cache: members begin in order.
            share(team_.size(), [&](std::size_t counter, std::size_t member) {
                for (std::size_t i = 0; i < batch_.size(); ++i) {
                    if (found_[i].counter != counter) continue;
                    for (std::size_t side : kSides) lay_out(i, side, member);
                }
            });
        }
        for (std::size_t i = 0; i < batch_.size(); ++i) {
            if (found_[i].beside_step) reduce_new_pairs(i);
            for (std::size_t side : kSides) insert(found_[i].new_pairs[side]);
            found_[i].clear();
        }
    }

    // Where the token stands now, its left part stood beside what is before it, and its right part beside what is
    // after it.
    void lay_out(std::size_t i, std::size_t side, std::size_t member) {
        const Step& step = batch_[i];
        Found& found = found_[i];
        if (side == kBefore) {
            join(step, found);
        } else {
            pairs_[step.index].count = 0;
            pairs_[step.index].places.reset();
        }
        const Token part = side == kBefore ? step.left : step.right;
        Neighbors& beside = found.beside[side];
        for (const Neighbors::Sum& sum : beside.sums()) {
            const Adjacent lost(side, sum.neighbor, part);
            pairs_.prefetch(lost.left, lost.right);
        }
        std::vector<Loss>& losses = losses_[member];
        losses.clear();
        for (const Neighbors::Sum& sum : beside.sums()) {
            const Adjacent lost(side, sum.neighbor, part);
            look_up(lost.left, lost.right, sum.weight, losses);
        }
        // A token that follows itself: they were ... left right | left right ...
        if (side == kBefore && found.twins > 0) look_up(step.right, step.left, found.twins, losses);
        for (const Loss& loss : losses) pairs_[loss.pair].count.fetch_sub(loss.weight, std::memory_order_relaxed);

        beside.lay_out(kept_, [&](Token neighbor, std::uint64_t count, auto places, std::uint32_t n) {
            const Adjacent pair(side, neighbor, step.token);
            found.new_pairs[side].push_back({count, pair.left, pair.right, std::move(places), n});
        });
    }

    // What a pair loses, unless it was too rare to be kept.
    void look_up(Token left, Token right, std::uint64_t weight, std::vector<Loss>& losses) const {
        const std::uint32_t pair = pairs_.find(left, right);
        if (pair == TrainingPairs::kNone) return;
        pairs_.prefetch(pair);
        losses.push_back({pair, weight});
    }

    // Pairs that steps of this batch made cannot be reduced before they are among all pairs.
    void reduce_new_pairs(std::size_t i) {
        const Step& step = batch_[i];
        for (std::size_t side : kSides) {
            for (const Neighbors::Sum& sum : found_[i].beside[side].sums()) {
                if (sum.neighbor < batch_[0].token || sum.neighbor == step.token) continue;
                const Adjacent lost(side, sum.neighbor, side == kBefore ? step.left : step.right);
                const std::uint32_t pair = pairs_.find(lost.left, lost.right);
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
    std::size_t most_merges_;
    std::uint64_t kept_ = 0;  // how rare a pair may be that is among pairs_

    std::vector<Step> batch_;
    std::uint64_t places_ = 0;         // of the batch
    std::vector<std::uint8_t> roles_;  // by token: where it stands in the pairs of the batch
    std::vector<Found> found_;         // by step, or by thread where a step is shared
    std::size_t likely_length_ = kFewSteps;  // of the next batch, with some to spare

    // By thread:
    std::vector<std::array<IndexOfToken, 2>> index_of_;
    std::vector<std::vector<Loss>> losses_;
};

}  // namespace

std::vector<Merge> learn_merges(const std::vector<Word>& words, const TrainOptions& options) {
    return Trainer(words, options).run();
}

}  // namespace llmfast
