#include "merge.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

namespace llmfast {
namespace {

constexpr size_t kShort = 64;  // up to here a scan for the lowest rank beats a queue

// The rank of the token `piece[from, to)`, or kNoToken.
inline uint32_t rank_of(const Vocabulary& vocabulary, const char* piece, size_t from, size_t to, const char* text_end) {
    const size_t length = to - from;
    if (length > vocabulary.longest()) return kNoToken;
    return vocabulary.find(piece + from, length, text_end - (piece + from) >= 16);
}

// The id of a part when merging is over: a token, unless it is a single byte that the vocabulary lacks.
inline uint32_t final_id(const Vocabulary& vocabulary, const char* piece, size_t from, size_t to, const char* text_end) {
    const uint32_t id = rank_of(vocabulary, piece, from, to, text_end);
    if (id == kNoToken) {
        const unsigned byte = static_cast<unsigned char>(piece[from]);
        throw std::invalid_argument("the vocabulary has no token for the byte " + std::to_string(byte));
    }
    return id;
}

size_t merge_short(const Vocabulary& vocabulary, const char* piece, size_t length, const char* text_end,
                   uint32_t* out) {
    uint32_t start[kShort + 3];  // where each part starts; the end of the piece stands behind them
    uint32_t rank[kShort + 1];   // of each part joined with the next
    size_t parts = length;
    for (size_t i = 0; i <= parts; ++i) start[i] = static_cast<uint32_t>(i);
    const auto joined = [&](size_t i) {
        return i + 1 < parts ? rank_of(vocabulary, piece, start[i], start[i + 2], text_end) : kNoToken;
    };
    for (size_t i = 0; i < parts; ++i) rank[i] = joined(i);

    while (true) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < parts; ++i) {
            if (rank[i] < rank[best]) best = i;
        }
        if (rank[best] == kNoToken) break;
        --parts;
        std::copy(start + best + 2, start + parts + 2, start + best + 1);
        std::copy(rank + best + 2, rank + parts + 1, rank + best + 1);
        rank[best] = joined(best);
        if (best > 0) rank[best - 1] = joined(best - 1);
    }
    for (size_t i = 0; i < parts; ++i) {
        out[i] = final_id(vocabulary, piece, start[i], start[i + 1], text_end);
    }
    return parts;
}

// Parts are a linked list keyed by where they start; the queue holds rank and start, and outdated entries are skipped
// when they come up: O(n log n).
size_t merge_long(const Vocabulary& vocabulary, const char* piece, size_t length, const char* text_end, uint32_t* out,
                  MergeScratch& scratch) {
    auto& [next, previous, rank, queue] = scratch;
    const uint32_t end = static_cast<uint32_t>(length);
    next.resize(length);
    previous.resize(length);
    rank.resize(length);
    queue.clear();
    const auto joined = [&](uint32_t part) {
        const uint32_t other = next[part];
        return other == end ? kNoToken : rank_of(vocabulary, piece, part, next[other], text_end);
    };
    const auto entry = [](uint32_t rank, uint32_t part) { return uint64_t{rank} << 32 | part; };
    const auto renew = [&](uint32_t part) {
        rank[part] = joined(part);
        if (rank[part] == kNoToken) return;
        queue.push_back(entry(rank[part], part));
        std::push_heap(queue.begin(), queue.end(), std::greater<>());
    };
    for (uint32_t part = 0; part < end; ++part) {
        next[part] = part + 1;
        previous[part] = part - 1;
    }
    for (uint32_t part = 0; part < end; ++part) {
        rank[part] = joined(part);
        if (rank[part] != kNoToken) queue.push_back(entry(rank[part], part));
    }
    std::make_heap(queue.begin(), queue.end(), std::greater<>());

    while (!queue.empty()) {
        const uint64_t best = queue.front();
        std::pop_heap(queue.begin(), queue.end(), std::greater<>());
        queue.pop_back();
        const uint32_t part = static_cast<uint32_t>(best);
        if (rank[part] != best >> 32) continue;  // merged away, or joined with something else since
        const uint32_t gone = next[part];
        rank[gone] = kNoToken;
        next[part] = next[gone];
        if (next[part] != end) previous[next[part]] = part;
        renew(part);
        if (part > 0) renew(previous[part]);
    }
    size_t count = 0;
    for (uint32_t part = 0; part < end; part = next[part]) {
        out[count++] = final_id(vocabulary, piece, part, next[part], text_end);
    }
    return count;
}

}  // namespace

size_t merge(const Vocabulary& vocabulary, const char* piece, size_t length, const char* text_end, uint32_t* out,
             MergeScratch& scratch) {
    if (length <= kShort) return merge_short(vocabulary, piece, length, text_end, out);
    return merge_long(vocabulary, piece, length, text_end, out, scratch);
}

}  // namespace llmfast
