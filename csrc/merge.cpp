#include "merge.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <stdexcept>
#include <string>

#include "newer_machines.h"
#include "unicode.h"

namespace llmfast {

bool byte_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out) {
    bool all = true;
    for (size_t i = 0; i < piece.size(); ++i) {
        out[i] = pairs.byte(static_cast<uint8_t>(piece[i]));
        all &= out[i] != kNoToken;
    }
    return all;
}

namespace {

constexpr size_t kShort = 64;  // parts whose state fits in a few registers and the nearest memory

[[noreturn]] void throw_no_token(const PairTable& pairs, std::string_view piece) {
    for (const char& byte : piece) {
        if (pairs.byte(static_cast<uint8_t>(byte)) != kNoToken) continue;
        throw std::invalid_argument("the vocabulary has no token for the byte " + printable({&byte, 1}));
    }
    throw std::logic_error("every byte is a token");
}

// One token a character where that is certain to come about, else one a byte. It is certain if no token straddles
// either end of the character: then nothing outside of it can merge with a part of it. Returns 0 for a piece that is
// not UTF-8, where characters could end anywhere.
size_t character_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out) {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(piece.data());
    const uint8_t* const end = at + piece.size();
    size_t count = 0;
    bool free_before = true;
    while (at < end) {
        const Character character = character_at(at, end);
        if (character.size == 1 && *at >= 0x80) return 0;
        const uint8_t* const after = at + character.size;
        const bool free_behind = after == end || !pairs.straddles(after[-1], *after);
        const uint32_t whole = character.size > 1 && free_before && free_behind ? pairs.character(character.point) : kNoToken;
        if (whole != kNoToken) {
            out[count++] = whole;
        } else {
            const std::string_view bytes(reinterpret_cast<const char*>(at), character.size);
            if (!byte_tokens(pairs, bytes, out + count)) throw_no_token(pairs, bytes);
            count += bytes.size();
        }
        free_before = free_behind;
        at = after;
    }
    return count;
}

bool is_ascii(std::string_view piece) {
    return std::none_of(piece.begin(), piece.end(), [](char c) { return static_cast<uint8_t>(c) >= 0x80; });
}

// Up to 64 parts: which are left is one word, and a pair is a number whose smallest is the next to merge, rank in the
// upper bits and place in the lower. New pairs are asked for in one step and looked up in the next, so that their memory
// is there when it is read.
class ShortMerge {
  public:
    void start(const PairTable& pairs, Piece& piece) {
        piece_ = &piece;
        ids_ = piece.ids;
        left_ = ~0ull >> (64 - piece.count);
        asked_ = 0;
        std::fill_n(pairs_, (piece.count + 15) / 16 * 16, kNone);
        uint32_t all = 0;
        for (size_t i = 0; i < piece.count; ++i) all |= ids_[i];
        if (all < 256) {
            for (size_t i = 0; i + 1 < piece.count; ++i) pairs_[i] = pairs.low_pair(ids_[i], ids_[i + 1]) | static_cast<int32_t>(i);
            return;
        }
        uint64_t likely = 0;  // first all pairs that may be there, without a branch that would be guessed wrong
        for (size_t i = 0; i + 1 < piece.count; ++i) likely |= uint64_t{pairs.may_have(ids_[i], ids_[i + 1])} << i;
        asked_ = likely;
        for (; likely; likely &= likely - 1) {
            const size_t at = static_cast<size_t>(std::countr_zero(likely));
            pairs.prefetch(ids_[at], ids_[at + 1]);
        }
    }

    // Merges the next pair in place; false if there is none.
    bool step(const PairTable& pairs) {
        for (; asked_; asked_ &= asked_ - 1) {
            const size_t at = static_cast<size_t>(std::countr_zero(asked_));
            const uint32_t merged = pairs.find_likely(ids_[at], ids_[next(at)]);
            if (merged != kNoToken) pairs_[at] = static_cast<int32_t>(merged << 6 | at);
        }
        const int32_t best = smallest();
        if (best == kNone) return false;
        const size_t place = static_cast<size_t>(best) & 63;
        const size_t gone = next(place);
        ids_[place] = static_cast<uint32_t>(best) >> 6;
        left_ &= ~(1ull << gone);
        pairs_[gone] = pairs_[place] = kNone;
        const size_t behind = next(place);
        if (behind < 64) ask(pairs, place, behind);
        const uint64_t before = left_ & ((1ull << place) - 1);
        if (before) {
            const size_t previous = 63 - static_cast<size_t>(std::countl_zero(before));
            pairs_[previous] = kNone;
            ask(pairs, previous, place);
        }
        return true;
    }

    // Packs the ids that are left and, if asked, where their parts start.
    void finish(uint32_t* starts) {
        size_t kept = 0;
        for (uint64_t rest = left_; rest; rest &= rest - 1) {
            const size_t place = static_cast<size_t>(std::countr_zero(rest));
            if (starts) starts[kept] = static_cast<uint32_t>(place);
            ids_[kept++] = ids_[place];
        }
        piece_->count = kept;
    }

  private:
    static constexpr int32_t kNone = PairTable::kNoLowPair;  // above every pair: ids have 24 bits

    void ask(const PairTable& pairs, size_t place, size_t behind) {
        const bool likely = pairs.may_have(ids_[place], ids_[behind]);
        pairs.prefetch(ids_[place], ids_[behind]);
        asked_ |= uint64_t{likely} << place;
    }
    size_t next(size_t place) const {
        return static_cast<size_t>(std::countr_zero(left_ & (~1ull << place)));  // 64 where there is none
    }
    int32_t smallest() const {
        int32_t best = kNone;
        for (size_t at = 0; at < piece_->count; at += 16) {
            for (size_t i = 0; i < 16; ++i) best = std::min(best, pairs_[at + i]);
        }
        return best;
    }

    Piece* piece_;
    uint32_t* ids_;
    uint64_t left_, asked_;  // a bit for each place: whether a part starts there; whether its pair is to be looked up
    int32_t pairs_[kShort];
};

// The short ones among the pieces, step by step in turn: while one waits for memory, the others go on.
inline void merge_in_turn(const PairTable& pairs, std::span<Piece> pieces) {
    constexpr size_t kLanes = 12;
    ShortMerge lanes[kLanes];
    ShortMerge* working[kLanes];
    for (size_t i = 0; i < kLanes; ++i) working[i] = &lanes[i];
    auto waiting = pieces.begin();
    const auto start_next = [&](ShortMerge& lane) {
        while (waiting != pieces.end() && waiting->count > kShort) ++waiting;
        if (waiting == pieces.end()) return false;
        lane.start(pairs, *waiting++);
        return true;
    };
    size_t busy = 0;
    while (busy < kLanes && start_next(*working[busy])) ++busy;
    while (busy > 0) {
        for (size_t i = 0; i < busy;) {
            if (working[i]->step(pairs)) {
                ++i;
            } else {
                working[i]->finish(nullptr);
                if (!start_next(*working[i])) std::swap(working[i], working[--busy]);
            }
        }
    }
}

LLMFAST_NEWER void merge_in_turn_newer(const PairTable& pairs, std::span<Piece> pieces) { merge_in_turn(pairs, pieces); }

inline void merge_one(const PairTable& pairs, Piece& piece, uint32_t* starts) {
    ShortMerge merge;
    merge.start(pairs, piece);
    while (merge.step(pairs)) {
    }
    merge.finish(starts);
}

LLMFAST_NEWER void merge_one_newer(const PairTable& pairs, Piece& piece, uint32_t* starts) {
    merge_one(pairs, piece, starts);
}

size_t merge_short(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t* starts) {
    Piece piece = {ids, count};
    is_newer() ? merge_one_newer(pairs, piece, starts) : merge_one(pairs, piece, starts);
    return piece.count;
}

// Any number of parts. They are a linked list of where they start; the queue holds rank and start, and outdated
// entries are skipped when they come up: O(n log n).
size_t merge_queued(const PairTable& pairs, uint32_t* ids, size_t count, uint32_t* starts, MergeQueue& scratch) {
    std::vector<uint32_t>&next = scratch.next, &previous = scratch.previous, &rank = scratch.rank;
    std::vector<uint64_t>& queue = scratch.queue;
    const uint32_t end = static_cast<uint32_t>(count);
    next.resize(count);
    previous.resize(count);
    rank.resize(count);
    queue.clear();
    const auto renew = [&](uint32_t part) {
        rank[part] = next[part] == end ? kNoToken : pairs.find(ids[part], ids[next[part]]);
        if (rank[part] == kNoToken) return false;
        queue.push_back(uint64_t{rank[part]} << 32 | part);
        return true;
    };
    for (uint32_t part = 0; part < end; ++part) {
        next[part] = part + 1;
        previous[part] = part - 1;
    }
    for (uint32_t part = 0; part < end; ++part) renew(part);
    std::make_heap(queue.begin(), queue.end(), std::greater<>());

    while (!queue.empty()) {
        const uint64_t best = queue.front();
        std::pop_heap(queue.begin(), queue.end(), std::greater<>());
        queue.pop_back();
        const uint32_t part = static_cast<uint32_t>(best);
        if (rank[part] != best >> 32) continue;  // merged away, or joined with something else since
        const uint32_t gone = next[part];
        ids[part] = rank[part];
        rank[gone] = kNoToken;
        next[part] = next[gone];
        if (next[part] != end) previous[next[part]] = part;
        if (renew(part)) std::push_heap(queue.begin(), queue.end(), std::greater<>());
        if (part > 0 && renew(previous[part])) std::push_heap(queue.begin(), queue.end(), std::greater<>());
    }
    size_t kept = 0;
    for (uint32_t part = 0; part < end; part = next[part]) {
        starts[kept] = part;
        ids[kept++] = ids[part];
    }
    return kept;
}

// A long piece goes window by window, so that the work stays in the nearest memory and is linear in its length.
//
// A sequence of tokens is the result of merging if each two neighbours are the result of merging their bytes alone:
// the first merge across the end of a token would depend on nothing but that token and its neighbour. So two windows
// may overlap in one token: if both find it, what the first has up to it and the second has from it is the result.
// If they do not, the second window starts a token earlier and is made wider.
size_t merge_by_windows(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch) {
    auto& [source, window, starts, done_starts, queue] = scratch;
    source.assign(ids, ids + count);
    done_starts.clear();  // of the tokens in ids[0, done); ids[done] is what the window before found at `at`
    size_t done = 0, at = 0, usual_width = kShort, width = kShort;
    while (true) {
        const size_t size = std::min(width, count - at);
        window.assign(source.data() + at, source.data() + at + size);
        starts.resize(size);
        const size_t found = size <= kShort ? merge_short(pairs, window.data(), size, starts.data())
                                            : merge_queued(pairs, window.data(), size, starts.data(), queue);
        if (at > 0 && window[0] != ids[done]) {
            at = done_starts[--done];
            done_starts.pop_back();
            width *= 2;
            continue;
        }
        if (at + size == count) {
            std::copy_n(window.data(), found, ids + done);
            return done + found;
        }
        size_t shared = found - 1;  // the last token that ends well before the window does
        while (shared > 0 && (shared + 1 == found || starts[shared + 1] > size / 4 * 3)) --shared;
        if (shared == 0) {  // long tokens
            usual_width = width *= 4;
            continue;
        }
        for (size_t i = 0; i < shared; ++i) done_starts.push_back(static_cast<uint32_t>(at) + starts[i]);
        std::copy_n(window.data(), shared + 1, ids + done);
        done += shared;
        at += starts[shared];
        width = std::max(usual_width, width / 2);
    }
}

// A piece of one repeated part, as spaces, newlines and ruled lines are: merged as runs of equal tokens, of which there
// are few, however long the piece is. All pairs within a run merge at once where no pair that comes about on the way
// would go first. Returns 0 where it takes more runs or steps than a vocabulary made by merging does.
size_t merge_repeated(const PairTable& pairs, uint32_t* ids, size_t count) {
    struct Run {
        uint32_t id;
        size_t count;
    };
    constexpr size_t kMostRuns = 32, kMostSteps = 256;
    std::vector<Run> runs = {{ids[0], count}}, merged;
    const auto append = [&merged](uint32_t id, size_t times) {
        if (times == 0) return;
        if (!merged.empty() && merged.back().id == id) {
            merged.back().count += times;
        } else {
            merged.push_back({id, times});
        }
    };
    for (size_t step = 0; step < kMostSteps && runs.size() <= kMostRuns; ++step) {
        uint32_t best = kNoToken;
        size_t at = 0;
        bool within = false;
        for (size_t i = 0; i < runs.size(); ++i) {
            const auto offer = [&](uint32_t pair, bool is_within) {
                if (pair < best) best = pair, at = i, within = is_within;
            };
            if (runs[i].count > 1) offer(pairs.find(runs[i].id, runs[i].id), true);
            if (i + 1 < runs.size()) offer(pairs.find(runs[i].id, runs[i + 1].id), false);
        }
        if (best == kNoToken) {
            size_t kept = 0;
            for (const Run& run : runs) kept = static_cast<size_t>(std::fill_n(ids + kept, run.count, run.id) - ids);
            return kept;
        }
        merged.clear();
        for (size_t i = 0; i < at; ++i) append(runs[i].id, runs[i].count);
        const auto [id, times] = runs[at];
        if (within) {
            const bool at_once = pairs.find(best, best) > best && pairs.find(best, id) > best &&
                                 (at == 0 || pairs.find(runs[at - 1].id, best) > best);
            const size_t merges = at_once ? times / 2 : 1;
            append(best, merges);
            append(id, times - 2 * merges);
        } else {
            append(id, times - 1);
            append(best, 1);
            ++at;
            append(runs[at].id, runs[at].count - 1);
        }
        for (size_t i = at + 1; i < runs.size(); ++i) append(runs[i].id, runs[i].count);
        runs.swap(merged);
    }
    return 0;
}

size_t merge_long(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch) {
    if (std::all_of(ids + 1, ids + count, [&](uint32_t id) { return id == ids[0]; })) {
        if (const size_t kept = merge_repeated(pairs, ids, count)) return kept;
    }
    return merge_by_windows(pairs, ids, count, scratch);
}

}  // namespace

size_t parts_of(const PairTable& pairs, std::string_view piece, uint32_t* out) {
    if (!is_ascii(piece)) {
        if (const size_t count = character_tokens(pairs, piece, out)) return count;
    }
    if (!byte_tokens(pairs, piece, out)) throw_no_token(pairs, piece);
    return piece.size();
}

void merge_parts(const PairTable& pairs, std::span<Piece> pieces, MergeScratch& scratch) {
    is_newer() ? merge_in_turn_newer(pairs, pieces) : merge_in_turn(pairs, pieces);
    for (Piece& piece : pieces) {
        if (piece.count > kShort) piece.count = merge_long(pairs, piece.ids, piece.count, scratch);
    }
}

}  // namespace llmfast
