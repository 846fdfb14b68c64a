#include "merge.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

#include "unicode.h"

namespace llmfast {
namespace {

constexpr size_t kShort = 64;  // up to here a scan for the lowest rank beats a queue

// One token a byte; false for a byte that is none.
bool byte_tokens(const PairTable& pairs, std::string_view piece, uint32_t* out) {
    bool all = true;
    for (size_t i = 0; i < piece.size(); ++i) {
        out[i] = pairs.byte(static_cast<uint8_t>(piece[i]));
        all &= out[i] != kNoToken;
    }
    return all;
}

[[noreturn]] void throw_no_token(const PairTable& pairs, std::string_view piece) {
    for (const char& byte : piece) {
        if (pairs.byte(static_cast<uint8_t>(byte)) != kNoToken) continue;
        throw std::invalid_argument("the vocabulary has no token for the byte " + printable({&byte, 1}));
    }
    throw std::logic_error("every byte is a token");
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

// `rank` has that of each part joined with the next.
size_t merge_short(const PairTable& pairs, uint32_t* ids, uint32_t* rank, size_t count) {
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

// For long pieces. Parts are a linked list of where they start; the queue holds rank and start, and outdated entries
// are skipped when they come up: O(n log n).
size_t merge_queued(const PairTable& pairs, uint32_t* ids, size_t count, MergeScratch& scratch) {
    auto& [next, previous, rank, queue] = scratch;
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
    for (uint32_t part = 0; part < end; part = next[part]) ids[kept++] = ids[part];
    return kept;
}

}  // namespace

size_t merge_bytes(const PairTable& pairs, std::string_view piece, uint32_t* out, MergeScratch& scratch) {
    if (!byte_tokens(pairs, piece, out)) return 0;
    if (piece.size() > kShort) return merge_queued(pairs, out, piece.size(), scratch);
    uint32_t rank[kShort];
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(piece.data());
    for (size_t i = 0; i + 1 < piece.size(); ++i) rank[i] = pairs.byte_pair(bytes[i], bytes[i + 1]);
    return merge_short(pairs, out, rank, piece.size());
}

size_t merge(const PairTable& pairs, std::string_view piece, uint32_t* out, MergeScratch& scratch) {
    if (is_ascii(piece)) {
        const size_t count = merge_bytes(pairs, piece, out, scratch);
        if (count == 0) throw_no_token(pairs, piece);
        return count;
    }
    const size_t count = character_tokens(pairs, piece, out);
    if (count > kShort) return merge_queued(pairs, out, count, scratch);
    uint32_t rank[kShort];
    for (size_t i = 0; i + 1 < count; ++i) rank[i] = pairs.find(out[i], out[i + 1]);
    return merge_short(pairs, out, rank, count);
}

}  // namespace llmfast
