#include "merge/pair_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <span>
#include <stdexcept>
#include <thread>
#include <utility>

#include "merge/merge.h"
#include "pretokenize/unicode.h"
#include "system/interrupt.h"
#include "system/parallel.h"
#include "system/prefetch.h"

namespace llmfast {
namespace {

uint8_t byte_at(std::string_view token, size_t at) { return static_cast<uint8_t>(token[at]); }

// The positions of tokens of two bytes and more, in ascending order of length.
std::vector<uint32_t> by_length(const Vocabulary& vocabulary) {
    constexpr size_t kCounted = 256;  // tokens of at least this length are few, and sorted
    InterruptCounter counter;
    std::array<size_t, kCounted + 2> starts{};  // by length
    const auto class_of = [&](size_t at) { return std::min(vocabulary.token(at).size(), kCounted); };
    for (size_t at = 0; at < vocabulary.size(); ++at) {
        counter.add(1);
        ++starts[class_of(at) + 1];
    }
    const size_t skipped = starts[2];
    starts[2] = 0;
    for (size_t length = 3; length < starts.size(); ++length) starts[length] += starts[length - 1];
    std::vector<uint32_t> positions(vocabulary.size() - skipped);
    const size_t long_ones = starts[kCounted];
    for (size_t at = 0; at < vocabulary.size(); ++at) {
        counter.add(1);
        const size_t length = class_of(at);
        if (length > 1) positions[starts[length]++] = static_cast<uint32_t>(at);
    }
    sort_with_checks(positions.begin() + static_cast<ptrdiff_t>(long_ones), positions.end(),
                     [&](uint32_t a, uint32_t b) { return vocabulary.token(a).size() < vocabulary.token(b).size(); });
    return positions;
}

constexpr int kMostBits = 25;  // then each of the 24 bits that choose a bucket does

// The two tokens of the last merge that makes a token; kNoToken if merging does not make it.
struct Halves {
    uint32_t left, right;
};

// Finds them for all tokens of one length, on all cores. The table already has all shorter tokens.
void find_halves(const PairTable& pairs, const Vocabulary& vocabulary, std::span<const uint32_t> positions,
                 std::vector<Halves>& halves) {
    constexpr size_t kChunk = 4096;
    const size_t length = vocabulary.token(positions[0]).size();
    halves.assign(positions.size(), Halves{kNoToken, kNoToken});
    run_parallel((positions.size() + kChunk - 1) / kChunk, std::thread::hardware_concurrency(),
                 [&](size_t chunk, size_t) {
                     const size_t begin = chunk * kChunk, count = std::min(kChunk, positions.size() - begin);
                     check_interrupt();
                     MergeScratch scratch;
                     std::vector<uint32_t> parts(count * length);
                     std::vector<Piece> pieces;
                     std::vector<size_t> places;
                     for (size_t i = begin; i < begin + count; ++i) {
                         uint32_t* const own = &parts[(i - begin) * length];
                         if (!byte_tokens(pairs, vocabulary.token(positions[i]), own)) continue;
                         pieces.push_back({own, length});
                         places.push_back(i);
                     }
                     merge_parts(pairs, pieces, scratch);
                     for (size_t i = 0; i < pieces.size(); ++i) {
                         if (pieces[i].count == 2) halves[places[i]] = {pieces[i].ids[0], pieces[i].ids[1]};
                     }
                 });
}

bool is_ascii(std::string_view token) {
    return std::none_of(token.begin(), token.end(), [](char c) { return static_cast<uint8_t>(c) >= 0x80; });
}

// Whether a token ends at the end of a character.
bool ends_whole(std::string_view token) {
    size_t start = token.size() - 1;
    while (start > 0 && is_continuation(byte_at(token, start))) --start;
    const uint8_t* at = reinterpret_cast<const uint8_t*>(token.data()) + start;
    const size_t size = token.size() - start;
    return character_at(at, at + size).size == size && (size > 1 || *at < 0x80);
}

}  // namespace

PairTable::PairTable(const Vocabulary& vocabulary)
    : characters_(65536, kNoToken), adjoining_((1 << kAdjoiningBits) / 64) {
    for (size_t byte = 0; byte < 256; ++byte) {
        const char text = static_cast<char>(byte);
        bytes_[byte] = vocabulary.find({&text, 1});
    }
    const std::vector<uint32_t> positions = by_length(vocabulary);
    int bits = std::max(16, static_cast<int>(std::bit_width(vocabulary.size() * 2 - 1)));
    while (!fill(vocabulary, positions, bits)) {
        if (++bits > kMostBits)
            throw std::invalid_argument(
                "the vocabulary's merges do not fit into a table: too many of its ids are alike");
    }
}

// Inserts tokens from short to long, since everything that a token's bytes merge into before the token is shorter.
// Returns false if a table of 2^bits places is too small.
bool PairTable::fill(const Vocabulary& vocabulary, const std::vector<uint32_t>& positions, int bits) {
    const size_t places = size_t{1} << bits;
    buckets_ = std::make_unique<Pages>((places / 2 + 1) * sizeof(uint16_t));  // read four bytes at a time
    entries_ = std::make_unique<Pages>((places + PairPlaces::kWindow) * sizeof(uint64_t));
    low_pairs_.assign(1 << 16, kNoToken);
    places_ = {static_cast<uint16_t*>(buckets_->data()), static_cast<uint64_t*>(entries_->data()), low_pairs_.data(),
               kMostBits - bits};
    bool ordered = true;
    InterruptCounter counter;
    std::vector<Halves> halves;
    for (size_t from = 0, to; from < positions.size(); from = to) {
        const size_t length = vocabulary.token(positions[from]).size();
        for (to = from; to < positions.size() && vocabulary.token(positions[to]).size() == length;) ++to;
        find_halves(*this, vocabulary, {positions.data() + from, to - from}, halves);
        for (size_t i = from; i < to; ++i) {
            constexpr size_t kAhead = 8;
            counter.add(1 + length / 16);
            if (i + kAhead < to) prefetch(halves[i - from + kAhead].left, halves[i - from + kAhead].right);
            const auto [left, right] = halves[i - from];
            if (left == kNoToken) continue;
            const uint32_t id = vocabulary.id(positions[i]);
            const std::string_view token = vocabulary.token(positions[i]);
            if (!insert(left, right, id)) return false;
            ordered = ordered && left < id && right < id;
            if (is_ascii(token)) continue;
            add_adjoining(token);
            if (byte_at(token, 0) >= 0x80 || byte_at(token, length - 1) >= 0x80) add_character(token, id);
        }
    }
    if (!ordered) std::fill(characters_.begin(), characters_.end(), kNoToken);
    return true;
}

void PairTable::prefetch(uint32_t left, uint32_t right) const {
    const size_t bucket = places_.bucket(PairPlaces::upper(left, right));
    prefetch_line(places_.buckets + bucket);
    prefetch_line(places_.entries + 2 * bucket);
}

// If the place of a pair is taken, chooses another seed for its bucket with which all pairs of the bucket have places
// of their own; returns false if there is no such seed.
bool PairTable::insert(uint32_t left, uint32_t right, uint32_t merged) {
    if ((left | right) < 256) low_pairs_[size_t{left} << 8 | right] = merged;
    const uint32_t upper = PairPlaces::upper(left, right);
    const size_t bucket = places_.bucket(upper);
    uint16_t& word = static_cast<uint16_t*>(buckets_->data())[bucket];
    uint64_t* const window = static_cast<uint64_t*>(entries_->data()) + 2 * bucket;
    const uint64_t entry = PairPlaces::tag(upper, right) | merged;
    word |= static_cast<uint16_t>(PairPlaces::likely_bit(upper));
    if (uint64_t& place = window[PairPlaces::offset(entry, word)]; place == 0) {
        place = entry;
        return true;
    }
    uint64_t own[PairPlaces::kWindow + 1] = {entry}, taken = 0;
    size_t count = 1;
    for (size_t i = 0; i < PairPlaces::kWindow; ++i) {
        if (window[i] == 0) continue;
        // An entry of another bucket that has the same bits of `upper` would be too far away to be in this window.
        if ((places_.bucket(static_cast<uint32_t>(window[i] >> 48)) ^ bucket) << places_.shift & 0xFFFF) {
            taken |= 1ull << i;
        } else {
            own[count++] = std::exchange(window[i], 0);
        }
    }
    for (uint32_t seed = 0; seed < PairPlaces::kSeeds; ++seed) {
        uint64_t with = taken;
        size_t placed = 0;
        for (; placed < count; ++placed) {
            const uint64_t bit = 1ull << PairPlaces::offset(own[placed], seed);
            if (with & bit) break;
            with |= bit;
        }
        if (placed < count) continue;
        for (size_t i = 0; i < count; ++i) window[PairPlaces::offset(own[i], seed)] = own[i];
        word = static_cast<uint16_t>(word / PairPlaces::kSeeds * PairPlaces::kSeeds + seed);
        return true;
    }
    return false;
}

// Records which characters are next to each other in a token.
void PairTable::add_adjoining(std::string_view token) {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(token.data());
    const uint8_t* const end = at + token.size();
    Character character = character_at(at, end);
    while (at += character.size, at < end) {
        const uint32_t before = character.point;
        character = character_at(at, end);
        const uint32_t bit = adjoining_bit(before, character.point);
        adjoining_[bit >> 6] |= 1ull << (bit & 63);
    }
}

void PairTable::add_character(std::string_view token, uint32_t id) {
    const uint8_t* begin = reinterpret_cast<const uint8_t*>(token.data());
    const Character first = character_at(begin, begin + token.size());
    if (first.size == token.size() && first.point < characters_.size()) characters_[first.point] = id;
    if (!is_continuation(begin[0]) && ends_whole(token)) return;
    for (size_t at = 1; at < token.size(); ++at) {
        if (!is_continuation(begin[at])) straddles_[size_t{begin[at - 1]} << 8 | begin[at]] = true;
    }
}

}  // namespace llmfast
