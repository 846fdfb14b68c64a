#include "merge.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

#include "unicode.h"

namespace llmfast {
namespace {

constexpr size_t kShort = 64;  // up to here a scan for the lowest rank beats a queue

[[noreturn]] void throw_no_token(uint8_t byte) {
    const char text = static_cast<char>(byte);
    throw std::invalid_argument("the vocabulary has no token for the byte " + printable({&text, 1}));
}

// One token a byte. Returns how many there are.
size_t byte_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out) {
    for (size_t i = 0; i < piece.size(); ++i) {
        const uint8_t byte = static_cast<uint8_t>(piece[i]);
        out[i] = pairs.byte(byte);
        if (out[i] == kNoToken) throw_no_token(byte);
    }
    return piece.size();
}

// One token a character where that is certain to come about, else one a byte. It is certain if no token straddles
// either end of the character: then nothing outside of it can merge with a part of it.
size_t character_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out) {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(piece.data());
    const uint8_t* const end = at + piece.size();
    size_t count = 0;
    bool free_before = true;
    while (at < end) {
        const Character character = character_at(at, end);
        const uint8_t* const after = at + character.size;
        const bool free_behind = after == end || !pairs.straddles(after[-1], *after);
        const uint32_t whole = character.size > 1 && free_before && free_behind ? pairs.character(character.point) : kNoToken;
        if (whole != kNoToken) {
            out[count++] = whole;
        } else {
            count += byte_tokens(pairs, {reinterpret_cast<const char*>(at), character.size}, out + count);
        }
        free_before = free_behind;
        at = after;
    }
    return count;
}

bool is_ascii(std::string_view piece) {
    return std::none_of(piece.begin(), piece.end(), [](char c) { return static_cast<uint8_t>(c) >= 0x80; });
}

size_t merge_short(const PairTable& pairs, uint32_t* ids, size_t count) {
    uint32_t rank[kShort];  // of each part joined with the next
    for (size_t i = 0; i + 1 < count; ++i) rank[i] = pairs.find(ids[i], ids[i + 1]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; ++i) best = rank[i] < rank[best] ? i : best;
        if (rank[best] == kNoToken) break;
        ids[best] = rank[best];
        --count;
        for (size_t i = best + 1; i < count; ++i) {
            ids[i] = ids[i + 1];
            rank[i - 1] = rank[i];
        }
        if (best + 1 < count) rank[best] = pairs.find(ids[best], ids[best + 1]);
        if (best > 0) rank[best - 1] = pairs.find(ids[best - 1], ids[best]);
    }
    return count;
}

// The merge loop of long pieces. Parts are a linked list of where they start; the queue holds rank and start, and
// outdated entries are skipped when they come up: O(n log n). `joined(part, other)` is the rank of a part joined with
// the next; `merged(part, rank)` is told when that happens.
template <typename Joined, typename Merged>
void merge_long(size_t length, MergeScratch& scratch, Joined joined, Merged merged) {
    auto& [next, previous, rank, queue] = scratch;
    const uint32_t end = static_cast<uint32_t>(length);
    next.resize(length);
    previous.resize(length);
    rank.resize(length);
    queue.clear();
    const auto renew = [&](uint32_t part) {
        rank[part] = next[part] == end ? kNoToken : joined(part, next[part]);
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
        merged(part, rank[part]);
        rank[gone] = kNoToken;
        next[part] = next[gone];
        if (next[part] != end) previous[next[part]] = part;
        if (renew(part)) std::push_heap(queue.begin(), queue.end(), std::greater<>());
        if (part > 0 && renew(previous[part])) std::push_heap(queue.begin(), queue.end(), std::greater<>());
    }
}

}  // namespace

size_t merge_tokens(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch) {
    if (count <= kShort) return merge_short(pairs, ids, count);
    merge_long(
        count, scratch, [&](uint32_t part, uint32_t other) { return pairs.find(ids[part], ids[other]); },
        [&](uint32_t part, uint32_t rank) { ids[part] = rank; });
    size_t kept = 0;
    for (uint32_t part = 0; part < count; part = scratch.next[part]) ids[kept++] = ids[part];
    return kept;
}

size_t merge_by_bytes(const Vocabulary& vocabulary, std::string_view piece, uint32_t* out, MergeScratch& scratch) {
    const auto& next = scratch.next;
    const auto behind = [&](uint32_t part) { return next[part]; };
    merge_long(
        piece.size(), scratch,
        [&](uint32_t part, uint32_t other) { return vocabulary.find(piece.substr(part, behind(other) - part)); },
        [](uint32_t, uint32_t) {});
    size_t count = 0;
    for (uint32_t part = 0; part < piece.size(); part = next[part]) {
        out[count] = vocabulary.find(piece.substr(part, next[part] - part));
        if (out[count++] == kNoToken) throw_no_token(static_cast<uint8_t>(piece[part]));
    }
    return count;
}

size_t merge(const Vocabulary& vocabulary, const PairTable& pairs, std::string_view piece, uint32_t* out,
             MergeScratch& scratch) {
    if (!pairs.is_ordered()) return merge_by_bytes(vocabulary, piece, out, scratch);
    const size_t parts = is_ascii(piece) ? byte_tokens(pairs, piece, out) : character_tokens(pairs, piece, out);
    return merge_tokens(pairs, out, parts, scratch);
}

}  // namespace llmfast
